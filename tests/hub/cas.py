"""The chunk store over HTTP, as the client speaks with it: blocks of chunks, shards, and where a file's chunks are.

A block is a row of chunks, each with a head of 8 bytes: version, packed size (3), packing, unpacked size (3)
(https://huggingface.co/docs/xet/api, /xorb, /reconstruct).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.hub import chunks
from tests.hub.chunks import READER, WRITER, Part
from tests.hub.objects import write
from tests.hub.repos import Blob
from tests.hub.server import Handler

HASH = "([0-9a-f]{64})"


def may(answer: Handler, *tokens: str) -> bool:
    """Tell whether a request has one of these tokens; otherwise answer that it has not."""
    if answer.headers.get("Authorization") in {f"Bearer {token}" for token in tokens}:
        return True
    answer.refuse(401, "", "Unauthorized")
    return False


def block_path(store: Path, name: str) -> Path:
    return store / f"xet/xorbs/xorbs/default.{name}"


def put_block(answer: Handler, name: str) -> None:
    if not may(answer, WRITER):
        return
    path = block_path(answer.hub.store, name)
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    write(answer.hub, answer.upload)[0].rename(path)
    answer.send_json({"was_inserted": new})


def put_shard(answer: Handler) -> None:
    """Keep a list of files if the blocks they are made of are there; tell of it as events, one a line."""
    if not may(answer, WRITER):
        return
    files = chunks.shard(answer.body).values()
    if not all(block_path(answer.hub.store, part.block).exists() for file in files for part in file.parts):
        answer.refuse(400, "", "a block of the shard was not uploaded")
        return
    directory = answer.hub.store / "xet/xorbs/shards"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{hashlib.sha256(answer.body).hexdigest()}.mdb").write_bytes(answer.body)
    events = [{"type": "validating", "verified": 1, "total": 1}, {"type": "result"}]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    answer.send_blob(Blob(lines.encode()), 200, {"Content-Type": "application/x-ndjson"})


@lru_cache(1024)
def edges(path: Path) -> tuple[list[int], list[int]]:
    """Where the chunks of a block begin, and the last one ends: in the block, and unpacked."""
    packed, unpacked = [0], [0]
    size = path.stat().st_size
    with path.open("rb") as file:
        while packed[-1] < size:
            head = file.read(8)
            if head[0] != 0:  # what the client keeps behind the chunks, where it writes to disk itself
                break
            packed.append(packed[-1] + 8 + int.from_bytes(head[1:4], "little"))
            unpacked.append(unpacked[-1] + int.from_bytes(head[5:8], "little"))
            file.seek(packed[-1])
    return packed, unpacked


def terms(store: Path, parts: list[Part], start: int, stop: int) -> Iterator[tuple[int, Part]]:
    """For every part of a file that lies in a span of bytes: where it begins, and the chunks to take of it."""
    at = 0
    for part in parts:
        _, unpacked = edges(block_path(store, part.block))
        base = at - unpacked[part.first]
        at += part.size
        inside = [
            chunk
            for chunk in range(part.first, part.end)
            if base + unpacked[chunk] < stop and base + unpacked[chunk + 1] > start
        ]
        if inside:
            first, end = inside[0], inside[-1] + 1
            yield base + unpacked[first], Part(part.block, first, end, unpacked[end] - unpacked[first])


def joined(parts: list[Part]) -> list[tuple[str, int, int]]:
    """Rows of chunks that hold all parts, none twice: the client takes two that begin alike for the same."""
    rows: list[tuple[str, int, int]] = []
    for block, first, end in sorted((part.block, part.first, part.end) for part in parts):
        if rows and rows[-1][0] == block and rows[-1][2] >= first:
            rows[-1] = (block, rows[-1][1], max(rows[-1][2], end))
        else:
            rows.append((block, first, end))
    return rows


def reconstruction(answer: Handler, name: str) -> None:
    """Tell of which chunks a file, or a range of it, is made, and where they are."""
    if not may(answer, READER, WRITER):
        return
    file = next((file for file in chunks.files(answer.hub.store).values() if file.name == name), None)
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", answer.headers.get("Range", ""))
    if file is None:
        answer.refuse(404, "", "File not found")
    elif asked and int(asked[1]) >= file.size:
        answer.refuse(416, "", "Range not satisfiable")
    else:
        start, stop = (int(asked[1]), int(asked[2] or file.size) + 1) if asked else (0, file.size)
        answer.send_json(_told(answer, list(terms(answer.hub.store, file.parts, start, stop)), start))


def _told(answer: Handler, found: list[tuple[int, Part]], start: int) -> dict[str, Any]:
    parts = [part for _, part in found]
    places: dict[str, list[dict[str, Any]]] = {}
    for block, first, end in joined(parts):
        packed, _ = edges(block_path(answer.hub.store, block))
        place = {"chunks": _span(first, end), "bytes": _span(packed[first], packed[end] - 1)}
        places.setdefault(block, []).append({"url": f"{answer.hub.storage}/xorbs/{block}", "ranges": [place]})
    return {
        "offset_into_first_range": start - found[0][0] if found else 0,
        "terms": [
            {"hash": part.block, "unpacked_length": part.size, "range": _span(part.first, part.end)} for part in parts
        ],
        "xorbs": places,
    }


def _span(start: int, end: int) -> dict[str, int]:
    return {"start": start, "end": end}


def get_block(answer: Handler, name: str) -> None:
    """A range of a block, at the other origin, which wants no token."""
    path = block_path(answer.hub.store, name)
    if path.exists():
        answer.send_range(Blob(path), {"Content-Type": "application/octet-stream"})
    else:
        answer.refuse(404, "", "none")


def known_chunk(answer: Handler, name: str) -> None:
    """Send the shard in which a chunk is, so that it need not come again from anyone."""
    if not may(answer, WRITER):
        return
    found = chunks.holder(answer.hub.store, name)
    if found is None:
        answer.refuse(404, "", "Shard not found")
    else:
        answer.send_blob(Blob(found), 200, {"Content-Type": "application/octet-stream"})


def telemetry(answer: Handler) -> None:
    answer.send_json({})


CAS: list[tuple[str, Callable[..., None]]] = [
    (rf"POST /v1/xorbs/default/{HASH}", put_block),
    (r"POST /v2/shards", put_shard),
    (rf"GET /v2/reconstructions/{HASH}", reconstruction),
    (rf"GET /v1/chunks/default(?:-merkledb)?/{HASH}", known_chunk),
    (rf"GET /xorbs/{HASH}", get_block),
    (r"POST /v1/telemetry", telemetry),
]
"""Method and path -> what answers."""
