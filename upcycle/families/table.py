"""The rows: which dense model becomes which MoE.

Facts checked against transformers' own classes by `tests/test_families.py`: the default of every carried field, and
the parity of each pair with random weights.
"""

from collections.abc import Mapping
from types import MappingProxyType

from upcycle.families.family import Carry, Drop, Family, Keep, Names, Only, Rule, TensorRow, Uniform

LLAMA_TENSORS = (
    TensorRow("embeddings", "model.embed_tokens.weight", ("V", "D"), "model.embed_tokens.weight"),
    *(
        TensorRow("attention", name, shape, name)
        for name, shape in (
            ("model.layers.{layer}.self_attn.q_proj.weight", ("Q", "D")),
            ("model.layers.{layer}.self_attn.k_proj.weight", ("K", "D")),
            ("model.layers.{layer}.self_attn.v_proj.weight", ("K", "D")),
            ("model.layers.{layer}.self_attn.o_proj.weight", ("D", "Q")),
        )
    ),
    *(
        TensorRow("norms", name, ("D",), name)
        for name in (
            "model.layers.{layer}.input_layernorm.weight",
            "model.layers.{layer}.post_attention_layernorm.weight",
            "model.norm.weight",
        )
    ),
    TensorRow("head", "lm_head.weight", ("V", "D"), "lm_head.weight", tied_optional=True),
)
"""What llama-shaped models share with their MoE counterparts."""

LLAMA_NAMES = Names(
    block="mlp",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
)

MIXTRAL_EXPERTS = (
    TensorRow("router", "model.layers.{layer}.block_sparse_moe.gate.weight", ("E", "D")),
    *(
        TensorRow(
            "experts",
            f"model.layers.{{layer}}.block_sparse_moe.experts.{{expert}}.{target}.weight",
            shape,
            f"model.layers.{{layer}}.mlp.{source}.weight",
        )
        for target, source, shape in (
            ("w1", "gate_proj", ("F", "D")),
            ("w3", "up_proj", ("F", "D")),
            ("w2", "down_proj", ("D", "F")),
        )
    ),
)
"""The SwiGLU feed-forward network under Mixtral's names."""

_KEPT = (
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

_DROPPED = (
    "_name_or_path", "_model_name_or_path", "architectures", "model_type", "transformers_version",
    "pretraining_tp", "is_llama_config",
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "_flash_attn_2_enabled", "attn_implementation", "_commit_hash",
)  # fmt: skip

_NO_BIAS = "the target has no such bias"
_ONE_KIND = "the target computes every layer alike"

COMMON_FIELDS: Mapping[str, Rule] = {
    **dict.fromkeys(_KEPT, Keep()),
    **dict.fromkeys(_DROPPED, Drop("names the dense model or the program that wrote it")),
    "vocab_size": Carry(32000, "size"),
    "hidden_size": Carry(4096, "size"),
    "num_hidden_layers": Carry(32, "size"),
    "num_attention_heads": Carry(32, "size"),
    "hidden_act": Carry("silu", "known activation"),
    "initializer_range": Carry(0.02, "number"),
    "rms_norm_eps": Carry(1e-6, "number"),
    "attention_dropout": Carry(0.0, "number or null"),
    "tie_word_embeddings": Carry(False, "flag"),
    "attention_bias": Only((False,), _NO_BIAS),
    "mlp_bias": Only((False,), _NO_BIAS),
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
"""Fields that llama, mistral and mixtral treat alike."""

_MIXTRAL = {
    "moe": "mixtral",
    "moe_class": "MixtralForCausalLM",
    "tensors": LLAMA_TENSORS + MIXTRAL_EXPERTS,
    # `num_experts` beside the canonical name is what mlx-lm and newer tools read
    "expert_fields": {"num_local_experts": "experts", "num_experts": "experts", "num_experts_per_tok": "top_k"},
    "constants": {"output_router_logits": False, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0},
    "ignored_tensors": (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    "fused": {
        "mlp.gate.weight": ("block_sparse_moe.gate.weight",),
        "mlp.experts.gate_up_proj": (
            "block_sparse_moe.experts.{expert}.w1.weight",
            "block_sparse_moe.experts.{expert}.w3.weight",
        ),
        "mlp.experts.down_proj": ("block_sparse_moe.experts.{expert}.w2.weight",),
    },
    "moe_block": "mlp",
    "router": "mlp.gate",
    "experts": "mlp.experts",
    "names": LLAMA_NAMES,
    "renormalises": True,
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.dense: family
        for family in (
            Family(
                dense="llama",
                dense_class="LlamaForCausalLM",
                fields={
                    **COMMON_FIELDS,
                    "intermediate_size": Carry(11008, "size"),
                    "num_key_value_heads": Carry(None, "size"),
                    "max_position_embeddings": Carry(2048, "size"),
                    # LlamaForCausalLM attends to everything, whatever these say; left in, Mixtral would obey them
                    **dict.fromkeys(
                        ("sliding_window", "use_sliding_window", "max_window_layers"), Drop("llama has no window")
                    ),
                    "layer_types": Uniform(("full_attention",), _ONE_KIND),
                },
                **_MIXTRAL,  # type: ignore[arg-type]
            ),
            Family(
                dense="mistral",
                dense_class="MistralForCausalLM",
                fields={
                    **COMMON_FIELDS,
                    "intermediate_size": Carry(14336, "size"),
                    "num_key_value_heads": Carry(8, "size"),
                    "max_position_embeddings": Carry(4096 * 32, "size"),
                    "sliding_window": Carry(4096, "size"),
                    # AutoConfig (configuration_auto.py) then loads the model as a Ministral, which obeys these
                    "layer_types": Only((), "a mistral with layer_types is read as a Ministral, another architecture"),
                },
                **_MIXTRAL,  # type: ignore[arg-type]
            ),
        )
    }
)
"""By the dense model's `model_type`."""

ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "relu6", "leaky_relu", "hardswish", "laplace", "linear", "mish",
    "sigmoid", "sqrtsoftplus", "tanh",
)  # fmt: skip
"""Of transformers (activations.py), those without parameters of their own."""

DEFAULT_ROPE_THETA = 10_000.0
"""Of LlamaConfig and MistralConfig; Mixtral's own default is 1e6."""

ALREADY_MOE = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
"""Config fields by which a model that is a mixture of experts already is recognised."""
