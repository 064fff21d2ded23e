"""How an output came to be: written by every command that makes one, read back by the next, and never in its way."""

import hashlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import edit_json, run_convert
from tests.merging import run_merge
from tests.training import run_train
from upcycle.checkpoint.lineage import LINEAGE_FILE, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES, lineage, receipt_sha256
from upcycle.checkpoint.place import RECEIPT_FILE, VERIFICATION_FILE, check_out, staging_path
from upcycle.cli.main import group
from upcycle.convert.convert import beside
from upcycle.convert.record import Record
from upcycle.errors import CheckpointError, InputError
from upcycle.pipeline import stages
from upcycle.pipeline.locate import BUILT_IN
from upcycle.plan.report import Report
from upcycle.requests import Attach, Verify
from upcycle.train.saved.manifest import read_manifest

SHORT: dict[str, Any] = {"max_steps": 2, "eval_split": 0.2, "eval_sequences": 2}
TRAINING = {
    "made": "training", "recipe": {"model": "moe"}, "steps": 2, "loss": None, "eval_loss": None, "versions": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """A conversion that is verified, the training of it, and an adapter that is trained; none is changed by a test."""
    place = tmp_path_factory.mktemp("made")
    moe = run_convert(Path("demo:tiny"), place / "moe")
    stages.verify(Verify(dense="demo:tiny", moe=str(moe), record=True, tokens=32))
    stages.attach(Attach(model="demo:tiny", out=str(place / "attached"), experts=(2,), rank=2))
    run_train(moe, place / "trained", text, **SHORT)
    run_train(place / "attached", place / "adapter", text, max_steps=1)
    return {path.name: path for path in place.iterdir()}


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    """A conversion that a test may damage."""
    return run_convert(Path("demo:tiny"), tmp_path / "moe")


class Stopping:
    """Watches a training and interrupts it after the first step."""

    def begin(self, total_steps: int, done: int) -> None: ...

    def step(self, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 1:
            signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None: ...


def kinds(directory: Path) -> list[str]:
    """What the entries are about."""
    return [entry["made"] for entry in lineage(directory)]


def invoke(*words: object) -> Any:
    """Run a command line."""
    return CliRunner().invoke(group, [str(word) for word in words])


def test_what_upcycle_did_not_make_has_none():
    assert lineage(BUILT_IN["demo:tiny"]) == []


def test_a_conversion_is_its_receipt_without_what_only_its_files_need(made):
    receipt = json.loads((made["moe"] / RECEIPT_FILE).read_bytes())
    entry = lineage(made["moe"])[0]
    assert entry == {
        "made": "conversion",
        "receipt_sha256": receipt_sha256(made["moe"]),
        **{name: receipt[name] for name in ("versions", "recipe", "exact", "parameters", "plan", "source")},
    }
    assert (entry["source"]["name"], entry["exact"]) == ("tiny", True)


def test_a_recorded_verification_tells_every_line_and_figure(made):
    entry = lineage(made["moe"])[1]
    assert entry == json.loads((made["moe"] / VERIFICATION_FILE).read_bytes())
    assert (entry["made"], entry["passed"], entry["receipt_sha256"]) == (
        "verification", True, receipt_sha256(made["moe"]),
    )  # fmt: skip
    names = {line["name"] for line in entry["lines"]}
    assert {"source", "plan", "files", "tensors", "logits", "loss", "router gradient"} <= names
    assert (entry["parity"]["tokens"], entry["parity"]["agreement"], entry["parity"]["exact"]) == (32, 1.0, True)
    weights = made["moe"] / "model.safetensors"
    assert entry["weights"] == {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert len(entry["parity"]["layers"]) == json.loads((made["moe"] / "config.json").read_bytes())["num_hidden_layers"]


def test_a_verification_is_recorded_on_demand_only_and_counts_for_its_receipt_only(moe):
    assert invoke("verify", "demo:tiny", moe, "--tensors-only").exit_code == 0
    assert not (moe / VERIFICATION_FILE).exists()
    assert invoke("verify", "demo:tiny", moe, "--tensors-only", "--record").exit_code == 0
    entry = lineage(moe)[1]
    assert (entry["passed"], entry["parity"]) == (True, {})
    assert not staging_path(moe / VERIFICATION_FILE).exists()
    edit_json(moe / RECEIPT_FILE, exact=False)
    assert kinds(moe) == ["conversion"]


def test_a_verification_that_failed_is_recorded_as_failed_in_place_of_one_that_passed(moe):
    assert invoke("verify", "demo:tiny", moe, "--tensors-only", "--record").exit_code == 0
    edit_json(moe / "config.json", rope_theta=7.0)
    assert invoke("verify", "demo:tiny", moe, "--record").exit_code == 1
    entry = lineage(moe)[1]
    assert entry["passed"] is False
    assert {"name": "config", "verdict": "FAIL", "text": "config.json differs in rope_theta"} in entry["lines"]


def test_a_verification_records_every_file_of_weights(tmp_path):
    out = run_convert(Path("demo:tiny"), tmp_path / "moe", max_shard_size="2MB")
    stages.verify(Verify(dense="demo:tiny", moe=str(out), tensors_only=True, record=True))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.safetensors")}
    assert lineage(out)[1]["weights"] == found
    assert len(found) > 1


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(path.read_bytes())])
def test_weights_that_change_while_they_are_verified_are_not_recorded(change, moe):
    os.utime(moe / "model.safetensors", (1, 1))
    record = Record(moe)
    change(moe / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed while they were verified"):
        record.write(Report())
    assert not (moe / VERIFICATION_FILE).exists()


def test_a_verification_without_hashes_counts(made, tmp_path):
    shutil.copytree(made["moe"], tmp_path / "moe")
    entry = json.loads((tmp_path / "moe" / VERIFICATION_FILE).read_bytes())
    del entry["weights"]
    (tmp_path / "moe" / VERIFICATION_FILE).write_text(json.dumps(entry))
    assert lineage(tmp_path / "moe")[1] == entry
    (tmp_path / "moe" / VERIFICATION_FILE).write_text(json.dumps(entry | {"weights": ["model.safetensors"]}))
    assert kinds(tmp_path / "moe") == ["conversion"]


def test_a_conversion_carries_the_lineage_of_its_dense_model(text, tmp_path):
    dense = run_train(BUILT_IN["demo:tiny"], tmp_path / "dense", text, max_steps=1)
    out = run_convert(dense, tmp_path / "moe")
    assert kinds(out) == ["training", "conversion"]
    assert lineage(out)[:1] == lineage(dense)
    assert (out / LINEAGE_FILE).read_bytes() == beside(dense)[LINEAGE_FILE]
    assert LINEAGE_FILE in json.loads((out / RECEIPT_FILE).read_bytes())["files"]
    assert beside(BUILT_IN["demo:tiny"]) == {}
    first = (out / RECEIPT_FILE).read_bytes()
    result = invoke("verify", dense, out, "--tensors-only", "--record")
    assert result.exit_code == 0, result.output
    run_convert(dense, out, resume=True)
    run_convert(dense, out, overwrite=True)
    assert (out / RECEIPT_FILE).read_bytes() == first
    for part in (1, 2):
        run_convert(dense, tmp_path / "parts", part=f"{part}/2", max_shard_size="2MB")
    assert (tmp_path / "parts" / LINEAGE_FILE).read_bytes() == (out / LINEAGE_FILE).read_bytes()


def test_a_record_disturbs_neither_verify_nor_overwrite(moe):
    words = ("convert", "demo:tiny", moe, "--experts", 4, "--overwrite")
    assert invoke("verify", "demo:tiny", moe, "--tensors-only", "--record").exit_code == 0
    staging_path(moe / VERIFICATION_FILE).write_bytes(b"{")  # cut off by a kill
    again = invoke("verify", "demo:tiny", moe, "--tensors-only", "--record")
    assert again.exit_code == 0, again.output
    assert not staging_path(moe / VERIFICATION_FILE).exists()
    staging_path(moe / VERIFICATION_FILE).write_bytes(b"{")
    assert invoke(*words).exit_code == 0
    assert kinds(moe) == ["conversion"]
    assert not (moe / VERIFICATION_FILE).exists()


@pytest.mark.parametrize("content", [b'{"tests": "mine"}', b"not JSON", b'["verification"]'])
def test_a_file_of_that_name_that_is_someone_elses_is_left_alone(content, moe):
    (moe / VERIFICATION_FILE).write_bytes(content)
    with pytest.raises(InputError, match="--record leaves it alone"):
        stages.verify(Verify(dense="demo:tiny", moe=str(moe), tensors_only=True, record=True))
    with pytest.raises(InputError, match="holds what upcycle did not make"):
        check_out(moe, (), overwrite=True)
    assert (moe / VERIFICATION_FILE).read_bytes() == content


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only to the superuser")
def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_compared(moe):
    moe.chmod(0o555)
    try:
        with pytest.raises(InputError, match="cannot be written there"):
            stages.verify(Verify(dense="demo:tiny", moe=str(moe), tensors_only=True, record=True))
    finally:
        moe.chmod(0o755)


def test_a_training_adds_itself_to_the_lineage_of_its_model(made, text):
    *before, entry = lineage(made["trained"])
    assert before == lineage(made["moe"])
    metrics = [json.loads(line) for line in (made["trained"] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if "loss" in line]
    held_out = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    assert entry["loss"] == {"first": losses[0], "last": losses[-1]}  # tenths of two steps are single steps
    assert entry["eval_loss"] == {"first": held_out[0], "last": held_out[-1]}
    assert (entry["steps"], entry["batch"], entry["tokens"]) == (2, 4, 2 * 4 * 64)
    assert (entry["recipe"]["model"], entry["recipe"]["data"]) == ("moe", [text.name])
    assert "source" not in entry
    assert str(made["trained"].parent) not in (made["trained"] / LINEAGE_FILE).read_text()
    assert LINEAGE_FILE in json.loads((made["trained"] / "training.json").read_bytes())["files"]


def test_a_training_that_was_interrupted_tells_the_same(made, text, tmp_path):
    fields = {**SHORT, "save_every": 1}

    with pytest.raises(KeyboardInterrupt):
        run_train(made["moe"], tmp_path / "out", text, observer=Stopping(), **fields)
    (first,) = (tmp_path / "out").glob("checkpoint-*")
    assert [entry["steps"] for entry in lineage(first)[-1:]] == [1]
    assert not (tmp_path / "out" / LINEAGE_FILE).exists()
    run_train(made["moe"], tmp_path / "out", text, **fields, resume=True)
    once = run_train(made["moe"], tmp_path / "once", text, **fields)
    assert (tmp_path / "out" / LINEAGE_FILE).read_bytes() == (once / LINEAGE_FILE).read_bytes()
    before = (once / "checkpoint-000002").stat()
    run_train(made["moe"], once, text, **fields, resume=True)
    after = (once / "checkpoint-000002").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    run_train(made["moe"], once, text, **fields, overwrite=True)
    assert kinds(once) == ["conversion", "verification", "training"]


def test_a_training_of_a_training_tells_both(made, text, tmp_path):
    out = run_train(made["trained"], tmp_path / "out", text, max_steps=1, train="lora", lora_keep=True)
    assert kinds(out) == ["conversion", "verification", "training", "training"]
    assert lineage(out)[:-1] == lineage(made["trained"])
    assert LINEAGE_FILE in read_manifest(out / "checkpoint-000001").files


def test_a_training_of_a_model_of_the_hub_names_it_and_its_commit(text, tmp_path):
    cached = tmp_path / "models--org--small" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    for path in BUILT_IN["demo:tiny"].iterdir():
        (cached / path.name).write_bytes(path.read_bytes())
    out = run_train(cached, tmp_path / "out", text, max_steps=1)
    (entry,) = lineage(out)
    assert entry["source"] == {"name": "org/small", "revision": "0123abc"}
    assert entry["recipe"]["model"] == "org/small"


def test_a_merge_carries_the_lineage_of_its_adapter(made, tmp_path):
    assert kinds(made["adapter"]) == ["adapter", "training"]
    assert lineage(made["adapter"])[0] == lineage(made["attached"])[0]
    out = tmp_path / "merged"
    run_merge(made["adapter"], BUILT_IN["demo:tiny"], out, dtype="f32")
    *before, merge = lineage(out)
    assert before == lineage(made["adapter"])
    assert (merge["made"], merge["recipe"]["adapter"], merge["source"]["name"]) == ("merge", "adapter", "tiny")
    assert LINEAGE_FILE in json.loads((out / RECEIPT_FILE).read_bytes())["files"]
    first = (out / LINEAGE_FILE).read_bytes()
    run_merge(made["adapter"], BUILT_IN["demo:tiny"], out, dtype="f32", resume=True)
    run_merge(made["adapter"], BUILT_IN["demo:tiny"], out, dtype="f32", overwrite=True)
    assert (out / LINEAGE_FILE).read_bytes() == first


DAMAGED: dict[str, bytes] = {
    "not JSON": b"[{",
    "not UTF-8": b'["\xff"]',
    "half a surrogate pair": b'[{"made": "training", "x": "\\ud800"}]',
    "an object": b"{}",
    "a text": b'"lineage"',
    "entries that are none": b"[1, 2]",
    "an entry about nothing": b"[{}]",
    "of an unknown kind": b'[{"made": "coffee"}]',
    "a kind that is a list": b'[{"made": ["training"]}]',
    "fields that are missing": b'[{"made": "training"}]',
    "fields of another type": json.dumps([TRAINING | {"steps": True}]).encode(),
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "nesting that Python reads": json.dumps(
        [TRAINING | {"recipe": json.loads('{"a":' * 20 + "1" + "}" * 20)}]
    ).encode(),
    "a number without end": b"[" + b"9" * 5000 + b"]",
    "NaN": b"[NaN]",
    "too much": json.dumps([TRAINING | {"recipe": {"x": "y" * MAX_BYTES}}]).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_lineage_is_left_out_with_one_warning(content, tmp_path, caplog):
    (tmp_path / LINEAGE_FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING, "upcycle"):
        assert lineage(tmp_path) == []
    (record,) = caplog.records
    assert LINEAGE_FILE in record.getMessage()


def test_damage_stops_neither_a_training_nor_a_merge(made, moe, text, tmp_path, caplog):
    for name in (RECEIPT_FILE, VERIFICATION_FILE):
        (moe / name).write_bytes(b"[1]")
    (moe / LINEAGE_FILE).write_text(json.dumps([TRAINING]))
    with caplog.at_level(logging.WARNING, "upcycle"):
        out = run_train(moe, tmp_path / "out", text, max_steps=1)
    assert kinds(out) == ["training", "training"]
    assert len(caplog.records) == 2
    caplog.clear()
    adapter = Path(shutil.copytree(made["adapter"], tmp_path / "adapter"))
    (adapter / LINEAGE_FILE).write_bytes(b"")
    run_merge(adapter, BUILT_IN["demo:tiny"], tmp_path / "merged", dtype="f32")
    assert kinds(tmp_path / "merged") == ["merge"]
    assert len(caplog.records) == 1


def test_no_more_is_told_than_can_be(tmp_path):
    told = [TRAINING | {"steps": number} for number in range(MAX_ENTRIES + 5)]
    (tmp_path / LINEAGE_FILE).write_text(json.dumps(told))
    assert lineage(tmp_path) == told[5:]
    nested: Any = 1
    for _ in range(MAX_DEPTH - 3):  # within the list, the entry and its recipe
        nested = [nested]
    (tmp_path / LINEAGE_FILE).write_text(json.dumps([TRAINING | {"recipe": {"x": nested}}]))
    assert kinds(tmp_path) == ["training"]
