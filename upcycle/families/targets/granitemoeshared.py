"""GraniteMoeShared: the dense FFN once, as a shared expert without a gate, and small experts beside it.

`y = FFN(x) + sum_i w_i D_i(act(G_i x) * U_i x)`, which is what bottleneck adapter experts compute. Without a shared
expert (`shared_intermediate_size` 0) it is a GraniteMoe.
"""

from dataclasses import replace

from upcycle.families.parts import SHARED, Tensor
from upcycle.families.readers import Readers
from upcycle.families.targets.granitemoe import GRANITEMOE, LLAMA_CPP_REFUSES
from upcycle.families.targets.llama_shaped import LAYER, LIMITS
from upcycle.families.targets.target import SCALE

_MLP = LAYER + "shared_mlp."

SHARED_MLP = (
    Tensor("shared", _MLP + "input_linear.weight", ("2S", "D"), ("shared.gate", "shared.up"), when=SHARED),
    Tensor("shared", _MLP + "output_linear.weight", ("D", "S"), ("shared.down",), when=SHARED),
)
"""The shared expert of a layer."""

GRANITEMOESHARED = replace(
    GRANITEMOE,
    model_type="granitemoeshared",
    model_class="GraniteMoeSharedForCausalLM",
    title="GraniteMoeShared",
    tensors=(*GRANITEMOE.tensors, *SHARED_MLP),
    fields={
        "num_local_experts": "E",
        "num_experts_per_tok": "top_k",
        "intermediate_size": "M",
        "shared_intermediate_size": "S",
        "attention_multiplier": SCALE,
    },
    limits=(*LIMITS, (lambda _: True, "mlx-lm has no granitemoeshared"), *LLAMA_CPP_REFUSES),
    readers=Readers(None, ("default", "linear", "yarn"), llama_cpp_any_head=False),
)
