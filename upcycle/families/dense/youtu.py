"""Youtu-LLM: attention of DeepSeek-V3 (multi-head latent attention, 2405.04434, section 2.1) and a dense FFN.

Its letters, beside those of `families.parts`: A the queries' latent vector, C that of keys and values, R the part of a
key that is rotated, the same for all heads, N all heads' queries, B their keys without that part and their values, O
their values.
"""

from dataclasses import replace

from upcycle.families.dense.dense import Modules
from upcycle.families.dense.llama import LLAMA
from upcycle.families.parts import Place, When
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry, Drop, Keep, Same

_ATTENTION = "model.layers.{layer}.self_attn."
_BIASED = When("attention_bias", (True,))
_SIZE = "size that is given"

YOUTU = replace(
    LLAMA,
    model_type="youtu",
    model_class="YoutuForCausalLM",
    known="Youtu-LLM-2B",
    title="Youtu-LLM",
    readers=Readers(),  # not tried
    parts={
        **{part: place for part, place in LLAMA.parts.items() if not part.startswith("attention.")},
        "attention.q.latent": Place(_ATTENTION + "q_a_proj.weight", ("A", "D")),
        "attention.q.latent.bias": Place(_ATTENTION + "q_a_proj.bias", ("A",), when=_BIASED),
        "norm.q.latent": Place(_ATTENTION + "q_a_layernorm.weight", ("A",)),
        "attention.q": Place(_ATTENTION + "q_b_proj.weight", ("N", "A")),
        "attention.kv.latent": Place(_ATTENTION + "kv_a_proj_with_mqa.weight", ("C+R", "D")),
        "attention.kv.latent.bias": Place(_ATTENTION + "kv_a_proj_with_mqa.bias", ("C+R",), when=_BIASED),
        "norm.kv.latent": Place(_ATTENTION + "kv_a_layernorm.weight", ("C",)),
        "attention.kv": Place(_ATTENTION + "kv_b_proj.weight", ("B", "C")),
        "attention.o": Place(_ATTENTION + "o_proj.weight", ("D", "O")),
        "attention.o.bias": Place(_ATTENTION + "o_proj.bias", ("D",), when=_BIASED),
    },
    fields={
        **COMMON,
        "vocab_size": Carry(128256, "size"),
        "hidden_size": Carry(2048, "size"),
        "intermediate_size": Carry(6144, "size"),
        "num_attention_heads": Carry(16, "size"),
        "num_key_value_heads": Carry(16, "size"),
        "max_position_embeddings": Carry(131072, "size"),
        "q_lora_rank": Carry(1536, _SIZE),
        "kv_lora_rank": Carry(512, _SIZE),
        "qk_rope_head_dim": Carry(64, _SIZE),
        "qk_nope_head_dim": Carry(128, _SIZE),
        "v_head_dim": Carry(128, _SIZE),
        "head_dim": Same("qk_rope_head_dim", "the rotary positions of this attention are as wide as qk_rope_head_dim"),
        "qk_head_dim": Keep(),  # the sum of two fields, which both classes take
        "rope_interleave": Carry(True, "flag"),
        "attention_bias": Carry(False, "flag"),
        "initializer_range": Carry(2.0 / (5.0 * 2048) ** 0.5, "number or null"),  # of a hidden size of 2048
        "embedding_initializer_range": Drop("concerns the drawing of new weights"),
        "tie_word_embeddings": Carry(True, "flag"),
        "bos_token_id": Carry(128000),
        "eos_token_id": Carry(128001),
    },
    rope=Rope(theta=10_000.0),
    modules=Modules(
        block="mlp",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        attention=(
            "self_attn.q_a_proj",
            "self_attn.q_b_proj",
            "self_attn.kv_a_proj_with_mqa",
            "self_attn.kv_b_proj",
            "self_attn.o_proj",
        ),
    ),
    sizes={
        "A": lambda config: config["q_lora_rank"],
        "C": lambda config: config["kv_lora_rank"],
        "R": lambda config: config["qk_rope_head_dim"],
        "N": lambda config: config["num_attention_heads"] * (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]),
        "B": lambda config: config["num_attention_heads"] * (config["qk_nope_head_dim"] + config["v_head_dim"]),
        "O": lambda config: config["num_attention_heads"] * config["v_head_dim"],
    },
    cached=("attention.kv.latent",),
)
