"""Solar Open: a llama whose every layer has experts with sigmoid routers."""

from dataclasses import replace

from upcycle.families.targets.dots1 import DOTS1
from upcycle.families.targets.llama_shaped import CARRIED
from upcycle.families.targets.sigmoid import SIGMOID_CONSTANTS, SIGMOID_EXPERTS

SOLAR_OPEN = replace(
    DOTS1,
    model_type="solar_open",
    model_class="SolarOpenForCausalLM",
    title="Solar Open",
    tensors=(*CARRIED, *SIGMOID_EXPERTS),
    constants={**SIGMOID_CONSTANTS, "attention_bias": False},
    limits=(
        (lambda config: not config["n_shared_experts"], "llama.cpp cannot run it with a shared expert of width zero"),
        (lambda _: True, "mlx-lm refuses a config without first_k_dense_replace and partial_rotary_factor"),
    ),
    layer_choice=None,
)
