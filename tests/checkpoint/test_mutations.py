"""Thousands of damaged files: whatever safetensors refuses is refused, and what is accepted means the same to both.

Hypothesis draws the damage, the same in every run; the fast tests take a seventh of it. `safetensors` is asked for
everything that it does with a file.
"""

import json
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from tests.conftest import raw_safetensors
from tests.faults import every
from tests.models import SMALL, save_header
from upcycle.checkpoint.header import MAX_METADATA, Header, build_header, read_header, tensor_bytes
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.convert.convert import draft
from upcycle.errors import CheckpointError, InputError
from upcycle.requests import Plan

MANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NUMPY = {"BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "I64", "U64", "F64", "C64"}
"""Dtypes that NumPy has without another package."""
MIB = 2**20
SCREEN = 80 * 24 - 20  # characters


# -- what is asked of a file ------------------------------------------------------------------------------------------


def theirs(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """Return name -> (dtype, shape, bytes) as safetensors reads them in every way it has; None when it refuses."""
    try:
        found = {name: (x["dtype"], tuple(x["shape"]), bytes(x["data"])) for name, x in deserialize(path.read_bytes())}
        for framework in ("pt", "np"):
            _load(path, framework, found)
    except (SafetensorError, ValueError, RuntimeError, OverflowError, UnicodeError):
        return None
    return found


def _load(path: Path, framework: str, found: dict[str, Any]) -> None:
    with safe_open(path, framework) as file:
        assert set(file.keys()) == set(found)
        for name, (dtype, shape, data) in found.items():
            if (framework == "np" and dtype not in NUMPY) or (framework == "pt" and not _is_torch(dtype, shape)):
                continue
            value = file.get_tensor(name)
            assert tuple(value.shape) == shape or dtype == "F4"
            assert value.nbytes == len(data)
            if framework == "np":
                assert value.tobytes() == data
            elif value.numel():
                assert value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() == data


def _is_torch(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether torch can hold it; it has no six bits, and two values of four bits in an element."""
    return not dtype.startswith("F6") and (dtype != "F4" or bool(shape and shape[-1] % 2 == 0))


def measured(path: Path) -> tuple[Header | None, int]:
    """Return the header, None when it is refused, and the most memory that reading it took."""
    tracemalloc.start()
    try:
        return read_header(path), tracemalloc.get_traced_memory()[1]
    except CheckpointError as error:
        peak = tracemalloc.get_traced_memory()[1]
        message = str(error)
    finally:
        tracemalloc.stop()
    assert message.isprintable()
    assert len(message) < SCREEN
    return None, peak


def ours(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """As `theirs`, by `read_header`, which must not need more memory than four headers and a megabyte."""
    header, peak = measured(path)
    assert peak < 4 * data_start(path.read_bytes()) + MIB
    if header is None:
        return None
    data = path.read_bytes()
    return {x.name: (x.dtype, x.shape, data[x.offset : x.offset + x.nbytes]) for x in header.tensors.values()}


def judge(path: Path, outcomes: Counter[str]) -> None:
    """Hold both readings against each other and count what came of it."""
    mine = ours(path)
    if mine is not None:
        assert theirs(path) == mine
    outcomes["accepted" if mine is not None else "refused"] += 1


def neither_is_rare(outcomes: Counter[str], least: int) -> bool:
    return outcomes.total() >= least and min(outcomes["accepted"], outcomes["refused"]) > outcomes.total() / 10


# -- damaged bytes ----------------------------------------------------------------------------------------------------

SOUND: tuple[bytes, ...] = tuple(
    build_header(tensors, metadata=metadata) + bytes(i % 251 for i in range(sum(tensor_bytes(*x[1:]) for x in tensors)))
    for tensors, metadata in (
        ([("a", "F32", (2, 3))], {"format": "pt"}),
        ([("model.norm.weight", "BF16", (8,)), ("b", "I64", ()), ("c", "U8", (0, 3))], {}),
        ([("x", "F16", (4,)), ("y", "BOOL", (2, 2)), ("z", "F8_E4M3", (3, 1, 2)), ("w", "F64", (1,))], None),
        ([("größe", "I32", (2,)), ("e", "F4", (4,)), ("f", "F6_E2M3", (4,)), ("g", "C64", (1,))], {"k": 'ä "\\'}),
        ([], {"only": "metadata"}),
        ([("model.embed_tokens.weight", "BF16", (500, 2))], {"format": "pt"}),
    )
)
HOSTILE_BYTES = st.sampled_from(
    [b"\0", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"0", b"-", b"\xff", b"9"]
)


def data_start(data: bytes) -> int:
    return min(8 + int.from_bytes(data[:8], "little"), len(data))


def length_word(data: bytes, change: int) -> bytes:
    return struct.pack("<Q", (data_start(data) - 8 + change) % 2**64) + data[8:]


def behind_the_header(data: bytes, place: int, junk: bytes) -> bytes:
    at = data_start(data) + place % (len(data) - data_start(data) or 1)
    return data[:at] + junk[: len(data) - at] + data[at + 1 :]


def spaced(data: bytes, count: int) -> bytes:
    start = data_start(data)
    return struct.pack("<Q", start - 8 + count) + data[8:start] + b" " * count + data[start:]


DAMAGE: dict[str, Callable[[bytes, int, int, bytes], bytes]] = {
    "flip a bit": lambda data, at, n, _: data[:at] + bytes(b ^ 1 << n % 8 for b in data[at : at + 1]) + data[at + 1 :],
    "set a byte": lambda data, at, _, junk: data[:at] + junk + data[at + 1 :],
    "cut": lambda data, at, _, __: data[:at],
    "insert": lambda data, at, n, junk: data[:at] + junk * (n % 9) + data[at:],
    "remove": lambda data, at, n, _: data[:at] + data[at + n :],
    "double": lambda data, at, n, _: data[: at + n] + data[at:],
    "swap": lambda data, at, n, _: data[:at] + data[at + n : at + 2 * n] + data[at : at + n] + data[at + 2 * n :],
    "say another length": lambda data, _, n, __: length_word(data, n - 20),
    "say an absurd length": lambda data, _, n, __: struct.pack("<Q", 2 ** (24 + n)) + data[8:],
    # harmless
    "change the data": lambda data, at, _, junk: behind_the_header(data, at, junk),
    "add spaces to the header": lambda data, _, n, __: spaced(data, n),
}
STEPS = st.tuples(st.sampled_from(sorted(DAMAGE)), st.integers(0, 2**16), st.integers(0, 39), HOSTILE_BYTES)


def damaged(data: bytes, steps: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, count, junk in steps:
        data = DAMAGE[kind](data, place % (len(data) or 1), count, junk)
    return data


@every
def test_damaged_bytes(tmp_path: Path, every: int) -> None:
    path, outcomes = tmp_path / "model.safetensors", Counter[str]()

    @settings(MANY, max_examples=3000 // every)
    @given(st.sampled_from(SOUND), st.lists(STEPS, min_size=1, max_size=3))
    def holds(data: bytes, steps: list[tuple[str, int, int, bytes]]) -> None:
        path.write_bytes(damaged(data, steps))
        judge(path, outcomes)

    holds()
    assert neither_is_rare(outcomes, 3000 // every), outcomes


# -- a header written by someone else ---------------------------------------------------------------------------------

TOKENS = st.sampled_from(
    [
        "0", "1", "-0", "-1", "1.0", "1e0", "1e3", "1E400", "0.5", "01", "+1", "0x1", "9" * 30, str(2**62), str(2**63),
        str(2**63 - 1), str(2**64), "NaN", "Infinity", "true", "null", '""', '"x"', '"F32"', '"U8"', '"F8_E8M0"', "[]",
        "[0]", "[0,0]", "[1,1]", "[4,0]", f"[0,{2**62}]", f"[{2**62},{2**62},0]", "[[0],1]", "[1,]",
        "[" * 40 + "]" * 40,
        "{}", '{"a":"b"}', '{"a":1}', '{"a":"b","a":"c"}', "'x'", "", "/**/1", '"\\ud800"', '"\\u0046\\u00332"',
        '"\\x"', '"\t"', '"\u2028"', '"\ufeff"',
    ]
)  # fmt: skip
SPACES = st.sampled_from(["", "", "", " ", "\n", "\t", "\r\n", "   ", "\f", "\u00a0", "\ufeff"])
NAMES = st.sampled_from(
    [
        '"a"', '"b"', '"\\u0061"', '"größe"', '"gr\\u00f6\\u00dfe"', '"\\ud83d\\ude00"', '"😀"', '"\\ud800"', '""',
        '"../x"', '"a/b"', '"a\\u0000b"', '"a\\nb"', '"a\\\\b"', '"a\\/b"', '"__metadata__"', '"__metadata_\\u005f"',
        '"model.layers.0.mlp.up_proj.weight"', '"a b"', '"a\u202eb"', "a", "1", "null",
    ]
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 3), max_size=3)
EMPTY = st.sampled_from(
    ["[0]", "[-0]", "[0,-0]", "[0.0]", "[0e0]", "[3,0,2]", f"[0,{2**62}]", f"[{2**62},0,2]", f"[{2**63 - 1},0]"]
)
"""No elements, said in ways of which readers do not take all."""
DTYPES = st.sampled_from(["F32", "BF16", "U8", "F16", "I64", "BOOL", "F8_E5M2", "F4", "C64", "F6_E3M2"])


@st.composite
def written(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A header as JSON, sound but for what is drawn to be wrong, and its data."""
    names = draw(st.lists(NAMES, max_size=4)) if draw(st.integers(0, 3)) == 0 else ['"a"', '"b"', '"\\u0063"']
    members, position = [], 0
    for name in names:
        dtype, shape = draw(DTYPES), tuple(draw(SHAPES))
        end = position + tensor_bytes(dtype, shape)
        said = draw(EMPTY) if 0 in shape and draw(st.booleans()) else str(list(shape))
        start = position + draw(st.sampled_from([0] * 9 + [-1, 1, end - position]))
        offsets = f"[{start},{start + end - position}]"
        fields = [('"dtype"', f'"{dtype}"'), ('"shape"', said), ('"data_offsets"', offsets)]
        members.append((name, draw(st.permutations(fields))))
        position = end
    for _ in range(draw(st.integers(0, 2)) if members else 0):
        _spoil(draw, members)
    members = draw(st.permutations(members))
    texts = [f"{name}:{{{','.join(f'{key}:{value}' for key, value in fields)}}}" for name, fields in members]
    if draw(st.booleans()):
        texts.append(f'"__metadata__":{draw(TOKENS) if draw(st.integers(0, 4)) == 0 else META}')
    space = draw(SPACES)
    return (f"{{{space}" + f"{space},{space}".join(texts) + f"{space}}}{draw(SPACES)}").encode(), bytes(position)


META = '{"format":"pt","\\u0061":"\\ud83d\\ude00"}'


def _spoil(draw: st.DrawFn, members: list[tuple[str, list[tuple[str, str]]]]) -> None:
    """Replace, add, double or take away one thing."""
    number = draw(st.integers(0, len(members) - 1))
    name, fields = members[number][0], list(members[number][1])
    place = draw(st.integers(0, 2)) % (len(fields) or 1)
    match draw(
        st.sampled_from(["value", "value", "key", "double field", "drop field", "double", "drop", "name", "none"])
    ):
        case "value" if fields:
            fields[place] = (fields[place][0], draw(TOKENS))
        case "key" if fields:
            fields[place] = (draw(st.sampled_from(['"shapes"', '"\\u0064type"', "shape", '"dtype"'])), fields[place][1])
        case "double field":
            fields += fields[place : place + 1]
        case "drop field":
            del fields[place : place + 1]
        case "double":
            members.append((name, fields))
        case "name":
            name = draw(NAMES)
        case "drop":
            fields = []
    members[number] = (name, fields)


@every
def test_a_header_written_by_someone_else(tmp_path: Path, every: int) -> None:
    path, outcomes = tmp_path / "model.safetensors", Counter[str]()

    @settings(MANY, max_examples=2000 // every)
    @given(written())
    def holds(parts: tuple[bytes, bytes]) -> None:
        judge(raw_safetensors(path, *parts), outcomes)

    holds()
    assert neither_is_rare(outcomes, 2000 // every), outcomes


# -- memory -----------------------------------------------------------------------------------------------------------


def real_header(count: int) -> bytes:
    """As of a mixture of experts with `count` tensors of an expert's shape, none of which the file holds."""
    names = [
        f"model.layers.{n // 384}.block_sparse_moe.experts.{n // 3 % 128}.w{n % 3 + 1}.weight" for n in range(count)
    ]
    return build_header([(name, "BF16", (1408, 2048)) for name in names])


def tiny_header(count: int) -> bytes:
    """The shortest entries there can be, for which Python's objects are largest in comparison."""
    entry = '"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return b"{" + ",".join(entry % n for n in range(count)).encode() + b"}"


@every
def test_memory_of_a_real_header(tmp_path: Path, every: int) -> None:
    count = 20_000 // every
    data = real_header(count)
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + count * 2 * 1408 * 2048)  # a hole
    header, peak = measured(path)
    assert header is not None
    assert len(header.tensors) == count
    assert peak < 4 * len(data) + MIB


BIG = 4_000_000
HOSTILE: dict[str, bytes] = {
    "lists": b'{"a":[' + b"[],[]," * (BIG // 6) + b"[]]}",
    "lists in an entry": b'{"a":{"shape":[' + b"[],[]," * (BIG // 6) + b"[]]}}",
    "nested lists": b'{"a":' + b"[" * (BIG // 2) + b"]" * (BIG // 2) + b"}",
    "nested objects": b'{"a":' * (BIG // 6) + b"1" + b"}" * (BIG // 6),
    "a long key": b'{"' + b"k" * BIG + b'":{}}',
    "a long key of escapes": b'{"' + b"\\u00e4" * (BIG // 6) + b'":{}}',
    "a long key in the metadata": b'{"__metadata__":{"' + b"k" * BIG + b'":"v"}}',
    "a long string for a dtype": b'{"a":{"dtype":"' + b"F" * BIG + b'"}}',
    "a long number": b'{"a":{"shape":[' + b"9" * BIG + b"]}}",
    "many sizes": b'{"a":{"shape":[' + b"1," * (BIG // 2) + b"1]}}",
    "many metadata": b'{"__metadata__":{' + b",".join(b'"%d":"v"' % n for n in range(100_000)) + b"}}",
    "many members of an entry": b'{"a":{' + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}}",
    "no end": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' + b"," * BIG,
    "not UTF-8": b'{"' + b"\xff" * BIG + b'":{}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_of_a_hostile_header(name: str, tmp_path: Path) -> None:
    header, peak = measured(raw_safetensors(tmp_path / "model.safetensors", HOSTILE[name]))
    assert header is None
    assert peak < 4 * len(HOSTILE[name]) + MIB


@pytest.mark.parametrize(
    "text",
    [
        b'{"__metadata__":{"a":"' + b"v" * BIG + b'"}}',
        b'{"__metadata__":{' + b",".join(b'"%d":"v"' % n for n in range(MAX_METADATA)) + b"}}",
        b"{" + b" \n" * (BIG // 2) + b"}" + b" " * BIG,
    ],
    ids=["long metadata", "much metadata", "spaces"],
)
def test_memory_of_a_header_that_is_large_and_sound(text: bytes, tmp_path: Path) -> None:
    path = raw_safetensors(tmp_path / "model.safetensors", text)
    header, peak = measured(path)
    assert header is not None
    assert theirs(path) == {}
    assert peak < 4 * len(text) + MIB


@every
def test_memory_of_the_shortest_entries(tmp_path: Path, every: int) -> None:
    text = tiny_header(50_000 // every)
    header, peak = measured(raw_safetensors(tmp_path / "model.safetensors", text))
    assert header is not None
    assert len(header.tensors) == 50_000 // every
    assert peak < 6 * len(text) + MIB


# -- the files beside the weights -------------------------------------------------------------------------------------

VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, 3, 4, 1.0, 0.5, 1e300, -0.0, 2**31, 2**63, 10**400, float("nan"), float("inf"),
        "", "4", "llama", "bfloat16", "../x", "\x00", "\ud800", "x" * 9000, [], [1], ["llama"], {}, {"a": 1}, [[]] * 99,
    ]
)  # fmt: skip


@st.composite
def spoilt(draw: st.DrawFn, sound: dict[str, Any], added: list[str]) -> bytes:
    """A JSON object with a few values replaced, members added, doubled or dropped, and now and then a byte damaged."""
    members = [(json.dumps(name), json.dumps(value)) for name, value in sound.items()]
    for _ in range(draw(st.integers(0, 2))):
        name, value = draw(st.sampled_from([*sound, *added])), json.dumps(draw(VALUES))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "double", "drop"]))
        if kind != "double":
            members = [member for member in members if member[0] != json.dumps(name)]
        if kind != "drop":
            members.append((json.dumps(name), value))
    members = draw(st.permutations(members))
    text = ("{" + ",".join(f"{name}:{value}" for name, value in members) + "}").encode()
    return damaged(text, draw(st.lists(STEPS, max_size=1)) if draw(st.integers(0, 3)) == 0 else [])


CONFIG: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
CONFIG |= {**SMALL, "torch_dtype": "bfloat16", "hidden_act": "silu"}
FIELDS = ["head_dim", "attention_bias", "sliding_window", "initializer_range", "attention_dropout", "strange", "dtype"]
FIELDS += ["num_experts", "quantization_config", "auto_map", "layer_types", "bos_token_id"]
SHAPES_COME_FROM = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]


@every
def test_a_damaged_config(tmp_path: Path, every: int) -> None:
    outcomes = Counter[str]()
    save_header(CONFIG, tmp_path)

    @settings(MANY, max_examples=1000 // every)
    @given(spoilt(CONFIG, FIELDS))
    def holds(text: bytes) -> None:
        (tmp_path / "config.json").write_bytes(text)
        try:
            config = draft(open_checkpoint(tmp_path), Plan(model=str(tmp_path))).plan.config
        except InputError as error:
            outcomes["refused"] += 1
            message = str(error).replace(str(tmp_path), "MODEL")
        else:
            outcomes["accepted"] += 1
            assert {name: config[name] for name in SHAPES_COME_FROM} == {name: SMALL[name] for name in SHAPES_COME_FROM}
            json.dumps(config, allow_nan=False).encode()
            return
        assert message.isprintable()
        assert len(message) < SCREEN

    holds()
    assert neither_is_rare(outcomes, 1000 // every), outcomes


@every
def test_a_damaged_index(tmp_path: Path, every: int) -> None:
    outcomes = Counter[str]()
    save_header(CONFIG, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    tensors = read_header(tmp_path / "model-1.safetensors").tensors
    sound = dict.fromkeys(tensors, "model-1.safetensors")

    @settings(MANY, max_examples=1000 // every)
    @given(spoilt(sound, ["x", "../x", "__metadata__"]))
    def holds(text: bytes) -> None:
        (tmp_path / "model.safetensors.index.json").write_bytes(b'{"metadata":{},"weight_map":' + text + b"}")
        try:
            found = open_checkpoint(tmp_path).tensors
        except CheckpointError as error:
            outcomes["refused"] += 1
            message = str(error).replace(str(tmp_path), "MODEL")
        else:
            outcomes["accepted"] += 1
            assert found == tensors
            assert json.loads(text) == sound
            return
        assert message.isprintable()
        assert len(message) < SCREEN

    holds()
    assert neither_is_rare(outcomes, 1000 // every), outcomes
