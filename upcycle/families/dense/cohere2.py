"""Cohere2 (Command R7B, Command A): attention and FFN read one norm side by side; layers with a window rotate pairs."""

from dataclasses import replace

from upcycle.families.dense.llama import LLAMA
from upcycle.families.derived import one_in
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry, Drop, Each, Keep, Only

COHERE2 = replace(
    LLAMA,
    model_type="cohere2",
    model_class="Cohere2ForCausalLM",
    title="Cohere2",
    known="Command R7B, Command A, Tiny Aya",
    readers=Readers(),  # not tried
    parts={name: place for name, place in LLAMA.parts.items() if name != "norm.ffn"},
    fields={
        **COMMON,
        "vocab_size": Carry(256000, "size"),
        "hidden_size": Carry(8192, "size"),
        "intermediate_size": Carry(22528, "size"),
        "num_hidden_layers": Carry(40, "size"),
        "num_attention_heads": Carry(64, "size"),
        "num_key_value_heads": Carry(None, "size"),
        "max_position_embeddings": Carry(8192, "size"),
        "tie_word_embeddings": Carry(True, "flag"),
        "attention_bias": Carry(False, "flag"),
        "layer_norm_eps": Carry(1e-5, "number"),
        "rms_norm_eps": Drop("the class has layer norms, which subtract the mean"),
        "logit_scale": Carry(0.0625, "number"),
        "sliding_window": Carry(4096, "size that is given"),
        "layer_types": Each(
            ("sliding_attention", "full_attention"), "expected sliding_attention or full_attention of each layer"
        ),
        "sliding_window_pattern": Keep(),
        # of published configs: what the class does in any case
        "use_parallel_block": Only((True,), "the class reads one norm for attention and FFN"),
        "position_embedding_type": Only(("rope_gptj",), "the class rotates pairs"),
        "rope_interleaved": Drop("the class rotates pairs, whatever this says"),
        "_sliding_window_pattern": Drop("is in layer_types"),
        "cache_implementation": Drop("says how a program holds keys and values"),
    },
    rope=Rope(theta=10_000.0, needs_length=True),
    derived={"layer_types": one_in("sliding_window_pattern", 4, "full_attention", "sliding_attention")},
)
