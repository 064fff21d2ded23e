"""What the published config.json of much used dense models says, and what is expected of planning each of them.

Facts only: model types, fields and values, the odd ones included. Where a model is not planned, the expectation is the
start of what the refusal says.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published config, and what `plan` makes of it."""

    config: dict[str, Any]
    target: str | None = None  # model_type of the mixture; None: it is refused
    refusal: str = ""  # found in what the refusal says
    kept: tuple[str, ...] = field(default=())  # fields that are noted as kept
    left_out: tuple[str, ...] = field(default=())  # fields that are noted as left out


NO_ROW = "no mixture of experts is known for this model"


def llama(*sizes: int, **fields: Any) -> dict[str, Any]:
    """Return what the config of any model of a llama's shape says."""
    D, F, layers, heads, kv, vocab = sizes
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": D,
        "intermediate_size": F, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "vocab_size": vocab, "initializer_range": 0.02, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "use_cache": True, "torch_dtype": "bfloat16", "transformers_version": "4.43.0.dev0", **fields,
    }  # fmt: skip


def other(model_type: str, model_class: str, *sizes: int, **fields: Any) -> dict[str, Any]:
    """Return the same for another model type."""
    named: dict[str, Any] = {"model_type": model_type, "architectures": [model_class], **fields}
    return llama(*sizes, **named)


def llama3(*sizes: int, factor: float = 8.0, **fields: Any) -> dict[str, Any]:
    """Return a config with the rotary settings of Llama 3.1 and later."""
    rope = {
        "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip
    return llama(
        *sizes, 128256, rope_scaling=rope, rope_theta=500000.0, max_position_embeddings=131072, attention_bias=False,
        attention_dropout=0.0, mlp_bias=False, pretraining_tp=1, bos_token_id=128000,
        **{"eos_token_id": [128001, 128008, 128009], **fields},
    )  # fmt: skip


def mistral(*sizes: int, **fields: Any) -> dict[str, Any]:
    """Return the config of a Mistral."""
    return other("mistral", "MistralForCausalLM", *sizes, **{"bos_token_id": 1, "eos_token_id": 2, **fields})


def qwen2(*sizes: int, window: int, windowed: int, **fields: Any) -> dict[str, Any]:
    """Return the config of a Qwen2, Qwen2.5 or a model distilled into one."""
    return other(
        "qwen2", "Qwen2ForCausalLM", *sizes,
        **{
            "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768, "sliding_window": window, "max_window_layers": windowed,
            "use_sliding_window": False, "rope_theta": 1000000.0, **fields,
        },
    )  # fmt: skip


def qwen3(*sizes: int, **fields: Any) -> dict[str, Any]:
    """Return the config of a Qwen3."""
    return other(
        "qwen3", "Qwen3ForCausalLM", *sizes, 151936, attention_bias=False, attention_dropout=0.0, head_dim=128,
        bos_token_id=151643, eos_token_id=151645, max_position_embeddings=40960, max_window_layers=sizes[2],
        rope_scaling=None, rope_theta=1000000, sliding_window=None, use_sliding_window=False,
        **{"rms_norm_eps": 1e-6, **fields},
    )  # fmt: skip


def phi3(*sizes: int, **fields: Any) -> dict[str, Any]:
    """Return the config of a Phi-3 or Phi-4."""
    return other(
        "phi3", "Phi3ForCausalLM", *sizes, attention_bias=False, attention_dropout=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0, **{
            "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "rope_theta": 10000.0,
            "rope_scaling": None, "original_max_position_embeddings": 4096, **fields,
        },
    )  # fmt: skip


PHI_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.5] * 48}
GEMMA = {"bos_token_id": 2, "pad_token_id": 0, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6}

PUBLISHED: dict[str, Published] = {
    # llamas
    "Llama-2-7b": Published(
        llama(4096, 11008, 32, 32, 32, 32000, bos_token_id=1, eos_token_id=2, max_position_embeddings=4096,
              pretraining_tp=1, rope_scaling=None, torch_dtype="float16", _name_or_path="meta-llama/Llama-2-7b-hf"),
        "mixtral",
    ),
    "Llama-3-8B": Published(
        llama(4096, 14336, 32, 32, 8, 128256, bos_token_id=128000, eos_token_id=128001, max_position_embeddings=8192,
              attention_bias=False, attention_dropout=0.0, pretraining_tp=1, rope_scaling=None, rope_theta=500000.0),
        "mixtral",
    ),
    "Llama-3.1-8B": Published(llama3(4096, 14336, 32, 32, 8, eos_token_id=128001), "mixtral"),
    "Llama-3.2-1B": Published(
        llama3(2048, 8192, 16, 32, 8, factor=32.0, head_dim=64, tie_word_embeddings=True), "mixtral"
    ),
    "Llama-3.3-70B-Instruct": Published(llama3(8192, 28672, 80, 64, 8), "mixtral"),
    "Llama-3.1-Nemotron-70B-Instruct": Published(llama3(8192, 28672, 80, 64, 8, head_dim=128), "mixtral"),
    "Llama-3.1-Minitron-4B-Width": Published(
        llama3(3072, 9216, 32, 32, 8, head_dim=128, activation="silu"), "mixtral", kept=("activation",)
    ),
    "DeepSeek-R1-Distill-Llama-8B": Published(llama3(4096, 14336, 32, 32, 8, eos_token_id=128001), "mixtral"),
    "TinyLlama-1.1B": Published(
        llama(2048, 5632, 22, 32, 4, 32000, bos_token_id=1, eos_token_id=2, max_position_embeddings=2048,
              attention_bias=False, pretraining_tp=1, rope_scaling=None, rope_theta=10000.0),
        "mixtral",
    ),
    "Yi-6B": Published(
        llama(4096, 11008, 32, 32, 4, 64000, bos_token_id=1, eos_token_id=2, pad_token_id=0, pretraining_tp=1,
              max_position_embeddings=4096, rope_scaling=None, rope_theta=5000000.0),
        "mixtral",
    ),
    "Yi-34B": Published(
        llama(7168, 20480, 60, 56, 8, 64000, bos_token_id=1, eos_token_id=2, pad_token_id=0, pretraining_tp=1,
              max_position_embeddings=4096, rope_scaling=None, rope_theta=5000000.0),
        "mixtral",
    ),
    "Falcon3-7B": Published(
        llama(3072, 23040, 28, 12, 4, 131072, attention_bias=False, attention_dropout=0.0, eos_token_id=11,
              head_dim=256, mlp_bias=False, max_position_embeddings=32768, pretraining_tp=1, rms_norm_eps=1e-6,
              rope_scaling=None, rope_theta=1000042),
        "mixtral",
    ),
    "SmolLM2-135M-Instruct": Published(
        llama(576, 1536, 30, 9, 3, 49152, bos_token_id=1, eos_token_id=2, pad_token_id=2, is_llama_config=True,
              max_position_embeddings=8192, pretraining_tp=1, rope_interleaved=False, rope_scaling=None,
              rope_theta=100000, tie_word_embeddings=True, initializer_range=0.041666666666666664,
              **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}),
        "mixtral",
    ),
    "vicuna-7b-v1.5": Published(
        llama(4096, 11008, 32, 32, 32, 32000, bos_token_id=1, eos_token_id=2, pad_token_id=0, pretraining_tp=1,
              max_position_embeddings=4096, rope_scaling=None, torch_dtype="float16"),
        "mixtral",
    ),
    "huggyllama-7b": Published(
        llama(4096, 11008, 32, 32, 32, 32000, bos_token_id=1, eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-6,
              max_position_embeddings=2048, max_sequence_length=2048, torch_dtype="float16"),
        "mixtral", kept=("max_sequence_length",),
    ),
    "decapoda-llama-7b": Published(
        llama(4096, 11008, 32, 32, 32, 32000, architectures=["LLaMAForCausalLM"], bos_token_id=0, eos_token_id=1,
              pad_token_id=-1, rms_norm_eps=1e-6, max_sequence_length=2048, torch_dtype="float16"),
        "mixtral", kept=("max_sequence_length",),
    ),
    "GaLore-llama-60m": Published(
        llama(512, 1376, 8, 8, 8, 32000, architectures=["LLaMAForCausalLM"], bos_token_id=0, eos_token_id=1,
              pad_token_id=-1, rms_norm_eps=1e-6, max_sequence_length=1024),
        "mixtral", kept=("max_sequence_length",),
    ),
    "internlm2-7b-llama": Published(
        llama(4096, 14336, 32, 32, 8, 92544, bias=False, bos_token_id=1, eos_token_id=2, pad_token_id=2,
              max_position_embeddings=32768, rope_scaling={"factor": 2.0, "type": "dynamic"}, rope_theta=1000000),
        "mixtral", kept=("bias",),
    ),
    "internlm-7b-llama": Published(
        llama(4096, 11008, 32, 32, 32, 103168, bias=True, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-6,
              max_position_embeddings=2048),
        refusal="bias = True: transformers adds no such bias",
    ),
    "ALLaM-7B-Instruct": Published(
        llama(4096, 11008, 32, 32, 32, 64000, bos_token_id=1, eos_token_id=2, internal_version="7b",
              max_position_embeddings=4096, attention_bias=False, rope_scaling=None),
        "mixtral", kept=("internal_version",),
    ),
    # mistrals
    "Mistral-7B-v0.1": Published(
        mistral(4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768, rope_theta=10000.0, sliding_window=4096),
        "mixtral",
    ),
    "Mistral-7B-Instruct-v0.3": Published(
        mistral(4096, 14336, 32, 32, 8, 32768, max_position_embeddings=32768, rope_theta=1000000.0,
                sliding_window=None, attention_dropout=0.0),
        "mixtral",
    ),
    "zephyr-7b-beta": Published(
        mistral(4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768, rope_theta=10000.0, pad_token_id=2,
                sliding_window=4096),
        "mixtral",
    ),
    "Mistral-Nemo-Base": Published(
        mistral(5120, 14336, 40, 32, 8, 131072, head_dim=128, max_position_embeddings=128000, rope_theta=1000000.0,
                sliding_window=None, attention_dropout=0.0),
        "mixtral",
    ),
    "Ministral-8B": Published(
        mistral(4096, 12288, 36, 32, 8, 131072, head_dim=128, max_position_embeddings=32768, rope_theta=100000000.0,
                sliding_window=32768, attention_dropout=0.0),
        "mixtral",
    ),
    "Mistral-Small-24B-Base": Published(
        mistral(5120, 32768, 40, 32, 8, 131072, head_dim=128, max_position_embeddings=32768, rope_theta=100000000.0,
                sliding_window=None, attention_dropout=0.0),
        "mixtral",
    ),
    # Qwens
    "Qwen2-7B": Published(
        qwen2(3584, 18944, 28, 28, 4, 152064, window=131072, windowed=28, eos_token_id=151643), refusal=NO_ROW
    ),
    "Qwen2.5-0.5B": Published(
        qwen2(896, 4864, 24, 14, 2, 151936, window=32768, windowed=24, tie_word_embeddings=True, use_mrope=False,
              eos_token_id=151643),
        refusal=NO_ROW,
    ),
    "Qwen2.5-7B-Instruct": Published(
        qwen2(3584, 18944, 28, 28, 4, 152064, window=131072, windowed=28), refusal=NO_ROW
    ),
    "Qwen2.5-72B-Instruct": Published(
        qwen2(8192, 29568, 80, 64, 8, 152064, window=131072, windowed=70), refusal=NO_ROW
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": Published(
        qwen2(1536, 8960, 28, 12, 2, 151936, window=4096, windowed=21, use_mrope=False, rope_theta=10000,
              max_position_embeddings=131072, eos_token_id=151643),
        refusal=NO_ROW,
    ),
    "DeepSeek-R1-Distill-Qwen-7B": Published(
        qwen2(3584, 18944, 28, 28, 4, 152064, window=4096, windowed=28, use_mrope=False, rope_theta=10000,
              max_position_embeddings=131072, eos_token_id=151643),
        refusal=NO_ROW,
    ),
    "Qwen3-0.6B": Published(qwen3(1024, 3072, 28, 16, 8, tie_word_embeddings=True), "qwen3_moe"),
    "Qwen3-8B": Published(qwen3(4096, 12288, 36, 32, 8), "qwen3_moe"),
    "Qwen3-32B": Published(qwen3(5120, 25600, 64, 64, 8), "qwen3_moe"),
    # Phis
    "Phi-3-mini-4k-instruct": Published(
        phi3(3072, 8192, 32, 32, 32, 32064, auto_map=PHI_CODE, max_position_embeddings=4096, sliding_window=2047),
        "mixtral",
    ),
    "Phi-3-mini-128k-instruct": Published(
        phi3(3072, 8192, 32, 32, 32, 32064, auto_map=PHI_CODE, max_position_embeddings=131072, sliding_window=262144,
             rope_scaling=LONGROPE),
        "mixtral",
    ),
    "phi-4": Published(
        phi3(5120, 17920, 40, 40, 10, 100352, bos_token_id=100257, eos_token_id=100265, pad_token_id=100349,
             max_position_embeddings=16384, original_max_position_embeddings=16384, rope_theta=250000,
             sliding_window=None),
        "mixtral",
    ),
    "Phi-4-mini-instruct": Published(
        phi3(3072, 8192, 32, 24, 8, 200064, auto_map=PHI_CODE, bos_token_id=199999, eos_token_id=199999,
             pad_token_id=199999, full_attn_mod=1, interpolate_factor=1, lm_head_bias=False, mlp_bias=False,
             max_position_embeddings=131072, partial_rotary_factor=0.75, rope_scaling=LONGROPE, sliding_window=262144,
             tie_word_embeddings=True),
        refusal="partial_rotary_factor is not 1, which the target ignores; found 0.75",
    ),
    "phi-2": Published(
        other("phi", "PhiForCausalLM", 2560, 10240, 32, 32, 32, 51200, hidden_act="gelu_new", layer_norm_eps=1e-5,
              partial_rotary_factor=0.4, qk_layernorm=False, resid_pdrop=0.1, embd_pdrop=0.0, rope_theta=10000.0,
              max_position_embeddings=2048, bos_token_id=50256, eos_token_id=50256),
        refusal=NO_ROW,
    ),
    # others
    "gemma-2b": Published(
        other("gemma", "GemmaForCausalLM", 2048, 16384, 18, 8, 1, 256000, **GEMMA, attention_bias=False,
              attention_dropout=0.0, eos_token_id=1, hidden_act="gelu", rope_theta=10000.0, rope_scaling=None,
              tie_word_embeddings=True),
        refusal=NO_ROW,
    ),
    "gemma-2-2b": Published(
        other("gemma2", "Gemma2ForCausalLM", 2304, 9216, 26, 8, 4, 256000, **GEMMA, attention_bias=False,
              attention_dropout=0.0, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, eos_token_id=1,
              cache_implementation="hybrid", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
              query_pre_attn_scalar=256, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=True),
        refusal=NO_ROW,
    ),
    "gemma-3-1b-it": Published(
        other("gemma3_text", "Gemma3ForCausalLM", 1152, 6912, 26, 4, 1, 262144,
              **{**GEMMA, "max_position_embeddings": 32768}, attention_bias=False, attention_dropout=0.0,
              attn_logit_softcapping=None, final_logit_softcapping=None, cache_implementation="hybrid",
              eos_token_id=[1, 106], hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
              rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512,
              sliding_window_pattern=6, tie_word_embeddings=True),
        refusal=NO_ROW,
    ),
    "granite-3.1-8b-instruct": Published(
        other("granite", "GraniteForCausalLM", 4096, 12800, 40, 32, 8, 49155, attention_bias=False,
              attention_dropout=0.1, attention_multiplier=0.0078125, embedding_multiplier=12.0, logits_scaling=16.0,
              residual_multiplier=0.22, mlp_bias=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
              max_position_embeddings=131072, rope_scaling=None, rope_theta=10000000.0, tie_word_embeddings=True),
        refusal=NO_ROW,
    ),
    "OLMo-2-1124-7B": Published(
        other("olmo2", "Olmo2ForCausalLM", 4096, 11008, 32, 32, 32, 100352, attention_bias=False,
              attention_dropout=0.0, eos_token_id=100257, pad_token_id=100277, max_position_embeddings=4096,
              rms_norm_eps=1e-6, rope_scaling=None, rope_theta=500000),
        refusal=NO_ROW,
    ),
    "Seed-OSS-36B": Published(
        other("seed_oss", "SeedOssForCausalLM", 5120, 27648, 64, 80, 8, 155136, attention_bias=True,
              attention_dropout=0.1, attention_out_bias=False, head_dim=128, mlp_bias=False, residual_dropout=0.1,
              bos_token_id=0, eos_token_id=2, pad_token_id=1, max_position_embeddings=524288, rms_norm_eps=1e-6,
              rope_scaling={"rope_type": "default"}, rope_theta=10000000.0),
        refusal=NO_ROW,
    ),
    "SmolLM3-3B": Published(
        other("smollm3", "SmolLM3ForCausalLM", 2048, 11008, 36, 16, 4, 128256, attention_bias=False,
              attention_dropout=0.0, bos_token_id=128000, eos_token_id=128001, pad_token_id=128004, mlp_bias=False,
              layer_types=["full_attention"] * 36, no_rope_layers=[1, 1, 1, 0] * 9, no_rope_layer_interval=4,
              max_position_embeddings=65536, max_window_layers=28, pretraining_tp=2, rms_norm_eps=1e-6,
              rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False,
              tie_word_embeddings=True),
        refusal=NO_ROW,
    ),
    "starcoder2-3b": Published(
        other("starcoder2", "Starcoder2ForCausalLM", 3072, 12288, 30, 24, 2, 49152, attention_dropout=0.1,
              attention_softmax_in_fp32=True, bos_token_id=0, eos_token_id=0, embedding_dropout=0.1,
              hidden_act="gelu_pytorch_tanh", max_position_embeddings=16384, mlp_type="default", norm_epsilon=1e-5,
              norm_type="layer_norm", residual_dropout=0.1, rope_theta=999999.44, scale_attn_weights=True,
              sliding_window=4096, use_bias=True),
        refusal=NO_ROW,
    ),
    "stablelm-2-1_6b": Published(
        other("stablelm", "StableLmForCausalLM", 2048, 5632, 24, 32, 32, 100352, bos_token_id=100257,
              eos_token_id=100257, layer_norm_eps=1e-5, max_position_embeddings=4096, partial_rotary_factor=0.25,
              rope_theta=10000, use_qkv_bias=True),
        refusal=NO_ROW,
    ),
    "GLM-4-9B-0414": Published(
        other("glm4", "Glm4ForCausalLM", 4096, 13696, 40, 32, 2, 151552, attention_bias=False, attention_dropout=0.0,
              eos_token_id=[151329, 151336, 151338], head_dim=128, max_position_embeddings=32768, pad_token_id=151329,
              partial_rotary_factor=0.5, rope_theta=10000.0),
        refusal=NO_ROW,
    ),
}  # fmt: skip
