"""GLM-4: fused gate and up projections, biases of queries, keys and values; half of each head is rotated, in pairs."""

from dataclasses import replace

from upcycle.families.dense.dense import Modules
from upcycle.families.dense.llama import LLAMA, LLAMA_ATTENTION
from upcycle.families.dense.phi3 import PHI3
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry

GLM = replace(
    LLAMA,
    model_type="glm",
    model_class="GlmForCausalLM",
    title="GLM-4",
    known="GLM-4 9B",
    readers=Readers(),  # not tried
    parts={
        **{name: place for name, place in LLAMA.parts.items() if name != "attention.o.bias"},
        "gate": PHI3.parts["gate"],
        "up": PHI3.parts["up"],
    },
    fields={
        **COMMON,
        "vocab_size": Carry(151552, "size"),
        "intermediate_size": Carry(13696, "size"),
        "num_hidden_layers": Carry(40, "size"),
        "num_key_value_heads": Carry(2, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(131072, "size"),
        "rms_norm_eps": Carry(1.5625e-7, "number"),
        "attention_bias": Carry(True, "flag"),
        "pad_token_id": Carry(151329),
        "eos_token_id": Carry([151329, 151336, 151338]),
        "bos_token_id": Carry(None),
    },
    rope=Rope(theta=10_000.0, rotated=0.5, partial=True),
    modules=Modules(
        block="mlp",
        gate_up="mlp.gate_up_proj",
        down="mlp.down_proj",
        act="activation_fn",
        attention=LLAMA_ATTENTION,
    ),
    ignored_tensors=(),
)
