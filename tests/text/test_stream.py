"""Streams of blocks: their order, their mixture, what is held out, and going on from any place as if nothing was."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from transformers import AutoTokenizer

from tests.hub import server
from tests.hub.client import Client
from tests.hub.server import Hub
from upcycle.errors import CheckpointError, InputError
from upcycle.text import documents, files, sources
from upcycle.text.draw import SHUFFLE, draw
from upcycle.text.encode import Encoder
from upcycle.text.pack import Block
from upcycle.text.state import StreamState
from upcycle.text.stream import BlockStream, held_out_blocks

DATA = Path(__file__).parents[2] / "upcycle/data"
WORDS = (DATA / "sample.txt").read_text().split()
T = 16


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = AutoTokenizer.from_pretrained(DATA / "tiny")
    made.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    return made


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few kilobytes are many pieces and many batches."""
    monkeypatch.setattr(files, "PIECE", 40)
    monkeypatch.setattr(documents, "BATCH_RECORDS", 7)
    monkeypatch.setattr(files, "ROWS", 5)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def texts(count: int) -> list[dict[str, Any]]:
    """Rows of 0 to 40 words, no two alike."""
    return [{"text": " ".join([f"{n}:", *WORDS[n * 7 : n * 7 + n * 13 % 41]])} for n in range(count)]


def talks(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": f"Yes, {n}."}]}
        for n, row in enumerate(texts(count))
    ]


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": row["text"], "completion": f" and {n}"} for n, row in enumerate(texts(count))]


def make(kind: str, home: Path) -> list[str]:
    """Write sources of a kind; return their names."""
    if kind == "mixture":
        return [name for one in ("txt", "jsonl", "chat.parquet") for name in make(one, home)]
    path = home / f"a.{kind}"
    if kind == "directory":
        path.mkdir()
        for one in ("txt", "jsonl.gz", "parquet"):
            make(one, path)
    elif kind.startswith("txt"):
        data = "\n".join(" ".join(WORDS[n : n + 9]) for n in range(0, 700, 9)).encode()
        path.write_bytes(gzip.compress(data) if kind == "txt.gz" else data)
    else:
        write_rows(path, {"chat": talks, "pair": pairs}.get(kind.partition(".")[0], texts)(25))
    return [str(path)]


SINGLE = ["txt", "txt.gz", "jsonl", "jsonl.gz", "parquet", "chat.jsonl", "chat.parquet", "pair.jsonl", "directory"]


def flat(block: Block) -> tuple[bytes, bytes, bytes]:
    return block.ids_T.tobytes(), block.target_T.tobytes(), block.position_T.tobytes()


def take(stream: BlockStream, count: int) -> list[tuple[bytes, bytes, bytes]]:
    return [flat(stream.next()) for _ in range(count)]


def epochs(stream: BlockStream, count: int = 1) -> list[list[tuple[bytes, bytes, bytes]]]:
    """The blocks of the first epochs of a stream with one source."""
    blocks: list[list[tuple[bytes, bytes, bytes]]] = [[]]
    while len(blocks) <= count:
        block = flat(stream.next())
        if stream.epochs[0] == len(blocks):
            blocks.append([])
        blocks[-1].append(block)
    return blocks[:count]


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [0, 10])
@pytest.mark.parametrize("kind", [*SINGLE, "mixture"])
def test_going_on_is_exact(kind: str, shuffle: int, tokenizer: Any, tmp_path: Path) -> None:
    """From the files that a checkpoint has, at many places, one of them in the second epoch."""
    names = make(kind, tmp_path)

    def begin() -> BlockStream:
        return BlockStream(names, Encoder(tokenizer), seq_len=T, seed=3, shuffle=shuffle, held_out=0.1)

    stream = begin()
    saved: dict[int, StreamState] = {}
    blocks: list[tuple[bytes, bytes, bytes]] = []
    while max(stream.epochs) < 3:
        saved[len(blocks)] = stream.state()
        blocks += take(stream, 1)
    assert len(blocks) > 60
    for number in sorted({0, 1, 7, len(blocks) // 3, len(blocks) // 2, len(blocks) * 2 // 3, len(blocks) - 1}):
        saved[number].to_files(tmp_path)
        again = begin()
        again.restore(StreamState.from_files(tmp_path))
        assert take(again, len(blocks) - number) == blocks[number:]
        assert again.epochs == stream.epochs


def test_going_on_in_the_same_process(tokenizer: Any, tmp_path: Path) -> None:
    stream = BlockStream(make("jsonl", tmp_path), Encoder(tokenizer), seq_len=T, seed=3, shuffle=10)
    take(stream, 5)
    state = stream.state()
    blocks = take(stream, 100)
    for _ in range(2):
        stream.restore(state)
        assert take(stream, 100) == blocks


def test_a_state_refers_to_blocks_and_copies_none(tokenizer: Any, tmp_path: Path) -> None:
    stream = BlockStream(make("jsonl", tmp_path), Encoder(tokenizer), seq_len=T, seed=3, shuffle=20)
    stream.next()
    one, two = stream.state(), stream.state()
    assert one.sources[0].buffer[0] is two.sources[0].buffer[0]


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_what_lies_before_the_place_is_not_read(
    kind: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage it: of a file that can be sought, nobody notices, but for the start that is remembered."""
    monkeypatch.setattr(sources, "EDGE", 0)
    (name,) = make(kind, tmp_path)
    stream = BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3, shuffle=0)
    take(stream, 25)
    state = stream.state()
    blocks = take(stream, 10)
    with Path(name).open("r+b") as file:
        file.write(b"\xff" * 100)
    again = BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3, shuffle=0)
    again.restore(state)
    assert take(again, 10) == blocks


def test_what_waits_is_kept_as_it_is(tokenizer: Any, tmp_path: Path) -> None:
    """At the end of an epoch several documents wait, pieces of one among them."""
    (tmp_path / "a.txt").write_text("\n".join(WORDS[:40]))
    stream = BlockStream([str(tmp_path / "a.txt")], Encoder(tokenizer), seq_len=100, seed=3)
    stream.next()
    state = stream.state()
    state.to_files(tmp_path)
    before, after = (each.sources[0].waiting for each in (state, StreamState.from_files(tmp_path)))
    assert [item.continues for item in before] == [item.continues for item in after] == [True] * len(before)
    assert len(before) > 1
    for one, two in zip(before, after, strict=True):
        assert one.ids_T.tolist() == two.ids_T.tolist()
        assert one.target_T.tolist() == two.target_T.tolist()


def test_data_that_changed(tokenizer: Any, tmp_path: Path) -> None:
    (name,) = make("directory", tmp_path)
    state = BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3).state()
    with (Path(name) / "a.txt").open("a") as file:
        file.write("more")
    message = r"the data changed since the checkpoint; found a\.txt \(\d+ bytes\), expected a\.txt \(\d+ bytes\); put"
    with pytest.raises(InputError, match=message):
        BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3).restore(state)
    (Path(name) / "a.txt").unlink()
    with pytest.raises(InputError, match=r"found nothing, expected a\.txt"):
        BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3).restore(state)


@pytest.mark.parametrize("field", ["seed", "seq_len", "shuffle", "held_out", "weights", "sources"])
def test_a_place_in_another_stream(field: str, tokenizer: Any, tmp_path: Path) -> None:
    (name,) = make("jsonl", tmp_path)
    names = [name, str(tmp_path / "second.jsonl")]
    write_rows(tmp_path / "second.jsonl", [{"text": "other words"}] * 40)
    settings: dict[str, Any] = {"seq_len": T, "seed": 3, "weights": (1, 2)}
    other = {"seed": 4, "seq_len": 8, "shuffle": 3, "held_out": 0.5, "weights": (2, 1)}
    state = BlockStream(names, Encoder(tokenizer), **settings).state()
    if field == "sources":
        stream = BlockStream(names[:1], Encoder(tokenizer), **settings | {"weights": (1,)})
    else:
        stream = BlockStream(names, Encoder(tokenizer), **settings | {field: other[field]})
    with pytest.raises(InputError, match=f"the checkpoint is of other data: {field}"):
        stream.restore(state)


def test_a_damaged_checkpoint(tokenizer: Any, tmp_path: Path) -> None:
    stream = BlockStream(make("jsonl", tmp_path), Encoder(tokenizer), seq_len=T, seed=3)
    take(stream, 3)
    for name, data in [("data.json", b"{}"), ("data.json", b"{"), ("data.safetensors", b"\0" * 20)]:
        stream.state().to_files(tmp_path)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match="the place in the data cannot be read"):
            StreamState.from_files(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(CheckpointError, match="the place in the data cannot be read"):
            StreamState.from_files(tmp_path)


# -- order ------------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_block_once(tokenizer: Any, tmp_path: Path) -> None:
    names = make("jsonl", tmp_path)
    plain = epochs(BlockStream(names, Encoder(tokenizer), seq_len=T, seed=3, shuffle=0))[0]
    for shuffle in (2, 10, 1000):
        shuffled = epochs(BlockStream(names, Encoder(tokenizer), seq_len=T, seed=3, shuffle=shuffle))[0]
        assert shuffled != plain
        assert Counter(shuffled) == Counter(plain)


def test_in_order_the_blocks_are_the_text(tokenizer: Any, tmp_path: Path) -> None:
    """Also over the end of an epoch: the tokens that were left over open the next one."""
    names = make("jsonl", tmp_path)
    ids = [id for row in texts(25) for id in [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]]
    stream = BlockStream(names, Encoder(tokenizer), seq_len=T, seed=3, shuffle=0)
    count = 2 * len(ids) // T
    seen = np.concatenate([stream.next().ids_T for _ in range(count)]).tolist()
    assert seen == (ids * 2)[: count * T]


def test_every_epoch_has_an_order_of_its_own(tokenizer: Any, tmp_path: Path) -> None:
    """Every document fills a block, so that all epochs have the same blocks."""
    rows = [{"text": tokenizer.decode([300 + number]) * (T - 1)} for number in range(40)]
    write_rows(tmp_path / "a.jsonl", [row for row in rows if len(tokenizer(row["text"])["input_ids"]) == T - 1])
    first, second = epochs(BlockStream([str(tmp_path)], Encoder(tokenizer), seq_len=T, seed=3, shuffle=1000), 2)
    assert len(first) > 20
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_order_is_the_seeds(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = make("mixture", tmp_path)

    def blocks(seed: int) -> list[tuple[bytes, bytes, bytes]]:
        return take(BlockStream(names, Encoder(tokenizer), seq_len=T, seed=seed, shuffle=5), 60)

    before = blocks(3)
    assert blocks(4) != before
    np.random.default_rng(0).random()  # nobody else's draws count ...
    monkeypatch.setattr(documents, "BATCH_RECORDS", 3)  # ... nor how many records are tokenised together
    assert blocks(3) == before


def test_draws_stay_what_they_are() -> None:
    """They decide the order of data in runs that are gone on with under another numpy."""
    assert [draw(0, SHUFFLE, 0, 0), draw(3, SHUFFLE, 1, 7)] == [15023647771317767168, 3809961657608318606]
    assert len({draw(seed, purpose, 1, 5) for seed in range(9) for purpose in range(9)}) == 81
    assert len({draw(1, 1, stream, number) for stream in range(9) for number in range(9)}) == 81


# -- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "shares"), [((), (1 / 3, 1 / 3, 1 / 3)), ((6, 3, 1), (0.6, 0.3, 0.1))])
def test_weights_are_shares_of_tokens(
    weights: tuple[float, ...], shares: tuple[float, ...], tokenizer: Any, tmp_path: Path
) -> None:
    """Whatever the lengths: the sources have 10, 20 and 30 rows, each written with a letter of its own."""
    names = []
    for number, letter in enumerate("xyz"):
        write_rows(tmp_path / f"{letter}.jsonl", [{"text": letter * 40}] * (10 + 10 * number))
        names.append(str(tmp_path / f"{letter}.jsonl"))
    stream = BlockStream(names, Encoder(tokenizer), seq_len=T, seed=0, weights=weights, shuffle=4)
    letters = Counter(tokenizer.decode(stream.next().ids_T).replace("</s>", "")[0] for _ in range(2000))
    for letter, share in zip("xyz", shares, strict=True):  # 4 standard deviations are 0.044
        assert letters[letter] / 2000 == pytest.approx(share, abs=0.044)
    assert stream.epochs[0] > 0


def test_a_block_is_of_one_source(tokenizer: Any, tmp_path: Path) -> None:
    for letter in "xy":
        write_rows(tmp_path / f"{letter}.jsonl", [{"text": letter * 7}] * 50)
    stream = BlockStream([str(tmp_path / f"{letter}.jsonl") for letter in "xy"], Encoder(tokenizer), seq_len=T, seed=0)
    for _ in range(50):
        assert len(set(tokenizer.decode(stream.next().ids_T).replace("</s>", ""))) == 1


# -- held out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_a_document_is_on_one_side(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    names = make(kind, tmp_path)

    def documents_of(blocks: list[tuple[bytes, bytes, bytes]]) -> set[str]:
        ids = np.frombuffer(b"".join(block[0] for block in blocks), np.int32)
        return {text for text in tokenizer.decode(ids).split("</s>") if text}

    every = documents_of(epochs(BlockStream(names, Encoder(tokenizer), seq_len=2, seed=3, shuffle=0))[0])
    trained = documents_of(
        epochs(BlockStream(names, Encoder(tokenizer), seq_len=2, seed=3, shuffle=0, held_out=0.3))[0]
    )
    held = held_out_blocks(names, Encoder(tokenizer), seq_len=2, seed=3, fraction=0.3, limit=10**6)
    measured = documents_of([flat(block) for block in held])
    assert trained
    assert measured
    assert not trained & measured
    assert len(trained | measured) in (len(every), len(every) - 1)  # the last document may be cut by a block


def test_pieces_of_a_text_are_on_one_side(tokenizer: Any, tmp_path: Path) -> None:
    """No word is on both sides, and after a hole the text begins anew: nothing is asked for across it."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"{number:05d}" for number in range(3000)))
    stream = BlockStream([str(path)], Encoder(tokenizer), seq_len=2, seed=3, shuffle=0, held_out=0.3)
    one = tokenizer.decode(np.frombuffer(b"".join(block[0] for block in epochs(stream)[0]), np.int32))
    held = held_out_blocks([str(path)], Encoder(tokenizer), seq_len=2, seed=3, fraction=0.3, limit=10**6)
    two = tokenizer.decode(np.concatenate([block.ids_T for block in held]))
    trained, measured = (set(text.replace("</s>", "").split()) for text in (one, two))
    assert not trained & measured
    assert 0.15 < len(measured) / 3000 < 0.45
    assert len(trained | measured) == 3000

    stream = BlockStream([str(path)], Encoder(tokenizer), seq_len=8000, seed=3, shuffle=0, held_out=0.3)
    block = stream.next()
    starts = np.flatnonzero(block.position_T == 0)
    assert len(starts) > 5
    assert not block.target_T[starts].any()
    assert block.target_T.sum() == 8000 - len(starts)
    for start in starts[1:]:
        before = tokenizer.decode(block.ids_T[:start]).split()[-1].replace("</s>", "")
        after = tokenizer.decode(block.ids_T[start : start + 30]).split()[0]
        assert int(after) - int(before) > 1


def test_all_sources_are_measured_in_turn(tokenizer: Any, tmp_path: Path) -> None:
    for letter, count in (("x", 2), ("y", 30)):
        write_rows(tmp_path / f"{letter}.jsonl", [{"text": letter * 40}] * count)
    names = [str(tmp_path / f"{letter}.jsonl") for letter in "xy"]
    lone = [
        len(held_out_blocks([name], Encoder(tokenizer), seq_len=T, seed=0, fraction=None, limit=16)) for name in names
    ]
    blocks = held_out_blocks(names, Encoder(tokenizer), seq_len=T, seed=0, fraction=None, limit=16)
    letters = "".join(tokenizer.decode(block.ids_T).replace("</s>", "")[0] for block in blocks)
    assert lone[0] < 8
    assert letters == ("xy" * lone[0] + "y" * 16)[:16]


def test_the_last_block_is_padded(tokenizer: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "In the beginning"}])
    ids = [*tokenizer("In the beginning")["input_ids"], tokenizer.eos_token_id]
    (block,) = held_out_blocks([str(tmp_path)], Encoder(tokenizer), seq_len=T, seed=0, fraction=None, limit=9)
    count, eos = len(ids), tokenizer.eos_token_id
    assert block.ids_T.tolist() == ids + [eos] * (T - count)
    assert block.target_T.tolist() == [False] + [True] * (count - 1) + [False] * (T - count)
    assert block.position_T.tolist() == [*range(count), *range(T - count)]


def test_nothing_is_held_out(tokenizer: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(InputError, match="no text to measure the loss on; a larger --eval-split"):
        held_out_blocks([str(tmp_path)], Encoder(tokenizer), seq_len=T, seed=0, fraction=0.0001, limit=9)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_too_short(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("In the beginning")
    count = len(tokenizer("In the beginning")["input_ids"]) + 1
    stream = BlockStream([str(tmp_path)], Encoder(tokenizer), seq_len=count + 1, seed=0)
    message = (
        f"{tmp_path}: the text is too short; found {count} tokens, expected at least one sequence of {count + 1}; a"
    )
    with pytest.raises(InputError, match=message):
        stream.next()
    stream = BlockStream([str(tmp_path)], Encoder(tokenizer), seq_len=count, seed=0)
    assert take(stream, 1) == take(stream, 1)


def test_files_are_missed_before_any_is_read(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(InputError, match=r"b\.txt: no such file"):
        BlockStream([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], Encoder(tokenizer), seq_len=T, seed=0)


def test_an_error_names_the_line(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, texts(25))
    with path.open("a") as file:
        file.write("what is this\n")
    stream = BlockStream([str(path)], Encoder(tokenizer), seq_len=T, seed=0, shuffle=1000)
    with pytest.raises(InputError, match=r"a\.jsonl:26: not valid JSON"):
        stream.next()


# -- the Hub ----------------------------------------------------------------------------------------------------------

STREAM = """
from pathlib import Path
from transformers import AutoTokenizer
from upcycle.errors import InputError
from upcycle.text.encode import Encoder
from upcycle.text.stream import BlockStream
from upcycle.text.state import StreamState

def begin(name="org/books"):
    return BlockStream([name], Encoder(AutoTokenizer.from_pretrained({tiny!r})), seq_len=16, seed=3, shuffle=10)
"""

GO_ON = """
stream = begin()
saved, blocks = {}, []
while stream.epochs[0] < 2:
    saved[len(blocks)] = stream.state()
    blocks.append(stream.next().ids_T.tolist())
for number in (0, 1, len(blocks) // 2, len(blocks) * 2 // 3):
    saved[number].to_files(Path())
    again = begin()
    again.restore(StreamState.from_files(Path()))
    assert [again.next().ids_T.tolist() for _ in blocks[number:]] == blocks[number:], number
print(blocks)
"""

REFUSE = """
for name in ("org/books:other", "org/books::nope", "org/none", "org/wrong"):
    try:
        begin(name).next()
    except InputError as error:
        print(error)
"""


@pytest.fixture
def data_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub with its routes for models answering for data sets too."""
    more = [
        (route.replace("/api/models/", "/api/datasets/").replace("HEAD) /", "HEAD) /datasets/"), answer)
        for route, answer in server.READS
    ]
    monkeypatch.setattr(server, "READS", [*more, *server.READS])
    return hub


def test_a_data_set_on_the_hub(data_hub: Hub, client: Client, tokenizer: Any, tmp_path: Path) -> None:
    """Streamed by the real client; the same blocks as from a local file, and going on is exact."""
    write_rows(tmp_path / "train.jsonl", texts(25))
    rows = (tmp_path / "train.jsonl").read_bytes()
    data_hub.repo("org/books", {"train.jsonl": rows})
    data_hub.repo("org/wrong", {"train.jsonl": b'{"body": 1}\n'})
    out = client.python(STREAM.format(tiny=str(DATA / "tiny")) + GO_ON + REFUSE)
    blocks, *messages = out.splitlines()
    local = BlockStream([str(tmp_path / "train.jsonl")], Encoder(tokenizer), seq_len=T, seed=3, shuffle=10)
    assert json.loads(blocks) == [local.next().ids_T.tolist() for _ in json.loads(blocks)]
    assert [message.partition(";")[0] for message in messages] == [
        "org/books:other: the data set cannot be read (BuilderConfig 'other' not found. Available: ['default'])",
        "org/books::nope: the data set cannot be read (Bad split: nope. Available splits: ['train'])",
        "org/none: the data set cannot be read (Dataset 'org/none' doesn't exist on the Hub or cannot be accessed.)",
        "org/wrong:row 1: no text in it",
    ]
    saved = StreamState.from_files(client.home).sources[0]
    assert saved.files == [["org/books", f"version {data_hub.repos['org/books'].refs['main']}"]]


def test_the_hub_is_not_asked_offline(tokenizer: Any) -> None:
    with pytest.raises(
        InputError, match=r"^org/books: the data set cannot be read \(.*\(OfflineModeIsEnabled\)\); it was"
    ):
        BlockStream(["org/books"], Encoder(tokenizer), seq_len=T, seed=0)


def test_changed_data_of_the_same_size_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    (name,) = make("jsonl", tmp_path)
    state = BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3).state()
    text = Path(name).read_text()
    Path(name).write_text(text.replace("e", "x", 1))
    with pytest.raises(InputError, match="the data changed since the checkpoint"):
        BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3).restore(state)


def same_file(way: str, path: Path) -> str:
    """Another name of a file."""
    other = path.with_name("other.jsonl")
    if way == "name":
        return str(path)
    if way == "directory":
        return str(path.parent)
    if way == "copy":
        shutil.copy(path, other)
    else:
        (other.hardlink_to if way == "hard link" else other.symlink_to)(path)
    return str(other)


@pytest.mark.parametrize("way", ["name", "hard link", "symbolic link", "copy", "directory"])
def test_a_file_that_is_in_the_data_twice(
    way: str, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told; where a part is held out, that part would be trained on, which is refused; so is measuring on it."""
    (name,) = make("jsonl", tmp_path)
    other = same_file(way, Path(name))
    twice = BlockStream([name, other], Encoder(tokenizer), seq_len=T, seed=3)
    assert "both are trained on, its text twice as often as other" in caplog.text
    assert twice.next().ids_T.shape == (T,)
    with pytest.raises(InputError, match="is in the data twice, so that text held out of one is trained on"):
        BlockStream([name, other], Encoder(tokenizer), seq_len=T, seed=3, held_out=0.1)
    stream = BlockStream([name], Encoder(tokenizer), seq_len=T, seed=3)
    measure: dict[str, Any] = {"seq_len": T, "seed": 3, "fraction": None, "limit": 4, "trained": stream}
    with pytest.raises(InputError, match=r"is trained on too.* as .*a\.jsonl in --data; take it out of --data"):
        held_out_blocks([other], Encoder(tokenizer), **measure)


def test_files_of_one_size_are_other_files(tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Equal at both ends, and not in the middle."""
    names = [str(tmp_path / f"{letter}.txt") for letter in "xy"]
    for name in names:
        Path(name).write_text("a " * 50_000 + Path(name).stem + " a" * 50_000)
    stream = BlockStream(names[:1], Encoder(tokenizer), seq_len=T, seed=3, held_out=0.5)
    BlockStream(names, Encoder(tokenizer), seq_len=T, seed=3, held_out=0.5)
    assert held_out_blocks(names[1:], Encoder(tokenizer), seq_len=T, seed=3, fraction=None, limit=4, trained=stream)
    assert caplog.text == ""


def test_data_without_a_token_in_the_loss_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """Else a training would go through its steps and learn nothing."""
    rows = [{"messages": [{"role": "user", "content": f"hello there friend {n}"},
                          {"role": "assistant", "content": "hi", "train": False}]} for n in range(40)]  # fmt: skip
    write_rows(tmp_path / "skipped.jsonl", rows)
    stream = BlockStream([str(tmp_path / "skipped.jsonl")], Encoder(tokenizer), seq_len=T, seed=0)
    with pytest.raises(InputError, match=r"no token of the text is in the loss; found [0-9]+ sequences"):
        stream.next()
    write_rows(tmp_path / "skipped.jsonl", [*rows, *talks(3)])
    stream = BlockStream([str(tmp_path / "skipped.jsonl")], Encoder(tokenizer), seq_len=T, seed=0)
    assert any(stream.next().target_T.any() for _ in range(200))
