"""GLM-4.5: sigmoid routers, biases of queries, keys and values, norms of queries and keys, partly rotated heads.

Each of the last three may be there or not, so that llama, qwen2, qwen3 and phi3 all fit.
"""

from dataclasses import replace

from upcycle.families.parts import Tensor, When
from upcycle.families.targets.dots1 import DOTS1
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER
from upcycle.families.targets.sigmoid import SIGMOID_EITHER

_NORMED = When("use_qk_norm", (True,))

GLM4_MOE = replace(
    DOTS1,
    model_type="glm4_moe",
    model_class="Glm4MoeForCausalLM",
    title="GLM-4-MoE",
    tensors=(
        *CARRIED,
        *BIASES[:3],  # the output projection has none
        Tensor("norms", LAYER + "self_attn.q_norm.weight", ("H",), ("norm.q",), when=_NORMED),
        Tensor("norms", LAYER + "self_attn.k_norm.weight", ("H",), ("norm.k",), when=_NORMED),
        *SIGMOID_EITHER,
    ),
    constants={**DOTS1.constants, "attention_bias": False, "use_qk_norm": False, "num_nextn_predict_layers": 0},
    partial_rotary=True,
)
