"""Gemma 4 with its MoE block: the dense FFN stays, experts stand beside it, and each of the two has a norm.

`y = N(N1(FFN(N0 x)) + N2(sum_i w_i E_i(N0' x)))`, where N is the norm that the dense model has after its FFN. With
experts that are copies of the FFN, N0' = N0 and ones as the weights of N1 and N2, that is `N(2 N1(FFN(N0 x)))`. N takes
any length of its input away, but for eps:

    h / sqrt(r^2 + eps)                                  the dense norm of an FFN's output h of root mean square r
    h / sqrt(r^2 + eps (r^2 + eps) / 4)                  the mixture's, larger by eps / (2 r^2) - eps / 8 of itself
"""

from math import sqrt

from upcycle.families.dense.gemma4_text import LAYER, TENSORS
from upcycle.families.parts import Tensor
from upcycle.families.targets.target import Config, Router, Target

EXACT = 1e-5
"""Relative difference that counts as exact: `verify`'s tolerance of logits."""


def _nearly(config: Config) -> str:
    """Return at which root mean square of the FFN's outputs the norms' eps is felt: where eps / (2 r^2) is EXACT."""
    eps = config["rms_norm_eps"]
    enough = f"{sqrt(eps / 2 / EXACT):.2g}"
    return (
        "Gemma 4 normalises what its FFN and its experts give once more: that is the dense model's output but for the "
        f"norms' eps ({eps:g}), and exact where the FFN's outputs have a root mean square of {enough} or more; verify "
        "measures it"
    )


GEMMA4_TEXT_MOE = Target(
    model_type="gemma4_text",
    model_class="Gemma4ForCausalLM",
    title="Gemma 4",
    tensors=(
        *TENSORS,
        Tensor("norms", LAYER + "pre_feedforward_layernorm_2.weight", ("D",), ("norm.ffn",)),
        Tensor("norms", LAYER + "post_feedforward_layernorm_1.weight", ("D",), fill=1),
        Tensor("norms", LAYER + "post_feedforward_layernorm_2.weight", ("D",), fill=1),
        Tensor("router", LAYER + "router.proj.weight", ("E", "D"), ("router",)),
        Tensor("router", LAYER + "router.scale", ("D",), fill=1),
        Tensor("router", LAYER + "router.per_expert_scale", ("E",), fill=1),
        Tensor("experts", LAYER + "experts.gate_up_proj", ("E", "2M", "D"), ("expert.gate", "expert.up")),
        Tensor("experts", LAYER + "experts.down_proj", ("E", "D", "M"), ("expert.down",)),
    ),
    fields={"num_experts": "E", "top_k_experts": "top_k", "moe_intermediate_size": "M"},
    constants={"enable_moe_block": True},
    router=Router(scores="softmax", renormalises=True),
    limits=(
        (
            lambda config: bool(config.get("per_layer_config")) and "global_head_dim" not in config,
            "llama.cpp and mlx-lm know heads of full attention only by global_head_dim, not by per_layer_config",
        ),
        (lambda _: True, "llama.cpp was off by up to 0.3 in the log-probabilities of small models"),
    ),
    nearly=_nearly,
    keeps_ffn="it normalises the FFN's output and the experts' by themselves",
)
