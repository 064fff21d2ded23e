"""Gemma, the first: a llama whose norms count from one and whose embeddings are scaled by the root of their width."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.readers import Readers
from upcycle.families.rules import COMMON, NO_WINDOW, ONE_KIND, Carry, Drop, Only, Uniform

GEMMA = replace(
    LLAMA,
    model_type="gemma",
    model_class="GemmaForCausalLM",
    known="Gemma 1, CodeGemma",
    title="Gemma",
    readers=Readers(),  # not tried
    fields={
        **COMMON,
        "vocab_size": Carry(256000, "size"),
        "hidden_size": Carry(3072, "size"),
        "intermediate_size": Carry(24576, "size"),
        "num_hidden_layers": Carry(28, "size"),
        "num_attention_heads": Carry(16, "size"),
        "num_key_value_heads": Carry(16, "size"),
        "head_dim": Carry(256, "size"),
        "max_position_embeddings": Carry(8192, "size"),
        # GemmaConfig: the first releases say gelu and mean its approximation
        "hidden_act": Carry("gelu_pytorch_tanh", "known activation", means=(("gelu", "gelu_pytorch_tanh"),)),
        "hidden_activation": Only(("gelu_pytorch_tanh",), "transformers 4 computes this, transformers 5 hidden_act"),
        "tie_word_embeddings": Carry(True, "flag"),
        "bos_token_id": Carry(2),
        "eos_token_id": Carry(1),
        "pad_token_id": Carry(0),
        "use_bidirectional_attention": Only((False,), "in the target a token attends only to those before it"),
        **dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"), Drop(NO_WINDOW)),
        "layer_types": Uniform(("full_attention",), ONE_KIND),
    },
)
