"""ERNIE 4.5, its dense models: a llama that rotates neighbouring pairs of values."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, NO_WINDOW, ONE_KIND, Carry, Drop, Only, Uniform

ERNIE4_5 = replace(
    LLAMA,
    model_type="ernie4_5",
    model_class="Ernie4_5ForCausalLM",
    known="ERNIE-4.5-0.3B",
    title="ERNIE 4.5",
    readers=Readers(),  # not tried
    fields={
        **COMMON,
        "vocab_size": Carry(103424, "size"),
        "hidden_size": Carry(1024, "size"),
        "intermediate_size": Carry(3072, "size"),
        "num_hidden_layers": Carry(18, "size"),
        "num_attention_heads": Carry(16, "size"),
        "num_key_value_heads": Carry(2, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(131072, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "tie_word_embeddings": Carry(True, "flag"),
        "bos_token_id": Carry(1),
        "eos_token_id": Carry(2),
        "pad_token_id": Carry(0),
        "use_bias": Only((False,), "the experts of the target have no biases"),
        "attention_dropout": Drop("Ernie4_5ForCausalLM has no dropout, whatever it says"),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
    rope=Rope(theta=500_000.0),
)
