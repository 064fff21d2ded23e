"""Granite 3: a llama that multiplies embeddings, attention scores, residuals and logits by numbers of its config.

Granite-SWA has attention sinks beside, a window in some layers and a rope base for each layer.
"""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place
from upcycle.families.readers import Readers
from upcycle.families.rules import COMMON, Carry

_MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")

GRANITE = replace(
    LLAMA,
    model_type="granite",
    model_class="GraniteForCausalLM",
    title="Granite",
    known="Granite 3 dense models",
    readers=Readers(),  # not tried
    fields={
        **COMMON,
        "intermediate_size": Carry(11008, "size"),
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(2048, "size"),
        "attention_bias": Carry(False, "flag"),
        **dict.fromkeys(_MULTIPLIERS, Carry(1.0, "number")),
    },
    ignored_tensors=(),
)

GRANITE_SWA = replace(
    GRANITE,
    model_type="granite_swa",
    model_class="GraniteSWAForCausalLM",
    title="Granite-SWA",
    known="Granite Swash dense models",
    parts={**GRANITE.parts, "attention.sinks": Place("model.layers.{layer}.self_attn.sinks", ("N",))},
    fields={
        **GRANITE.fields,
        "vocab_size": Carry(100352, "size"),
        "hidden_size": Carry(2560, "size"),
        "intermediate_size": Carry(8192, "size"),
        "num_hidden_layers": Carry(24, "size"),
        "num_attention_heads": Carry(20, "size"),
        "num_key_value_heads": Carry(4, "size"),
        "max_position_embeddings": Carry(8192, "size"),
        "rms_norm_eps": Carry(1e-5, "number"),
        "tie_word_embeddings": Carry(True, "flag"),
        "bos_token_id": Carry(100257),
        "eos_token_id": Carry(100257),
        "sliding_window": Carry(128, "size that is given"),
        # of null both classes make the same: a window in all layers but every fourth; rope_theta in every layer
        "layer_types": Carry(None),
        "layer_rope_theta": Carry(None),
    },
    sizes={"N": lambda config: config["num_attention_heads"]},
)
