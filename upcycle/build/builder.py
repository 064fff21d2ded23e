"""From a checkpoint and a request to a plan. Reads headers and side files, never weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upcycle.build.methods import METHODS, is_exact
from upcycle.build.routers import check_router_can_learn, initial_router
from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    GENERATION_FILE,
    TOKENIZER_FILES,
    Checkpoint,
    present_files,
)
from upcycle.errors import InputError, UnsupportedError
from upcycle.families.family import TensorRow
from upcycle.families.match import Match, match
from upcycle.plan.dtypes import DTYPE_WORDS, DTYPES, main_dtype
from upcycle.plan.layout import lay_out
from upcycle.plan.plan import MAX_TENSORS, Plan, Write
from upcycle.plan.sources import Copy, Source, reads
from upcycle.requests import Conversion


def build_plan(checkpoint: Checkpoint, request: Conversion) -> Plan:
    """Return the whole plan of converting `checkpoint`.

    Raises CheckpointError, UnsupportedError or RecipeError for all that would go wrong, before a byte is written.
    """
    matched = match(checkpoint, request.ignore_config)
    check_router_can_learn(matched.family, request)
    _check_count(matched, request)
    writes = _writes(matched, checkpoint, request)
    if any(write.dtype == "F64" for write in writes):
        raise UnsupportedError(
            f"no {matched.family.moe} runs in float64",
            where=checkpoint.directory,
            hint="--dtype f32 rounds the weights",
        )
    exact = is_exact(request) and all(write.lossless for write in writes)
    return Plan(
        shards=lay_out(writes, request.shard_bytes()),
        config=_config(matched, request, writes),
        files=_side_files(checkpoint, request),
        sources={name: {"size": h.size, "header_sha256": h.sha256} for name, h in sorted(checkpoint.headers.items())},
        exact=exact,
        active_experts=request.top_k,
        total_experts=request.experts,
    )


def _check_count(matched: Match, request: Conversion) -> None:
    rows = matched.family.tensors
    layers = matched.sizes["L"]
    count = sum((layers if row.per_layer else 1) * (request.experts if row.per_expert else 1) for row in rows)
    if count > MAX_TENSORS:
        raise UnsupportedError(
            "too many tensors",
            found=f"{count:,} for {request.experts:,} experts in each of {layers} layers",
            expected=f"at most {MAX_TENSORS:,}",
            hint="fewer --experts",
        )


def _writes(matched: Match, checkpoint: Checkpoint, request: Conversion) -> list[Write]:
    """Every output tensor, in the order of the source file, experts side by side."""
    writes: list[Write] = []
    for row in matched.family.tensors:
        for layer in range(matched.sizes["L"]) if row.per_layer else (0,):
            writes += _row_writes(row, layer, matched, checkpoint, request)
    order = {spec: number for number, spec in enumerate(checkpoint.tensors.values())}
    return sorted(writes, key=lambda write: min((order[spec] for spec in reads(write.source)), default=len(order)))


def _row_writes(row: TensorRow, layer: int, matched: Match, checkpoint: Checkpoint, request: Conversion) -> list[Write]:
    if row.source is None:
        name = row.target.format(layer=layer)
        shape = (request.experts, matched.sizes["D"])
        return [
            Write(name, _router_dtype(matched, checkpoint, request), shape, row.role, initial_router(name, request))
        ]
    spec = checkpoint.tensors.get(row.source.format(layer=layer))
    if spec is None:  # the head of a model with tied embeddings
        return []
    names = [row.target.format(layer=layer, expert=e) for e in range(request.experts if row.per_expert else 1)]
    return [
        Write(name, DTYPES.get(request.dtype, spec.dtype), spec.shape, row.role, _source(row, spec, name, request))
        for name in names
    ]


def _source(row: TensorRow, spec: TensorSpec, target: str, request: Conversion) -> Source:
    return METHODS[request.method](spec, target, request) if row.per_expert else Copy(spec)


def _router_dtype(matched: Match, checkpoint: Checkpoint, request: Conversion) -> str:
    """The dtype asked for, else that of most of the bytes that are carried over."""
    used = [name for _, name in matched.family.source_rows(matched.sizes["L"])]
    tensors = [checkpoint.tensors[name] for name in used if name in checkpoint.tensors]
    return DTYPES.get(request.dtype) or main_dtype(tensors)


def _config(matched: Match, request: Conversion, writes: list[Write]) -> dict[str, Any]:
    chosen: Mapping[str, int] = {"experts": request.experts, "top_k": request.top_k}
    config = dict(matched.config)
    config.update({name: chosen[what] for name, what in matched.family.expert_fields.items()})
    config.update(matched.family.constants)
    # transformers 5 reads `dtype`, programs made for 4 read `torch_dtype`
    config["dtype"] = config["torch_dtype"] = _config_dtype(matched.config, request, writes)
    return config


def _config_dtype(config: Mapping[str, Any], request: Conversion, writes: list[Write]) -> Any:
    """The word by which readers choose what to run in: the dense model's own, unless another dtype is asked for."""
    named = config.get("dtype") or config.get("torch_dtype")
    return named if request.dtype == "keep" and named else DTYPE_WORDS[main_dtype(writes)]


def _side_files(checkpoint: Checkpoint, request: Conversion) -> dict[str, Path]:
    """Tokenizer, chat template and generation config, byte for byte; those asked for in place of the model's own."""
    directory = checkpoint.directory
    if request.tokenizer is not None:
        directory = Path(request.tokenizer)
        if not present_files(directory, TOKENIZER_FILES):
            raise InputError("holds no tokenizer", where=directory, expected=" or ".join(TOKENIZER_FILES[:3]))
    files = [*present_files(directory, (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES))]
    files += present_files(checkpoint.directory, (GENERATION_FILE,))
    named = {path.name: path for path in files}
    if request.chat_template is not None:
        template = Path(request.chat_template)
        if not template.is_file():
            raise InputError("no such file", where=template, hint="--chat-template names a Jinja file")
        named = {name: path for name, path in named.items() if name not in CHAT_TEMPLATE_FILES}
        named[CHAT_TEMPLATE_FILES[0]] = template
    _check_json(named)
    return named


def _check_json(files: Mapping[str, Path]) -> None:
    """A broken side file is refused now, not by the reader of the output."""
    for name, path in files.items():
        if name.endswith(".json"):
            try:
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else ascii(str(error))[1:-1][:200]
                raise InputError(f"not valid JSON ({reason})", where=path) from None
