"""SmolLM3: a llama some of whose layers do not rotate queries and keys, and may have a sliding window."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from upcycle.families.dense.llama import LLAMA
from upcycle.families.derived import layers_of
from upcycle.families.readers import Readers
from upcycle.families.rope import Rope
from upcycle.families.rules import COMMON, Carry, Drop, Each, Made


def _rotates(config: Mapping[str, Any]) -> Any:
    """Return the class's `no_rope_layers`: 1 for layers that rotate, as all do but the last of every so many."""
    given, step = config.get("no_rope_layers"), config.get("no_rope_layer_interval", 4)
    if given is not None or type(step) is not int or step < 1:
        return given
    return [int((layer + 1) % step != 0) for layer in range(layers_of(config))]


def _layer_types(config: Mapping[str, Any]) -> Any:
    """Return the class's `layer_types`: a window, where there is one in use, for layers that do not rotate."""
    given, rotates = config.get("layer_types"), _rotates(config)
    if given is not None or not isinstance(rotates, list):
        return given
    window = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return ["sliding_attention" if window and not layer else "full_attention" for layer in rotates]


_WHICH = "expected 1 for each layer that rotates and 0 for each that does not"

SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    model_class="SmolLM3ForCausalLM",
    title="SmolLM3",
    known="SmolLM3 3B",
    readers=Readers(),  # not tried
    fields={
        **{name: rule for name, rule in COMMON.items() if name != "no_rope_layer_interval"},
        "vocab_size": Carry(128256, "size"),
        "hidden_size": Carry(2048, "size"),
        "intermediate_size": Carry(11008, "size"),
        "num_hidden_layers": Carry(36, "size"),
        "num_attention_heads": Carry(16, "size"),
        "num_key_value_heads": Carry(4, "size"),
        "max_position_embeddings": Carry(32768, "size"),
        "tie_word_embeddings": Carry(True, "flag"),
        "attention_bias": Carry(False, "flag"),
        "pad_token_id": Carry(128004),
        "bos_token_id": Carry(128000),
        "eos_token_id": Carry(128001),
        "no_rope_layers": Each((0, 1), _WHICH, carried=False),
        "no_rope_layer_interval": Drop("which layers rotate is said layer by layer"),
        "max_window_layers": Drop("the class does not read it"),
        "layer_types": Each(
            ("sliding_attention", "full_attention"), "expected sliding_attention or full_attention of each layer"
        ),
        "use_sliding_window": Drop("which layers have a window is said layer by layer"),
        # the target wants a window even where no layer has it
        "sliding_window": Made(lambda config, made: config.get("sliding_window") or made["max_position_embeddings"]),
        "layer_rope_theta": Made(lambda config, made: [made["rope_theta"] * on for on in config["no_rope_layers"]]),
    },
    rope=Rope(theta=2_000_000.0),
    ignored_tensors=(),
    sizes={"N": lambda config: config["num_attention_heads"]},
    derived={"no_rope_layers": _rotates, "layer_types": _layer_types},
)
