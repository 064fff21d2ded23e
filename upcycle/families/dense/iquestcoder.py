"""IQuest-Coder: transformers reads it as a llama with other defaults."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.readers import Readers
from upcycle.families.rules import COMMON, NO_WINDOW, ONE_KIND, Carry, Drop, Only, Uniform

_REFUSED = "IQuestCoderConfig refuses it, too"

IQUESTCODER = replace(
    LLAMA,
    model_type="iquestcoder",
    known="IQuest-Coder V1",
    other_classes=("IQuestCoderForCausalLM",),
    title="IQuest-Coder",
    readers=Readers(),  # not tried
    fields={
        **COMMON,
        "vocab_size": Carry(76800, "size"),
        "hidden_size": Carry(5120, "size"),
        "intermediate_size": Carry(27648, "size"),
        "num_hidden_layers": Carry(80, "size"),
        "num_attention_heads": Carry(40, "size"),
        "num_key_value_heads": Carry(8, "size"),
        "head_dim": Carry(128, "size"),
        "max_position_embeddings": Carry(131072, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "clip_qkv": Only((), _REFUSED),
        "use_sliding_window": Only((False,), _REFUSED),
        **dict.fromkeys(("sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
        "auto_map": Drop("names code that transformers has had in itself since 5.23"),
    },
)
