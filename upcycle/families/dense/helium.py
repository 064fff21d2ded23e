"""Helium: a llama that rotates neighbouring pairs of values."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, NO_WINDOW, ONE_KIND, Carry, Drop, Uniform

HELIUM = replace(
    LLAMA,
    model_type="helium",
    model_class="HeliumForCausalLM",
    known="Helium 1 2B",
    title="Helium",
    readers=Readers(),  # not tried
    # its output projection has no bias where the others have one
    parts={name: place for name, place in LLAMA.parts.items() if name != "attention.o.bias"},
    fields={
        **COMMON,
        "vocab_size": Carry(48000, "size"),
        "hidden_size": Carry(2560, "size"),
        "intermediate_size": Carry(7040, "size"),
        "num_hidden_layers": Carry(24, "size"),
        "num_attention_heads": Carry(20, "size"),
        "num_key_value_heads": Carry(20, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(4096, "size"),
        "rms_norm_eps": Carry(1e-8, "number"),
        "bos_token_id": Carry(1),
        "eos_token_id": Carry(2),
        "pad_token_id": Carry(3),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
    rope=Rope(theta=100_000.0),
)
