"""Adapter experts on a dense model: built from its config on no device at all, so that no weight of it is read."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import upcycle
from upcycle.adapt.compose import Composed, compose
from upcycle.adapt.lora_files import read_lora
from upcycle.adapt.prototypes import prototypes
from upcycle.adapters import ExpertsConfig
from upcycle.build.adapter_experts import PEFT_PREFIX, router_name
from upcycle.build.merge import target_problem
from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from upcycle.checkpoint.digest import seed_from, sha256_of
from upcycle.checkpoint.identity import fingerprint
from upcycle.checkpoint.place import RECEIPT_FILE, check_out
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    GENERATION_FILE,
    TOKENIZER_FILES,
    Checkpoint,
    open_checkpoint,
    present_files,
)
from upcycle.checkpoint.staging import open_staging
from upcycle.checkpoint.writer import write_durably
from upcycle.errors import InputError
from upcycle.families.base import AdapterBase, adapter_base
from upcycle.families.match import match
from upcycle.moe.adapters import LoraUpdate
from upcycle.moe.fit import check_fit
from upcycle.plan.make import output_path
from upcycle.plan.receipt import FORMAT, Origin, as_text
from upcycle.requests import recorded
from upcycle.requests.attach import Attach

MULTIPLE = 8
"""Of which the width of an expert must be a multiple, for stock transformers to run it in 16 bits (grouped_mm)."""

UNMERGEABLE = "`merge` cannot write this adapter as a plain model"


@dataclass(frozen=True, slots=True)
class Attached:
    """An adapter that was written."""

    out: Path
    experts: tuple[int, ...]  # of each layer; none where it is the plain LoRA of `baseline`
    parameters: int
    base_parameters: int
    nbytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Draft:
    """An adapter in memory."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]
    experts: tuple[int, ...]
    notes: tuple[str, ...] = ()


def attach(base: Path, request: Attach, loras: Sequence[Path] = ()) -> Attached:
    """Write an adapter for the dense model in `base` to `request.out`; `loras` are those of `request.from_lora`.

    Raises InputError for a model or LoRA that cannot be used, before anything is written.
    """
    out = output_path(request.out)
    checkpoint = open_checkpoint(base)
    of = adapter_base(checkpoint)
    _check_attention(request, of)
    if of.has_pair:
        _check_width(request, checkpoint)
    else:  # nothing but names is known of it: what they do not account for is for its class to say
        check_fit(base, {name: (spec.dtype, spec.shape) for name, spec in checkpoint.tensors.items()})
    check_out(out, (base, *loras), overwrite=request.overwrite)
    draft = _single_lora(of, request, base) if request.baseline else _experts(of, request, base, loras)
    files = _files(draft, request, checkpoint)
    identity = {"adapter": sha256_of(files[ADAPTER_WEIGHTS] + files[ADAPTER_CONFIG])}
    with open_staging(out, identity, resume=not request.overwrite, overwrite=request.overwrite) as staging:
        for name, data in files.items():
            write_durably(staging.path / name, data)
        staging.commit()
    return Attached(
        out,
        draft.experts,
        sum(tensor.numel() for tensor in draft.tensors.values()),
        sum(prod(spec.shape) for spec in checkpoint.tensors.values()),
        len(files[ADAPTER_WEIGHTS]),
        (*draft.notes, *(f"{UNMERGEABLE}: {problem}" for problem in _merge_problems(checkpoint, of, request))),
    )


def _merge_problems(checkpoint: Checkpoint, of: AdapterBase, request: Attach) -> Iterator[str]:
    """Yield why the model's adapters cannot be merged, whatever the experts: known now, not after the training."""
    if not of.has_pair:
        yield f"no mixture of experts is known for its base ({of.model_type})"
        return
    pair = match(checkpoint).pair
    problem = target_problem(pair, gated=of.modules.gated, attention=bool(request.attention_rank))
    if problem and request.baseline is None:
        yield problem


def _check_attention(request: Attach, of: AdapterBase) -> None:
    """Raise InputError for a LoRA on the attention of a model whose layers have it in several forms, or not at all."""
    if request.attention_rank and not of.modules.attention:
        raise InputError(
            f"the layers of a {of.model_type} do not all have the same attention, so that it gets no LoRA",
            found=f"--attention-rank {request.attention_rank}", expected="--attention-rank 0",
        )  # fmt: skip


def _check_width(request: Attach, checkpoint: Checkpoint) -> None:
    """A width that no stock model can have in 16 bits is refused now, not after the training."""
    narrow = any(spec.dtype in ("BF16", "F16") for spec in checkpoint.tensors.values())
    if request.expert_type == "bottleneck" and narrow and request.width % MULTIPLE:
        raise InputError(
            "experts of this width could be merged in float32 only: stock transformers runs experts in 16 bits by "
            "grouped_mm, which needs other widths",
            found=f"--rank {request.width}", expected=f"a multiple of {MULTIPLE}",
            hint=f"--rank {-(-request.width // MULTIPLE) * MULTIPLE}",
        )  # fmt: skip


def _experts(of: AdapterBase, request: Attach, base: Path, loras: Sequence[Path]) -> _Draft:
    composed = _composed(of, request, base, loras)
    start = "zeros" if request.start == "prototypes" else request.start
    config = ExpertsConfig(
        expert_type=request.expert_type,
        num_experts=list(composed.per_layer if composed else request.counts),
        top_k=request.top_k,
        routing=request.routing,
        rank=composed.rank if composed else request.width,
        scaling=1.0 if composed else request.factor,
        shared_a=request.shared_a,
        attention_rank=composed.attention_rank if composed else request.attention_rank,
        attention_scaling=1.0 if composed else 2.0,
        router=start,
        router_std=request.router_std,
        seed=request.seed,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that it is giving up
            model: Any = get_peft_model(_skeleton(base), config)
    except ValueError as error:
        raise InputError(f"cannot have these experts ({error})", where=base) from error
    tensors = {name: value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
    if composed:
        _fill(tensors, composed, request)
    return _Draft(config, tensors, tuple(config.counts), composed.notes if composed else ())


def _skeleton(base: Path) -> Any:
    """The dense model without any weight."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _composed(of: AdapterBase, request: Attach, base: Path, loras: Sequence[Path]) -> Composed | None:
    if not loras:
        return None
    read = [read_lora(path) for path in loras]
    policy, shared = request.attention_deltas, request.shared_a
    return compose(read, of, attention=policy, shared_a=shared, called=_base_name(base)[0])


def _fill(tensors: dict[str, Tensor], composed: Composed, request: Attach) -> None:
    """Put the LoRAs' own matrices, and routers made of them, where the drawn ones are."""
    for name, value in composed.tensors.items():
        assert tensors[name].shape == value.shape  # noqa: S101 - both come from the same request
        tensors[name] = value.contiguous()
    if request.start == "prototypes":
        for layer in (layer for layer, count in enumerate(composed.per_layer) if count):
            rows = prototypes(composed.layer(layer), request.from_lora)
            tensors[router_name(composed.base, layer)] = rows


def _single_lora(of: AdapterBase, request: Attach, base: Path) -> _Draft:
    """A plain LoRA of the FFN whose rank gives it about as many parameters as the experts and routers would have."""
    wanted = _experts(of, request, base, ())
    ffn, attention = of.modules.linear, of.modules.attention if request.attention_rank else ()
    own = sum(value.numel() for name, value in wanted.tensors.items() if "upcycle_lora" not in name)
    rank = max(1, round(own / sum(of.layers * sum(of.shapes[name]) for name in ffn)))
    tensors: dict[str, Tensor] = {}
    for layer, module in product(range(of.layers), (*ffn, *attention)):
        name, (outputs, inputs) = of.module(layer, module), of.shapes[module]
        update = LoraUpdate(inputs, outputs, rank if module in ffn else request.attention_rank, scaling=1.0)
        update.draw(torch.Generator().manual_seed(seed_from(f"{request.seed}:{name}")))
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = update.lora_A.detach()
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = update.lora_B.detach()
    called = _called(of, ffn), _called(of, attention)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        rank_pattern=dict.fromkeys(called[1], request.attention_rank),
        alpha_pattern=dict.fromkeys(called[1], 2 * request.attention_rank),
        target_modules=[*called[0], *called[1]],
        task_type="CAUSAL_LM",
    )
    total, experts = (sum(value.numel() for value in values.values()) for values in (tensors, wanted.tensors))
    note = f"a LoRA of rank {rank}: {total:,} parameters where the experts have {experts:,}"
    return _Draft(config, tensors, (), (note,))


def _called(of: AdapterBase, modules: Sequence[str]) -> list[str]:
    """Return what peft finds these modules by: the last part of their names, or all where others have the same."""
    last = [name.rpartition(".")[2] for name in (*of.modules.linear, *of.modules.attention)]
    return [name if last.count(short := name.rpartition(".")[2]) > 1 else short for name in modules]


def _base_name(base: Path) -> tuple[str, str | None]:
    """How an adapter names its model: by its place, or by its Hub id and commit."""
    origin = Origin.of(base, ())
    return origin.name if origin.revision else str(base.resolve()), origin.revision


def _files(draft: _Draft, request: Attach, checkpoint: Checkpoint) -> dict[str, bytes]:
    """Every file of the adapter by name, the receipt last."""
    base, origin = checkpoint.directory, Origin.of(checkpoint.directory, ())
    config = draft.config
    config.base_model_name_or_path, config.revision = _base_name(base)
    config.inference_mode = True
    if isinstance(config, ExpertsConfig):
        config.base_fingerprint = fingerprint(checkpoint)
    said = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    beside = present_files(base, (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES, GENERATION_FILE))
    files = {
        ADAPTER_CONFIG: json.dumps(said, indent=2, sort_keys=True).encode() + b"\n",
        ADAPTER_WEIGHTS: save(dict(draft.tensors), metadata={"format": "pt"}),
        **{path.name: path.read_bytes() for path in beside},
    }
    recipe = recorded(request) | {"model": origin.name}
    recipe["from_lora"] = [as_text(Path(name).name) for name in request.from_lora]
    receipt = {
        "upcycle": FORMAT,
        "made": "adapter",
        "versions": {"upcycle": upcycle.__version__, "torch": str(torch.__version__)},
        "recipe": recipe,
        "files": {name: sha256_of(data) for name, data in files.items()},
    }
    return {**files, RECEIPT_FILE: json.dumps(receipt, indent=2).encode() + b"\n"}
