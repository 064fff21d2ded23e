"""Phi-3 and Phi-4: a llama that keeps queries, keys and values in one matrix, gate and up projections in another."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, NO_BIAS, Carry, Drop, Only

_LAYER = "model.layers.{layer}."
_QKV = _LAYER + "self_attn.qkv_proj.weight"
_GATE_UP = _LAYER + "mlp.gate_up_proj.weight"
_ROTATES = "the target has no such setting"

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    model_class="Phi3ForCausalLM",
    known="Phi-3, Phi-4",
    title="Phi-3",
    readers=Readers(),  # not tried
    parts={
        **LLAMA.parts,
        "attention.q": Place(_QKV, ("Q+2K", "D"), ("0", "Q")),
        "attention.k": Place(_QKV, ("Q+2K", "D"), ("Q", "Q+K")),
        "attention.v": Place(_QKV, ("Q+2K", "D"), ("Q+K", "Q+2K")),
        "gate": Place(_GATE_UP, ("2F", "D"), ("0", "F")),
        "up": Place(_GATE_UP, ("2F", "D"), ("F", "2F")),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(32064, "size"),
        "hidden_size": Carry(3072, "size"),
        "intermediate_size": Carry(8192, "size"),
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(4096, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "sliding_window": Carry(None, "size"),
        "bos_token_id": Carry(1),
        "eos_token_id": Carry(32000),
        "pad_token_id": Carry(32000),
        **dict.fromkeys(("resid_pdrop", "embd_pdrop"), Only((0, 0.0), "the target has no such dropout")),
        **dict.fromkeys(("full_attn_mod", "interpolate_factor"), Only((1,), _ROTATES)),
        "lm_head_bias": Only((False,), NO_BIAS),
        "auto_map": Drop("names code that transformers has had in itself since 4.41"),
    },
    # Phi3Config takes yarn for longrope and knows no other scaling; of the old name su it makes an error (5.23)
    rope=Rope(theta=10_000.0, aliases={"yarn": "longrope"}, only=("longrope",), original_length=4096),
    modules=None,
)
