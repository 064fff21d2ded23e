"""Dense models that no mixture of experts of transformers computes, each with what stops the nearest ones.

Held against transformers 5.23. `upcycle attach` puts adapter experts into all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class WithoutTarget:
    """A dense architecture without an exact target."""

    title: str  # what people call it
    why: str  # follows a colon


_UNGATED = (
    "its FFN has no gate; of the decoders only Nemotron-H has such experts, and its attention does not rotate positions"
)
_PARALLEL = "attention and FFN both read the layer's input, and the FFN has no gate, which experts have"

WITHOUT_TARGET: Mapping[str, WithoutTarget] = MappingProxyType(
    {
        "apertus": WithoutTarget("Apertus", _UNGATED),
        "codegen": WithoutTarget("CodeGen", _PARALLEL),
        "cwm": WithoutTarget(
            "CWM", "only some layers have a sliding window (layer_types); all layers of a Mixtral have it, or none has"
        ),
        "exaone4": WithoutTarget(
            "EXAONE 4",
            "norms stand after attention and FFN, and queries and keys are normalised head by head; FlexOlmo "
            "normalises them over all heads, and EXAONE MoE has its norms before attention and FFN",
        ),
        "falcon": WithoutTarget("Falcon", _PARALLEL),
        "gemma2": WithoutTarget(
            "Gemma 2",
            "attention scores are capped (attn_logit_softcapping); Gemma 4, whose norms stand in the same places, does "
            "not cap them, and normalises values",
        ),
        "gemma3_text": WithoutTarget(
            "Gemma 3, text only", "Gemma 4, whose norms stand in the same places, also normalises values"
        ),
        "glm4": WithoutTarget(
            "GLM-4 0414",
            "norms stand before and after attention and FFN, and neighbouring pairs of values are rotated; GLM-4.5 MoE "
            "has norms only before them, and rotates halves against each other",
        ),
        "gpt_bigcode": WithoutTarget(
            "StarCoder, SantaCoder", "positions are learned vectors, and the FFN has no gate, which experts have"
        ),
        "gpt_neox": WithoutTarget("GPT-NeoX, Pythia", _PARALLEL),
        "gptj": WithoutTarget("GPT-J", _PARALLEL),
        "jais2": WithoutTarget("Jais 2", _UNGATED),
        "ministral3": WithoutTarget(
            "Ministral 3", "queries are scaled by their position (llama_4_scaling_beta), which Mixtral does not do"
        ),
        "nanochat": WithoutTarget("nanochat", _UNGATED),
        "nemotron": WithoutTarget("Nemotron, Minitron", _UNGATED),
        "olmo": WithoutTarget(
            "OLMo",
            "its norms subtract the mean and have no weights; OLMoE has RMS norms, and norms of queries and keys",
        ),
        "persimmon": WithoutTarget("Persimmon", _UNGATED),
        "phi": WithoutTarget("Phi-1, Phi-1.5, Phi-2", _PARALLEL),
        "stablelm": WithoutTarget(
            "StableLM",
            "its norms subtract the mean (LayerNorm); PhiMoE has such norms, but weighs its experts by weights that do "
            "not sum to one",
        ),
        "starcoder2": WithoutTarget("StarCoder2", _UNGATED),
    }
)
"""By `model_type`. No row has a pair in `families.pairs`."""

_T5 = MappingProxyType({"t5": ("T5", "relu"), "mt5": ("mT5", "gated-gelu"), "umt5": ("UMT5", "gated-gelu")})
"""Models with T5's FFN, by `model_type`: what people call them, and their class's default of feed_forward_proj."""


def encoder_decoder(config: Mapping[str, Any]) -> str | None:
    """Return why no mixture is made of an encoder-decoder, a sentence; None for the config of any other model."""
    model_type = config.get("model_type")
    title, projection = _T5.get(model_type, (None, "")) if isinstance(model_type, str) else (None, "")
    if title is None and config.get("is_encoder_decoder") is not True:
        return None
    why = f"{title or 'the model'} is an encoder and a decoder, and upcycle works on decoders alone"
    if title and str(config.get("feed_forward_proj", projection)).startswith("gated"):
        return f"{why}; Switch Transformers, T5's mixture, could not compute this one: its experts have no gate"
    if model_type == "t5":
        return f"{why}; Switch Transformers can compute the same (docs/experiments.md), but upcycle does not write it"
    return why
