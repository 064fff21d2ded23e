"""ERNIE 4.5 MoE: what a dense ERNIE 4.5 becomes; its router adds a bias to the scores by which it chooses."""

from upcycle.families.parts import SPARSE, Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.llama_shaped import CARRIED, LAYER, MLP_EITHER, ROPE_LIMITS
from upcycle.families.targets.target import LayerChoice, Router, Target


def _spaced(sparse: tuple[bool, ...]) -> dict[str, int] | None:
    """Return the fields of a choice: of the layers from `start` to `end`, those whose number + 1 is a multiple."""
    chosen = [layer for layer, experts in enumerate(sparse) if experts]
    interval = chosen[1] - chosen[0] if len(chosen) > 1 else 1
    fields = {
        "moe_layer_start_index": chosen[0],
        "moe_layer_end_index": chosen[-1],
        "moe_layer_interval": interval,
    }
    regular = chosen == list(range(chosen[0], chosen[-1] + 1, interval))
    return fields if regular and (chosen[0] + 1) % interval == 0 else None


ERNIE4_5_MOE = Target(
    model_type="ernie4_5_moe",
    model_class="Ernie4_5_MoeForCausalLM",
    title="ERNIE 4.5 MoE",
    tensors=(
        *CARRIED,
        *MLP_EITHER,
        # zero: added to the scores when experts are chosen, not when they are weighed
        Tensor("router", LAYER + "mlp.moe_statics.e_score_correction_bias", ("1", "E"), when=SPARSE),
    ),
    fields={
        "moe_num_experts": "E",
        "num_experts": "E",  # beside the canonical names: what other tools read
        "moe_k": "top_k",
        "num_experts_per_tok": "top_k",
        "moe_intermediate_size": "M",
    },
    constants={
        "moe_num_shared_experts": 0,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
        "use_bias": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    router=Router(scores="softmax", renormalises=True),
    layer_choice=LayerChoice("a range, as last:8 or 4-7, or every:N", _spaced),
    limits=ROPE_LIMITS,
    readers=Readers(None, ("default", "linear", "yarn")),
)
