"""What becomes of a field of a dense model's config.json: carried over, kept, left out, or refused unless harmless."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Carry:
    """The target has the field too; it is written even when absent, since the classes' defaults differ."""

    default: Any  # of the dense class
    kind: str = "any"  # what a value is: a key of `families.config.KINDS`
    to: str | None = None  # what the target calls it; None: the same
    given: str | None = None  # a flag of the dense config without which the class takes the field for null
    means: tuple[tuple[str, str], ...] = ()  # values that the dense class takes for others: (found, written)


@dataclass(frozen=True, slots=True)
class CarryIn:
    """A setting of those layers that a list says are of one kind; null where the list is there and none of them is.

    Right together with `Uniform` on the list: the layers are all of that kind, or none is.
    """

    default: Any  # of the dense class
    field: str  # the list
    value: str  # the kind, in the list


@dataclass(frozen=True, slots=True)
class Keep:
    """The field has no influence on what the model computes; it is written as it is when present."""

    kind: str = "any"  # what a value is, if it is not null: as of Carry


@dataclass(frozen=True, slots=True)
class Drop:
    """The field is left out of the output."""

    why: str


@dataclass(frozen=True, slots=True)
class Only:
    """The target lacks the field; anything but these values (or null) is refused."""

    values: tuple[Any, ...]
    why: str
    unless: Callable[[Mapping[str, Any]], bool] | None = None  # configs in which no value of the field has an effect


@dataclass(frozen=True, slots=True)
class Uniform:
    """A list with an entry per layer; refused unless all entries are the same one of `values`."""

    values: tuple[str, ...]
    why: str
    absent: bool = True  # it may be absent or null: the class then takes all layers for one kind


@dataclass(frozen=True, slots=True)
class Each:
    """The target has the field too: a list with an entry per layer, each one of `values`."""

    values: tuple[str | int, ...]
    why: str
    carried: bool = True  # else the target says it by other fields


@dataclass(frozen=True, slots=True)
class Reaches:
    """A length that the target cannot limit; refused where it is less than the field `other`, else left out."""

    other: str
    why: str


@dataclass(frozen=True, slots=True)
class Means:
    """The target has the field too, and says the same by other values; any other value is refused."""

    default: str  # of the dense class
    values: Mapping[str, str]  # of the dense model -> of the target
    why: str


@dataclass(frozen=True, slots=True)
class Made:
    """The target's field follows from others, whether or not the dense class has one of that name."""

    make: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]  # from the dense config and what is made of its fields


@dataclass(frozen=True, slots=True)
class Same:
    """The field is what the field `other` is, and written like that; refused where it says something else."""

    other: str
    why: str


Rule = Carry | CarryIn | Keep | Drop | Only | Uniform | Each | Reaches | Means | Made | Same

KEPT = (
    # read by tokenizers, generation or training, not by the forward pass
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "decoder_start_token_id", "tokenizer_class",
    "dtype", "torch_dtype", "use_cache",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    # bookkeeping of transformers and of other programs
    "return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "chunk_size_feed_forward", "cross_attention_hidden_size", "tie_encoder_decoder", "finetuning_task", "id2label",
    "label2id", "num_labels", "prefix", "task_specific_params", "problem_type", "transformers.js_config",
    "unsloth_version", "unsloth_fixed", "unsloth_tied_fixed",
)  # fmt: skip

DROPPED = (
    "_name_or_path", "_model_name_or_path", "architectures", "model_type", "transformers_version",
    "pretraining_tp", "is_llama_config",
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_flash_attn_2_enabled", "attn_implementation", "_commit_hash",
)  # fmt: skip

NO_BIAS = "the target has no such bias"
ONE_KIND = "the target computes every layer alike"
NO_WINDOW = "the model has no sliding window"

COMMON: dict[str, Rule] = {
    **dict.fromkeys(KEPT, Keep()),
    **dict.fromkeys(DROPPED, Drop("names the dense model or the program that wrote it")),
    "vocab_size": Carry(32000, "size"),
    "hidden_size": Carry(4096, "size"),
    "num_hidden_layers": Carry(32, "size"),
    "num_attention_heads": Carry(32, "size"),
    "hidden_act": Carry("silu", "known activation"),
    "initializer_range": Carry(0.02, "number"),
    "rms_norm_eps": Carry(1e-6, "number"),
    "attention_dropout": Carry(0.0, "number or null"),
    "tie_word_embeddings": Carry(False, "flag"),
    "attention_bias": Only((False,), NO_BIAS),
    "mlp_bias": Only((False,), NO_BIAS),
    "rope_interleaved": Only((False,), "the target rotates halves, not pairs"),
    "no_rope_layers": Uniform(("1",), "the target rotates in every layer"),
    "no_rope_layer_interval": Only((), "the target rotates in every layer"),
    "is_decoder": Only((False, True), "a decoder either way"),
    "is_encoder_decoder": Only((False,), "the target is a decoder"),
    "add_cross_attention": Only((False,), "the target has no cross-attention"),
    "pruned_heads": Only(({},), "the target has all its heads"),
    "quantization_config": Only((), "quantised weights cannot be copied into experts; dequantise the model first"),
    "compression_config": Only((), "quantised weights cannot be copied into experts; dequantise the model first"),
    "auto_map": Only((), "the model needs code of its own"),
}
"""Fields that decoders with RMS norms, rotary positions and gated FFNs share, with the defaults of LlamaConfig."""
