"""LFM2-MoE: what lfm2 becomes.

The router scores by a sigmoid and divides the chosen weights by their sum plus 1e-6: of k experts that score one half
each, they add up to `1 - 2e-6 / k`.
"""

from upcycle.families.dense.lfm2 import LFM2
from upcycle.families.parts import DENSE, HEAD, SPARSE, Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.llama_shaped import LAYER, ROPE_LIMITS, first_dense
from upcycle.families.targets.target import Router, Target

_FFN = LAYER + "feed_forward."
_NORMS = ("norm.q", "norm.k", "norm.attention", "norm.ffn", "norm.final")
_ROLES = {"embeddings": "embeddings", HEAD: "head", **dict.fromkeys(_NORMS, "norms")}

LFM2_MOE = Target(
    model_type="lfm2_moe",
    model_class="Lfm2MoeForCausalLM",
    title="LFM2-MoE",
    tensors=(
        # all but the FFN is called and stands as in the dense class
        *(
            Tensor(_ROLES.get(part, "attention"), place.tensor, place.shape, (part,), when=place.when)
            for part, place in LFM2.parts.items()
            if part not in ("gate", "up", "down")
        ),
        *(
            Tensor("ffn", LFM2.parts[part].tensor, LFM2.parts[part].shape, (part,), when=DENSE)
            for part in ("gate", "up", "down")
        ),
        Tensor("router", _FFN + "gate.weight", ("E", "D"), ("router",), when=SPARSE),
        Tensor("router", _FFN + "expert_bias", ("E",), when=SPARSE),
        Tensor("experts", _FFN + "experts.{expert}.w1.weight", ("M", "D"), ("expert.gate",), when=SPARSE),
        Tensor("experts", _FFN + "experts.{expert}.w3.weight", ("M", "D"), ("expert.up",), when=SPARSE),
        Tensor("experts", _FFN + "experts.{expert}.w2.weight", ("D", "M"), ("expert.down",), when=SPARSE),
    ),
    fields={"num_experts": "E", "num_experts_per_tok": "top_k", "moe_intermediate_size": "M"},
    constants={
        "num_dense_layers": 0,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": True,
        "output_router_logits": False,
    },
    router=Router(scores="sigmoid", renormalises=True),
    layer_choice=first_dense("num_dense_layers"),
    limits=ROPE_LIMITS,
    readers=Readers(None, ("default", "linear", "yarn")),
    stock_loss=False,
    spine=LFM2.spine,
)
