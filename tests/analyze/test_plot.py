"""`upcycle plot`: the arrays behind the pictures, the pictures themselves, and metrics that are damaged."""

import json
import logging
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upcycle.analyze.buckets import Buckets
from upcycle.analyze.history import CURVE_POINTS, LOAD_POINTS, find_metrics, read_history
from upcycle.analyze.plot import plot
from upcycle.errors import InputError, RequestError
from upcycle.requests.plot import Plot

OF_ALL = ["losses", "router-losses", "optimizer", "speed", "layers", "load", "load-over-steps"]
OF_DENSE = ["losses", "optimizer", "speed"]


def metrics(step: int, layers: int = 2, experts: int = 4, **changes: Any) -> dict[str, Any]:
    """A step whose figures are simple functions of its number; in the last layer the last expert is dead."""
    rows: list[dict[str, Any]] = []
    for layer in range(layers):
        load = [1 / experts] * experts if layer < layers - 1 else [1 / (experts - 1)] * (experts - 1) + [0.0]
        rows.append(
            {"layer": layer, "load": load, "max_over_mean": max(load) * experts, "entropy": 0.99 - step / 1e6,
             "dead": int(layer == layers - 1), "cold": int(layer == layers - 1), "balance_loss": 1.0}
        )  # fmt: skip
        if step % 10 == 0:
            rows[-1]["cosine"] = 1 - step / 1e6
    router = 1.0 + 1 / step if layers else None
    made: dict[str, Any] = {
        "step": step, "loss": 3 + 1 / step, "balance_loss": router, "importance_loss": router, "z_loss": router,
        "tokens": 100 * step, "tokens_per_second": 1000.0, "mfu": None,
        "lr": {"router": 2e-4, "experts": 1e-4, "rest": 1e-4}, "grad_norm": {"total": 1 + step % 2, "router": 0.1},
        "epoch": 0.0, "layers": rows, "unknown": {"more": [1]},
        **({"eval_loss": 3.5} if step % 10 == 0 else {}), **({"alerts": ["a jump"]} if step == 15 else {}), **changes,
    }  # fmt: skip
    return made


def write(path: Path, steps: Iterable[dict[str, Any]], tail: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(json.dumps(step).encode() + b"\n" for step in steps) + tail)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two trainings, `moe` and `dense`."""
    root = tmp_path_factory.mktemp("runs")
    write(root / "moe/metrics.jsonl", map(metrics, range(1, 41)))
    write(root / "dense/metrics.jsonl", (metrics(step, 0, lr={"rest": 1e-4}) for step in range(1, 31)))
    return root


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_buckets() -> None:
    """Five rows where four fit: pairs are joined, so that stretches of two, two and one are left."""
    buckets = Buckets(2, 4)
    for row in ([1, 5], [3, np.nan], [5, np.nan], [7, np.nan], [9, 6]):
        buckets.add(np.array(row, float))
    assert buckets.every == 2
    assert buckets.mean.tolist()[0:3:2] == [[2, 5], [9, 6]]  # 5 is the mean of 5 and nothing
    assert buckets.mean[1][0] == 6
    assert np.isnan(buckets.mean[1][1])
    assert (buckets.low[:, 0].tolist(), buckets.high[:, 0].tolist()) == ([1, 5, 9], [3, 7, 9])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 1000])
def test_buckets_lose_nothing(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    buckets = Buckets(1, 8)
    for value in values:
        buckets.add(np.array([value]))
    pieces = [values[at : at + buckets.every] for at in range(0, count, buckets.every)]
    assert len(pieces) <= 8
    assert count <= 8 or len(pieces) > 4
    assert buckets.mean[:, 0] == pytest.approx([piece.mean() for piece in pieces])
    assert buckets.low[:, 0].tolist() == [piece.min() for piece in pieces]
    assert buckets.high[:, 0].tolist() == [piece.max() for piece in pieces]


def test_what_a_file_says(runs: Path) -> None:
    run = read_history(runs / "moe/metrics.jsonl", "moe")
    assert (run.steps, run.every, run.layers) == (40, 1, (0, 1))
    assert run.curves["loss"].step.tolist() == list(range(1, 41))
    assert run.curves["loss"].mean.tolist() == [3 + 1 / step for step in range(1, 41)]
    assert run.curves["grad_norm.total"].mean.tolist() == [2, 1] * 20
    assert (run.curves["mfu"].known, run.curves["lr.experts"].known) == (False, True)
    assert (run.evaluations[0].tolist(), run.evaluations[1].tolist()) == ([10, 20, 30, 40], [3.5] * 4)
    assert run.alerts == (15,)
    assert run.layer_curves["dead"].shape == (40, 2)
    assert run.layer_curves["dead"][0].tolist() == [0, 1]
    assert np.isnan(run.layer_curves["cosine"][:, 0]).sum() == 36
    assert run.last_loads[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def ragged(step: int) -> dict[str, Any]:
    """A step of layers 1, 3 and 4 with 1, 2 and 8 experts, the last of them dead, and no cosines."""
    loads = {1: [1.0], 3: [0.25, 0.75], 4: [1 / 7] * 7 + [0.0]}
    rows = [
        {"layer": layer, "load": load, "max_over_mean": max(load) * len(load), "entropy": 0.9, "dead": 0, "cold": 0}
        for layer, load in loads.items()
    ]
    return {**metrics(step), "layers": rows}


def test_layers_may_differ_in_their_number_of_experts(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", map(ragged, range(1, 31)))
    run = read_history(path, "ragged")
    assert run.layers == (1, 3, 4)
    assert [load.shape for load in run.loads] == [(30, 1), (30, 2), (30, 8)]
    assert [load.tolist() for load in run.last_loads[:2]] == [pytest.approx([1.0]), pytest.approx([0.25, 0.75])]
    assert [path.stem for path in plot(Plot(metrics=str(path)))] == OF_ALL
    alike = write(tmp_path / "alike/metrics.jsonl", map(metrics, range(1, 31)))
    assert len(plot(Plot(metrics=str(path), also=(str(alike),)))) == len(OF_ALL) + 2


def test_a_long_run_is_thinned_out(tmp_path: Path) -> None:
    """30,000 steps: stretches of 32, each with its mean and range, and the last one as long as it is."""
    lines = (b'{"step": %d, "loss": %d, "layers": []}\n' % (step, step % 10) for step in range(30_000))
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    run = read_history(tmp_path / "metrics.jsonl", "long")
    assert (run.steps, run.every) == (30_000, 32)
    curve = run.curves["loss"]
    assert CURVE_POINTS / 2 < len(curve.mean) == 938 <= CURVE_POINTS
    assert (curve.low == 0).all()
    assert (curve.high == 9).all()
    assert curve.step[0] == pytest.approx(15.5)
    assert curve.step[-1] == pytest.approx((937 * 32 + 29_999) / 2)


def test_loads_of_a_long_run(tmp_path: Path) -> None:
    """The load moves from expert 0 to expert 1, and a stretch holds its mean."""
    rows = (
        {"step": step, "loss": 1.0, "layers": [{"layer": 3, "load": [1 - step / 2000, step / 2000]}]}
        for step in range(2000)
    )
    run = read_history(write(tmp_path / "metrics.jsonl", rows), "long")
    assert run.load_every == 16
    assert run.loads[0].shape == (125, 2)
    assert LOAD_POINTS / 2 < 125 <= LOAD_POINTS
    assert run.loads[0][:, 1] == pytest.approx((run.load_steps) / 2000)
    assert run.last_loads[0][1] == pytest.approx(np.mean([step / 2000 for step in range(1975, 2000)]))


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The pictures of the training, of each kind."""
    out = tmp_path_factory.mktemp("drawn")
    return {
        kind: plot(Plot(metrics=str(runs / "moe"), out=str(out / "new" / kind), format=kind)) for kind in ("png", "svg")
    }


def test_pictures_of_a_training(drawn: dict[str, list[Path]]) -> None:
    for kind, paths in drawn.items():
        assert [path.name for path in paths] == [f"{name}.{kind}" for name in OF_ALL]
        for path in paths:
            content = path.read_bytes()
            assert len(content) > 5000
            if kind == "svg":
                assert ET.fromstring(content).tag.endswith("svg")
                assert b"date>" not in content
            else:
                assert content.startswith(b"\x89PNG")
                assert b"tEXt" not in content


def test_the_same_metrics_give_the_same_bytes(runs: Path, drawn: dict[str, list[Path]], tmp_path: Path) -> None:
    """In another process, too, whose user has settings of their own; neither torch nor pyplot is loaded."""
    settings = tmp_path / "matplotlibrc"
    settings.write_text("lines.linewidth: 9\nfont.size: 30\n")
    program = (
        "import sys; from upcycle.analyze.plot import plot; from upcycle.requests.plot import Plot; "
        "plot(Plot(metrics=sys.argv[1], out=sys.argv[2], format='svg')); "
        "print({'torch', 'transformers', 'matplotlib.pyplot'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(runs / "moe"), str(tmp_path / "theirs")],
        check=True, capture_output=True, text=True,
        env={**os.environ, "MATPLOTLIBRC": str(settings), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("set()\n", "")
    for path in drawn["svg"]:
        assert (tmp_path / "theirs" / path.name).read_bytes() == path.read_bytes(), path.name


def test_pictures_of_points_are_the_same_bytes_too(runs: Path, tmp_path: Path) -> None:
    first, second = (plot(Plot(metrics=str(runs / "dense"), out=str(tmp_path / name))) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_pictures_of_a_dense_model(runs: Path, tmp_path: Path) -> None:
    paths = plot(Plot(metrics=str(runs / "dense/metrics.jsonl"), out=str(tmp_path)))
    assert [path.stem for path in paths] == OF_DENSE


def test_pictures_of_two_runs(runs: Path, tmp_path: Path) -> None:
    request = Plot(metrics=str(runs / "dense"), also=(str(runs / "moe"),), out=str(tmp_path), format="svg")
    names = [path.stem for path in plot(request)]
    assert names == ["losses", "router-losses", "optimizer", "speed", "layers", "load-2", "load-over-steps-2"]
    content = (tmp_path / "losses.svg").read_text()
    for words in ("dense", "moe", "dense, held out", "moe, held out"):
        assert f"<!-- {words} -->" in content


def test_a_run_is_named_by_what_tells_it_apart(tmp_path: Path) -> None:
    for name in ("a/moe", "b/moe"):
        write(tmp_path / name / "metrics.jsonl", [metrics(1, 0), metrics(2, 0)])
    plot(Plot(metrics=str(tmp_path / "a/moe"), also=(str(tmp_path / "b/moe"),), out=str(tmp_path), format="svg"))
    content = (tmp_path / "losses.svg").read_text()
    assert "<!-- a/moe -->" in content
    assert "<!-- b/moe -->" in content


def test_without_out_pictures_are_beside_the_metrics(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [metrics(1, 0), metrics(2, 0)])
    assert plot(Plot(metrics=str(tmp_path)))[0] == tmp_path / "plots/losses.png"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", [metrics(1, 1)])
    assert len(plot(Plot(metrics=str(tmp_path), out=str(tmp_path)))) == len(OF_ALL)


def test_what_was_never_measured_is_no_reason_to_fail(tmp_path: Path) -> None:
    """Layers with different numbers of experts, losses that are null, no gradient norms, one figure missing."""
    layers = [{"layer": 4, "load": [0.5, 0.5]}, {"layer": 9, "load": [0.2] * 5}]
    write(tmp_path / "metrics.jsonl", ({"step": step, "loss": None, "layers": layers} for step in range(1, 9)))
    assert [path.stem for path in plot(Plot(metrics=str(tmp_path), out=str(tmp_path)))] == [
        name for name in OF_ALL if name != "router-losses"
    ]


def test_many_layers_and_experts(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", (metrics(step, layers=5, experts=70) for step in range(1, 4)))
    assert len(plot(Plot(metrics=str(tmp_path), out=str(tmp_path)))) == len(OF_ALL)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b'{"step": 4, "lo', b'{"step": 4, "loss": 1.0, "text": "\xc3', b"\x00\x00\x00"])
def test_a_last_line_that_was_cut_off(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "metrics.jsonl", map(metrics, range(1, 4)), tail)
    with caplog.at_level(logging.WARNING, "upcycle"):
        assert read_history(path, "run").steps == 3
    assert caplog.messages == [f"{path}:4: the line was cut off and is left out"]


def test_a_last_line_without_its_end_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "metrics.jsonl", map(metrics, range(1, 4)), json.dumps(metrics(4)).encode())
    assert (read_history(path, "run").steps, caplog.messages) == (4, [])


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any] | bytes, str]] = {
    "cut in the middle": (b'{"step": 2, "lo\n', "not a step of a training (Invalid control character"),
    "an empty line": (b"\n", "not a step of a training (Expecting value"),
    "not UTF-8": (b'{"step": 2, "text": "\xff"}\n', "byte 21 of the line is not UTF-8"),
    "NaN": (b'{"step": 2, "loss": NaN, "layers": []}\n', "NaN is not a JSON number"),
    "deep": (b"[" * 100_000 + b"\n", "not a step of a training ("),
    "a list": (b"[]\n", "the line is of the wrong kind; found list, expected an object"),
    "no step": (lambda line: {**line, "step": None}, "step is out of order; found None, expected one after 1"),
    "a step again": (lambda line: {**line, "step": 1}, "step is out of order; found 1, expected one after 1"),
    "a loss in words": (lambda line: {**line, "loss": "low"}, "loss is of the wrong kind; found 'low', expected a"),
    "a loss that is true": (lambda line: {**line, "loss": True}, "loss is of the wrong kind; found True"),
    "infinity": (b'{"step": 2, "loss": 1e999}\n', "the layers change"),
    "rates as a list": (lambda line: {**line, "lr": [1]}, "lr is of the wrong kind; found list, expected an object"),
    "layers as a number": (lambda line: {**line, "layers": 3}, "layers is of the wrong kind; found int"),
    "fewer layers": (lambda line: {**line, "layers": line["layers"][:1]}, "the layers change; found 1 layers with 4"),
    "more experts": (
        lambda line: {**line, "layers": [{**layer, "load": [0.2] * 5} for layer in line["layers"]]},
        "the layers change; found 2 layers with 10 experts, from layer 0, expected 2 layers with 8 experts",
    ),
    "no load": (lambda line: {**line, "layers": [{"layer": 0}] * 2}, "load of layer 0 is wrong; found None"),
    "a load in words": (lambda line: {**line, "layers": [{"layer": 0, "load": ["1"]}]}, "load of layer 0 is wrong"),
    "a load of lists": (lambda line: {**line, "layers": [{"layer": 0, "load": [[1], []]}]}, "load of layer 0 is wrong"),
    "counts for a load": (lambda line: {**line, "layers": [{"layer": 0, "load": [9, 7]}]}, "load of layer 0 is wrong"),
    "no number of a layer": (lambda line: {**line, "layers": [{"load": [1.0]}]}, "layer is of the wrong kind"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_other_damage_is_named_with_its_line(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    second = change if isinstance(change, bytes) else json.dumps(change(metrics(2))).encode() + b"\n"
    path = write(tmp_path / "metrics.jsonl", [metrics(1)], second + json.dumps(metrics(3)).encode() + b"\n")
    with pytest.raises(InputError) as raised:
        plot(Plot(metrics=str(path), out=str(tmp_path / "out")))
    assert raised.value.where == f"{path}:2"
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_infinity_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1e999}\n')
    with pytest.raises(InputError, match="loss is of the wrong kind; found inf, expected a finite number or null"):
        read_history(tmp_path / "metrics.jsonl", "run")


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "lo'], ids=["empty", "all cut off"])
def test_a_file_without_steps(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="holds no steps"):
        read_history(tmp_path / "metrics.jsonl", "run")


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    for given in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match=r"no such file; expected a metrics\.jsonl, or a directory that holds one"):
            find_metrics(str(given))


def test_an_output_that_cannot_be(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made .*--out"):
        plot(Plot(metrics=str(runs / "dense"), out=str(tmp_path / "file")))


def test_more_runs_than_colours() -> None:
    with pytest.raises(RequestError, match="found 7 further runs, expected at most 6"):
        Plot(metrics="a", also=("b",) * 7)
