"""dots.llm1: qwen3's attention, sliding windows of some layers too, and sigmoid routers."""

from upcycle.families.parts import Tensor
from upcycle.families.targets.llama_shaped import BIASES, CARRIED, LAYER, NEEDS_SHARED, first_dense
from upcycle.families.targets.sigmoid import SIGMOID_CONSTANTS, SIGMOID_EITHER, SIGMOID_FIELDS, TWO_BEST
from upcycle.families.targets.target import Router, Target

DOTS1 = Target(
    model_type="dots1",
    model_class="Dots1ForCausalLM",
    title="dots.llm1",
    tensors=(
        *CARRIED,
        *BIASES,
        Tensor("norms", LAYER + "self_attn.q_norm.weight", ("H",), ("norm.q",)),
        Tensor("norms", LAYER + "self_attn.k_norm.weight", ("H",), ("norm.k",)),
        *SIGMOID_EITHER,
    ),
    fields=SIGMOID_FIELDS,
    constants={**SIGMOID_CONSTANTS, "first_k_dense_replace": 0},
    shared_like="experts",
    router=Router(scores="sigmoid", renormalises=True),
    limits=(NEEDS_SHARED,),
    stock_loss=False,
    least_experts=TWO_BEST,
    layer_choice=first_dense("first_k_dense_replace"),
)
