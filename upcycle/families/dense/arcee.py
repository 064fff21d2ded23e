"""Arcee (AFM): a llama whose FFN has no gate and squares what its ReLU lets through.

`relu(W x)^2 = relu(W x) * (W x)`: a gated FFN whose gate is its up projection, with the activation relu.
"""

from dataclasses import replace

from upcycle.families.dense.dense import Modules
from upcycle.families.dense.llama import LLAMA, LLAMA_ATTENTION
from upcycle.families.readers import Readers
from upcycle.families.rules import Carry, Means

ARCEE = replace(
    LLAMA,
    model_type="arcee",
    model_class="ArceeForCausalLM",
    title="Arcee",
    known="AFM 4.5B",
    readers=Readers(),  # not tried
    parts={**LLAMA.parts, "gate": LLAMA.parts["up"]},
    fields={
        **LLAMA.fields,
        "hidden_size": Carry(2560, "size"),
        "intermediate_size": Carry(18432, "size"),
        "max_position_embeddings": Carry(4096, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "bos_token_id": Carry(128000),
        "eos_token_id": Carry(128001),
        "hidden_act": Means(
            "relu2",
            {"relu2": "relu"},
            "an FFN without a gate is expressed by a gated one only where it squares its ReLU",
        ),
    },
    modules=Modules("mlp", up="mlp.up_proj", down="mlp.down_proj", attention=LLAMA_ATTENTION),
    ignored_tensors=(),
)
