"""GLM-4.5: sigmoid routers, biases of queries, keys and values, norms of queries and keys, partly rotated heads.

Each of the last three may be there or not, so that llama, qwen2, qwen3 and phi3 all fit.
"""

from upcycle.families.parts import Tensor, When
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, NEEDS_SHARED, first_dense
from upcycle.families.targets.sigmoid import SIGMOID_CONSTANTS, SIGMOID_EITHER, SIGMOID_FIELDS, TWO_BEST
from upcycle.families.targets.target import Router, Target

_NORMED = When("use_qk_norm", (True,))

GLM4_MOE = Target(
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
    fields=SIGMOID_FIELDS,
    constants={
        **SIGMOID_CONSTANTS,
        "attention_bias": False,
        "use_qk_norm": False,
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
    },
    shared_like="experts",
    router=Router(scores="sigmoid", renormalises=True),
    limits=(NEEDS_SHARED,),
    stock_loss=False,
    least_experts=TWO_BEST,
    layer_choice=first_dense("first_k_dense_replace"),
    partial_rotary=True,
)
