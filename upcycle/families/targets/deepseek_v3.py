"""DeepSeek-V3: sigmoid routers, and attention whose keys and values are expanded from one small latent vector.

`sizes` of the dense model has the letters of that attention: see `families/dense/youtu.py`.
"""

from dataclasses import replace

from upcycle.families.parts import Tensor, When
from upcycle.families.targets.dots1 import DOTS1
from upcycle.families.targets.llama_shaped import CARRIED, LAYER
from upcycle.families.targets.sigmoid import SIGMOID_EITHER

_ATTENTION = LAYER + "self_attn."
_LATENT = _ATTENTION + "kv_a_proj_with_mqa."
_BIASED = When("attention_bias", (True,))

DEEPSEEK_V3 = replace(
    DOTS1,
    model_type="deepseek_v3",
    model_class="DeepseekV3ForCausalLM",
    title="DeepSeek-V3",
    tensors=(
        *(tensor for tensor in CARRIED if tensor.role != "attention"),
        Tensor("attention", _ATTENTION + "q_a_proj.weight", ("A", "D"), ("attention.q.latent",)),
        Tensor("attention", _ATTENTION + "q_a_proj.bias", ("A",), ("attention.q.latent.bias",), when=_BIASED),
        Tensor("norms", _ATTENTION + "q_a_layernorm.weight", ("A",), ("norm.q.latent",)),
        Tensor("attention", _ATTENTION + "q_b_proj.weight", ("N", "A"), ("attention.q",)),
        Tensor("attention", _LATENT + "weight", ("C+R", "D"), ("attention.kv.latent",)),
        Tensor("attention", _LATENT + "bias", ("C+R",), ("attention.kv.latent.bias",), when=_BIASED),
        Tensor("norms", _ATTENTION + "kv_a_layernorm.weight", ("C",), ("norm.kv.latent",)),
        Tensor("attention", _ATTENTION + "kv_b_proj.weight", ("B", "C"), ("attention.kv",)),
        Tensor("attention", _ATTENTION + "o_proj.weight", ("D", "O"), ("attention.o",)),
        Tensor("attention", _ATTENTION + "o_proj.bias", ("D",), ("attention.o.bias",), when=_BIASED),
        *SIGMOID_EITHER,
    ),
    constants={**DOTS1.constants, "num_nextn_predict_layers": 0, "pretraining_tp": 1},
)
