"""Solar Open: a llama whose every layer has experts with sigmoid routers."""

from upcycle.families.targets.llama_shaped import CARRIED
from upcycle.families.targets.sigmoid import SIGMOID_CONSTANTS, SIGMOID_EXPERTS, SIGMOID_FIELDS, TWO_BEST
from upcycle.families.targets.target import Router, Target

SOLAR_OPEN = Target(
    model_type="solar_open",
    model_class="SolarOpenForCausalLM",
    title="Solar Open",
    tensors=(*CARRIED, *SIGMOID_EXPERTS),
    fields=SIGMOID_FIELDS,
    constants={**SIGMOID_CONSTANTS, "attention_bias": False},
    shared_like="experts",
    router=Router(scores="sigmoid", renormalises=True),
    limits=(
        (lambda _: True, "llama.cpp cannot run it with a shared expert of width zero"),
        (lambda _: True, "mlx-lm refuses a config without first_k_dense_replace and partial_rotary_factor"),
    ),
    stock_loss=False,
    least_experts=TWO_BEST,
)
