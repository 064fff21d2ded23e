"""Dense models that adapter experts can be attached to though no mixture of experts is known for them: names alone.

Where the modules are is all that is said here; the stock class of transformers computes. An FFN is a module of its own
that reads one tensor and gives one: OPT and BioGPT have none, BLOOM's and MPT's read the residual too, and GPT-2's
matrices are no linear layers. Each row is tried by `tests/adapt/test_any_dense.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from upcycle.families.dense.dense import Modules, Spine
from upcycle.families.dense.llama import LLAMA_ATTENTION


@dataclass(frozen=True, slots=True)
class Attachable:
    """A dense model whose modules are known."""

    title: str  # what people call it
    modules: Modules
    layer: str = Spine().layer  # what the names of a layer's modules and tensors begin with
    count: str = "num_hidden_layers"  # config field


def _gated(title: str) -> Attachable:
    """An FFN and an attention that are named as llama's are."""
    names = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    return Attachable(title, Modules(block="mlp", **names, attention=LLAMA_ATTENTION))


def _fused(title: str) -> Attachable:
    """Gate and up in one matrix, the gate first."""
    names = {"gate_up": "mlp.gate_up_proj", "down": "mlp.down_proj", "act": "activation_fn"}
    return Attachable(title, Modules(block="mlp", **names, attention=LLAMA_ATTENTION))


def _ungated(title: str, up: str = "up_proj", down: str = "down_proj", act: str = "act_fn") -> Attachable:
    """An FFN without a gate, beside the attention of llama."""
    return Attachable(title, Modules("mlp", up=f"mlp.{up}", down=f"mlp.{down}", act=act, attention=LLAMA_ATTENTION))


def _neox(title: str, layer: str, attention: str = "attention", count: str = "num_hidden_layers") -> Attachable:
    """An FFN without a gate and an attention of one matrix, named as GPT-NeoX does."""
    linear = (f"{attention}.query_key_value", f"{attention}.dense")
    names = {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h", "act": "act"}
    return Attachable(title, Modules(block="mlp", **names, attention=linear), layer, count)


def _gptj(title: str, attention: tuple[str, ...]) -> Attachable:
    names = {"up": "mlp.fc_in", "down": "mlp.fc_out", "act": "act", "dropout": "dropout"}
    return Attachable(title, Modules(block="mlp", **names, attention=attention), "transformer.h.{layer}", "n_layer")


ATTACHABLE: Mapping[str, Attachable] = MappingProxyType(
    {
        "apertus": _ungated("Apertus"),
        "codegen": _gptj("CodeGen", ("attn.qkv_proj", "attn.out_proj")),
        "cwm": _gated("Code World Model"),
        "exaone4": _gated("EXAONE 4"),
        "falcon": _neox("Falcon", "transformer.h.{layer}", attention="self_attention"),
        "gemma2": _gated("Gemma 2"),
        "gemma3_text": _gated("Gemma 3, text only"),
        "glm4": _fused("GLM-4 0414"),
        "gpt_bigcode": Attachable(
            "StarCoder, SantaCoder",
            Modules(
                block="mlp",
                up="mlp.c_fc",
                down="mlp.c_proj",
                act="act",
                dropout="dropout",
                attention=("attn.c_attn", "attn.c_proj"),
            ),
            "transformer.h.{layer}",
            "n_layer",
        ),
        "gpt_neox": _neox("GPT-NeoX, Pythia", "gpt_neox.layers.{layer}"),
        "gptj": _gptj("GPT-J", ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj")),
        "jais2": _ungated("Jais 2"),
        "ministral3": _gated("Ministral 3"),
        "nanochat": _ungated("nanochat", "fc1", "fc2", "activation_fn"),
        "nemotron": _ungated("Nemotron, Minitron"),
        "olmo": _gated("OLMo"),
        "persimmon": _neox("Persimmon", Spine().layer, attention="self_attn"),
        "phi": Attachable(
            "Phi-1, Phi-1.5, Phi-2",
            Modules(
                block="mlp",
                up="mlp.fc1",
                down="mlp.fc2",
                act="activation_fn",
                attention=(*LLAMA_ATTENTION[:3], "self_attn.dense"),
            ),
        ),
        "stablelm": _gated("StableLM"),
        "starcoder2": Attachable(
            "StarCoder2",
            Modules(
                block="mlp",
                up="mlp.c_fc",
                down="mlp.c_proj",
                act="act",
                dropout="residual_dropout",
                attention=LLAMA_ATTENTION,
            ),
        ),
    }
)
"""By `model_type`; a model that has a pair is in `families.pairs` instead."""
