"""Multimodal models around a language model that has a pair: it becomes a mixture, everything else stays as it is.

The stock classes here make their language model of `text_config`, whatever type it names, by AutoModel; what it is
given as images are more embeddings, so a mixture that computes what the language model did stands in for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import CheckpointError, UnsupportedError
from upcycle.families.pairs import Pair
from upcycle.families.rules import COMMON, Only
from upcycle.message import quoted


@dataclass(frozen=True, slots=True)
class Wrapper:
    """The class of a multimodal model."""

    model_type: str
    model_class: str
    title: str  # what people call it
    tied: bool = False  # the class's default of tie_word_embeddings
    mixture: "Wrapper | None" = None  # the class around the mixture, if that is another one
    sections: Mapping[str, str] = field(default_factory=dict)  # of its config: their model_type, where that tells
    ignored_tensors: tuple[str, ...] = ()  # regular expressions: what the class passes over


_QWEN3_5_MOE = Wrapper(
    "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "Qwen3.5-MoE",
    sections={"vision_config": "qwen3_5_moe_vision"},
)  # fmt: skip

WRAPPERS: Mapping[str, Wrapper] = MappingProxyType(
    {
        wrapper.model_type: wrapper
        for wrapper in (
            Wrapper("gemma4", "Gemma4ForConditionalGeneration", "Gemma 4", tied=True),
            Wrapper("mistral3", "Mistral3ForConditionalGeneration", "Mistral Small 3", tied=True),
            Wrapper("llava", "LlavaForConditionalGeneration", "LLaVA"),
            Wrapper("llava_next", "LlavaNextForConditionalGeneration", "LLaVA-NeXT"),
            Wrapper("vipllava", "VipLlavaForConditionalGeneration", "VipLlava"),
            Wrapper("internvl", "InternVLForConditionalGeneration", "InternVL", tied=True),
            Wrapper(
                "qwen3_5",
                "Qwen3_5ForConditionalGeneration",
                "Qwen3.5",
                mixture=_QWEN3_5_MOE,
                ignored_tensors=(r"mtp\..*",),  # heads that guess further tokens
            ),
            _QWEN3_5_MOE,
        )
    }
)
"""Those whose mixtures were held against them, with images, by `model_type`."""

TEXT = "text_config"
"""Config field with the language model's config."""

_HEAD = "lm_head."
_LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"model.": "language_model.model.", _HEAD: f"language_model.{_HEAD}"},
    {"model.": "model.language_model.", _HEAD: _HEAD},
)
"""How a language model's tensors begin -> how they do within a multimodal model, in the ways that are on disk."""

_DROPPED = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
_REFUSED = {
    name: rule.why
    for name, rule in COMMON.items()
    if name in ("quantization_config", "auto_map") and isinstance(rule, Only)
}
"""As in a language model by itself."""


@dataclass(frozen=True)
class Frame:
    """What is around the language model of a multimodal checkpoint."""

    wrapper: Wrapper
    config: Mapping[str, Any]  # of all of it
    layout: Mapping[str, str]
    others: tuple[TensorSpec, ...]  # tensors that are not the language model's
    headless: bool  # the checkpoint has no output head: it is tied to the embeddings

    def name(self, tensor: str) -> str:
        """Return what a tensor of the language model is called in the whole."""
        begins = next(begins for begins in self.layout if tensor.startswith(begins))
        return self.layout[begins] + tensor.removeprefix(begins)

    def around(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of the whole with that of another language model in it."""
        outer = self.wrapper.mixture or self.wrapper
        whole = {name: value for name, value in self.config.items() if name not in _DROPPED}
        whole |= {"architectures": [outer.model_class], "model_type": outer.model_type}
        for section, kind in outer.sections.items():
            whole[section] = {**(whole.get(section) or {}), "model_type": kind}
        whole[TEXT] = {name: value for name, value in text.items() if name != "architectures"}
        whole["dtype"] = whole["torch_dtype"] = text["dtype"]
        if self.headless and not text["tie_word_embeddings"]:  # the mixture has a head of its own
            whole["tie_word_embeddings"] = False
        return whole

    def check(self, pair: Pair) -> None:
        """Raise UnsupportedError for a pair that computes other embeddings: those of images do not pass through it."""
        if "embeddings" in pair.changes:
            raise UnsupportedError(
                f"a {pair.target.model_type} takes embeddings that are scaled, and those of images are not",
                found=f"a {pair.dense.model_type} in a {self.wrapper.model_type}",
            )


def unwrap(checkpoint: Checkpoint) -> tuple[Checkpoint, Frame | None]:
    """Return the language model of a checkpoint under its own names, and what is around it: None for a language model.

    Raises UnsupportedError for what is around it and cannot stay, CheckpointError where there is no language model.
    """
    config, wrapper = checkpoint.config, WRAPPERS.get(str(checkpoint.config.get("model_type")))
    if wrapper is None or not isinstance(config.get(TEXT), dict):
        return checkpoint, None
    for name, why in _REFUSED.items():
        if config.get(name) is not None:
            raise UnsupportedError(
                f"config.json: {name}: {why}", where=checkpoint.directory, found=quoted(config[name])
            )
    if config.get("architectures") not in (None, [wrapper.model_class]):
        raise UnsupportedError(
            "the checkpoint holds another kind of model", found=quoted(config["architectures"]),
            expected=wrapper.model_class,
        )  # fmt: skip
    layout = _layout_of(checkpoint)
    own = {name: _own_name(name, layout) for name in checkpoint.tensors}
    headers = {}
    for file, header in checkpoint.headers.items():
        named = ((own[name], spec) for name, spec in header.tensors.items())
        headers[file] = replace(header, tensors={name: replace(spec, name=name) for name, spec in named if name})
    ignored = re.compile("|".join(wrapper.ignored_tensors) or r"(?!)")
    others = tuple(
        spec for name, spec in checkpoint.tensors.items() if own[name] is None and not ignored.fullmatch(name)
    )
    headless = not any(name.startswith(layout[_HEAD]) for name in checkpoint.tensors)
    frame = Frame(wrapper, config, layout, others, headless)
    return Checkpoint(checkpoint.directory, _text_config(frame), headers), frame


def language_model(checkpoint: Checkpoint) -> Checkpoint:
    """Return the language model of a checkpoint under its own names, or the checkpoint itself if that is all it is."""
    return unwrap(checkpoint)[0]


def _text_config(frame: Frame) -> dict[str, Any]:
    """Return the language model's config with what only the whole one says."""
    text: dict[str, Any] = dict(frame.config[TEXT])
    word = frame.config.get("dtype") or frame.config.get("torch_dtype")
    if word and not (text.get("dtype") or text.get("torch_dtype")):
        text["dtype"] = word
    if frame.headless and frame.config.get("tie_word_embeddings", frame.wrapper.tied):
        text["tie_word_embeddings"] = True
    return text


def _layout_of(checkpoint: Checkpoint) -> Mapping[str, str]:
    for layout in _LAYOUTS:
        if any(name.startswith(layout["model."]) for name in checkpoint.tensors):
            return layout
    raise CheckpointError(
        "the multimodal model has no language model", where=checkpoint.directory,
        expected=" or ".join(f"tensors whose names begin with {layout['model.']}" for layout in _LAYOUTS),
    )  # fmt: skip


def _own_name(name: str, layout: Mapping[str, str]) -> str | None:
    """Return what the language model by itself calls a tensor; None where it is not one of its."""
    for own, within in layout.items():
        if name.startswith(within):
            return own + name.removeprefix(within)
    return None
