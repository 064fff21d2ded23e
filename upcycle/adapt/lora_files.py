"""Reads a LoRA adapter that peft saved; refuses, naming the field or tensor, what is more than low-rank updates.

Shapes: R rank, X inputs, Y outputs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from upcycle.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, open_adapter
from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.strict_json import is_finite_number
from upcycle.errors import InputError
from upcycle.families.match import FLOATS
from upcycle.message import quoted
from upcycle.plan.values import read_blocks


@dataclass(frozen=True, slots=True)
class Delta:
    """The update of one linear layer, `scale * B A`; float32."""

    A_RX: Tensor
    B_YR: Tensor
    scale: float  # alpha / rank, or alpha / sqrt(rank)

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.A_RX)


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA adapter; `str()` of it is what messages call it."""

    place: Path
    base: str | None  # what the adapter says its base is
    deltas: Mapping[str, Delta]  # by the module's name in the base: model.layers.0.mlp.up_proj

    def __str__(self) -> str:
        """Return the directory."""
        return str(self.place)


def read_lora(directory: Path) -> Lora:
    """Read the adapter in `directory`, without comparing it with a base.

    Raises InputError for what is not there, is not sound, or is not a plain LoRA of linear layers: other kinds of
    adapters, variants of LoRA, biases, whole weights beside the LoRA, NaN and infinity.
    """
    adapter = open_adapter(directory)
    config, where = adapter.config, directory / ADAPTER_CONFIG
    _check_config(config, where)
    specs = _pairs(adapter.tensors, directory / ADAPTER_WEIGHTS)
    scales = _Scales.of(config, where)
    deltas = {module: _delta(module, *pair, scales) for module, pair in sorted(specs.items())}
    base = config.get("base_model_name_or_path")
    return Lora(directory, base if isinstance(base, str) and base else None, deltas)


_MERGE = "merge it into a model with peft and attach to that, or train it without"
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base as it is; others move a part of it into A and B."""

_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA also scales whole weights, which is no low-rank update",
    "lora_bias": "biases beside B are no part of an expert",
    "modules_to_save": "whole weights are saved beside the LoRA",
    "target_parameters": "it updates fused parameters, as a mixture of experts has them",
    "trainable_token_indices": "it trains embeddings",
    "fan_in_fan_out": "its layers store their weights transposed",
    "layer_replication": "its base has layers that are repeated",
    "alora_invocation_tokens": "aLoRA acts on some of the tokens only",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "BD-LoRA's matrices are block-diagonal",
    "arrow_config": "Arrow mixes adapters by itself",
    "kasa_config": "KaSA changes the base and has a diagonal between A and B",
    "monteclora_config": "MonteCLoRA draws its weights",
    "enable_lora": "it updates parts of fused layers",
}
"""Fields that must be unset -> why."""

_UNUSED = {
    # bookkeeping, and what peft does in training only
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_config", "megatron_core", "velora_config", "runtime_config", "eva_config", "corda_config",
    "loftq_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying", "merge_weights",
    # which modules there are: the tensors say it
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    # looked at below
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights",
}  # fmt: skip


def _check_config(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError("is no LoRA adapter", where=where, found=f"peft_type {quoted(kind)}", expected="LORA")
    for name, value in config.items():
        if name in _REFUSED and value not in (None, False, [], {}):
            raise InputError(f"cannot be an expert: {_REFUSED[name]}", where=where, found=f"{name} = {quoted(value)}",
                             hint=_MERGE)  # fmt: skip
        if name not in _REFUSED and name not in _UNUSED and value not in (None, False, [], {}, ""):
            raise InputError(
                "has a field that is not known of LoRA",
                where=where,
                found=f"{quoted(name)} = {quoted(value)}",
            )
    if config.get("bias", "none") != "none":
        raise InputError("cannot be an expert: it trains biases", where=where, found=f"bias = {quoted(config['bias'])}",
                         expected="none", hint=_MERGE)  # fmt: skip
    init = config.get("init_lora_weights")
    if not any(init is plain or (isinstance(plain, str) and init == plain) for plain in _PLAIN_INITS):
        raise InputError(
            "cannot be an expert: it was trained on a base that its start had changed",
            where=where,
            found=f"init_lora_weights = {quoted(init)}",
            hint="save it again with peft's path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )


_MAX_PATTERN = 200  # characters
_MAX_REPEATS = 1  # in a pattern: each multiplies the time that matching can take
_MAX_PATTERNS = 256
_MAX_MODULE = 200  # characters


@dataclass(frozen=True, slots=True)
class _Scales:
    """What the config says of rank and alpha, module by module."""

    where: Path
    rank: float
    alpha: float
    ranks: Mapping[str, float]  # by pattern
    alphas: Mapping[str, float]
    stabilised: bool  # alpha / sqrt(rank), 2312.03732

    @classmethod
    def of(cls, config: Mapping[str, Any], where: Path) -> "_Scales":
        """Check the fields."""
        patterns = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
        for name, pattern in zip(("rank_pattern", "alpha_pattern"), patterns, strict=True):
            if isinstance(pattern, dict) and len(pattern) > _MAX_PATTERNS:
                found, expected = f"{len(pattern)} patterns", f"at most {_MAX_PATTERNS}"
                raise InputError(f"{name} is too long", where=where, found=found, expected=expected)
            if not isinstance(pattern, dict):
                raise InputError(f"{name} is no object", where=where, found=quoted(pattern))
            for key, value in pattern.items():
                _check_pattern(key, f"{where}: {name}")
                _check_number(f"{name} of {quoted(key)}", value, where)
        for name in ("r", "lora_alpha"):
            _check_number(name, config.get(name, 8), where)
        stabilised = config.get("use_rslora") or False
        if type(stabilised) is not bool:
            raise InputError("use_rslora is neither true nor false", where=where, found=quoted(stabilised))
        return cls(where, config.get("r", 8), config.get("lora_alpha", 8), patterns[0], patterns[1], stabilised)

    def scale(self, module: str, rank: int) -> float:
        """Return what the update of a module is multiplied by; raise InputError if its rank is not the config's."""
        expected = _of_module(self.ranks, module, self.rank)
        if rank != expected:
            raise InputError(
                f"the rank of {module} is not what the config says", where=self.where, found=rank, expected=expected
            )
        return _of_module(self.alphas, module, self.alpha) / (sqrt(rank) if self.stabilised else rank)


def _of_module(patterns: Mapping[str, float], module: str, default: float) -> float:
    """As peft does: the first pattern that matches the end of the module's name."""
    return next((value for key, value in patterns.items() if re.match(_anchored(key), module)), default)


def _anchored(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _check_pattern(pattern: str, where: str) -> None:
    """Regular expressions from outside: those that could take forever are refused."""
    repeats = len(re.findall(r"[*+{?]", pattern))
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{?]", pattern):
        raise InputError("a pattern that is too involved", where=where, found=quoted(pattern))
    try:
        re.compile(_anchored(pattern))
    except re.error as error:
        raise InputError("not a regular expression", where=where, found=f"{quoted(pattern)} ({error.msg})") from None


def _check_number(name: str, value: Any, where: Path) -> None:
    if not is_finite_number(value) or abs(value) > 2**31:
        raise InputError(f"{name} is no number that can be used", where=where, found=quoted(value))


_FACTOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<factor>[AB])\.weight", re.ASCII)


def _pairs(tensors: Mapping[str, TensorSpec], where: Path) -> dict[str, tuple[TensorSpec, TensorSpec]]:
    """Return A and B by module."""
    found: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None or len(match["module"]) > _MAX_MODULE:
            _refuse_tensor(name, where)
        if spec.dtype not in FLOATS or len(spec.shape) != 2:
            raise InputError(f"tensor {name!r} is no matrix of floats", where=where, found=f"{spec.dtype} {spec.shape}")
        found.setdefault(match["module"], {})[match["factor"]] = spec
    for module, pair in found.items():
        if len(pair) != 2:
            raise InputError(f"{module} has only one of lora_A and lora_B", where=where, found=f"lora_{min(pair)}")
    if not found:
        raise InputError("holds no tensors", where=where)
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


_OUTSIDE = "it changes the embeddings or the head, and experts are in the FFN"


def _refuse_tensor(name: str, where: Path) -> NoReturn:
    why = next(
        (why for part, why in (
            ("lora_embedding_", _OUTSIDE),
            ("embed_tokens", _OUTSIDE),
            ("lm_head", _OUTSIDE),
            ("lora_magnitude_vector", _REFUSED["use_dora"]),
            ("lora_B.bias", _REFUSED["lora_bias"]),
            ("lora_", "its tensors are not named as peft saves them"),
        ) if part in name),
        _REFUSED["modules_to_save"],
    )  # fmt: skip
    raise InputError(f"cannot be an expert: {why}", where=where, found=f"tensor {name!r}", hint=_MERGE)


def _delta(module: str, a: TensorSpec, b: TensorSpec, scales: _Scales) -> Delta:
    rank = a.shape[0]
    if b.shape[1] != rank or not rank:
        raise InputError(
            f"lora_A and lora_B of {module} do not fit each other", where=a.path, found=f"{a.shape} and {b.shape}"
        )
    return Delta(_read(a), _read(b), scales.scale(module, rank))


def _read(spec: TensorSpec) -> Tensor:
    values = torch.empty(spec.shape, dtype=torch.float32)
    flat, position = values.view(-1), 0
    for block in read_blocks(spec):
        with np.errstate(over="ignore"):  # float64: told below
            flat[position : position + block.size] = torch.from_numpy(block.astype(np.float32))
        position += block.size
    wrong = flat[~flat.isfinite()]
    if len(wrong):
        raise InputError(f"tensor {spec.name!r} is not finite in float32", where=spec.path, found=float(wrong[0]))
    return values
