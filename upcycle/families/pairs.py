"""The pairs: which dense model becomes which mixture of experts, and where a pair departs from what its two sides say.

Facts checked against transformers' own classes by `tests/families`: the default of every carried field, and the parity
of each pair with random weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from types import MappingProxyType
from typing import Any, Literal

from upcycle.errors import UnsupportedError
from upcycle.families.dense.arcee import ARCEE
from upcycle.families.dense.cohere import COHERE
from upcycle.families.dense.cohere2 import COHERE2
from upcycle.families.dense.dense import Dense
from upcycle.families.dense.ernie4_5 import ERNIE4_5
from upcycle.families.dense.gemma import GEMMA
from upcycle.families.dense.gemma4_text import GEMMA4_TEXT
from upcycle.families.dense.glm import GLM
from upcycle.families.dense.granite import GRANITE, GRANITE_SWA
from upcycle.families.dense.granitemoehybrid import GRANITEMOEHYBRID_DENSE
from upcycle.families.dense.helium import HELIUM
from upcycle.families.dense.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from upcycle.families.dense.internlm3 import INTERNLM3
from upcycle.families.dense.iquestcoder import IQUESTCODER
from upcycle.families.dense.lfm2 import LFM2
from upcycle.families.dense.llama import LLAMA
from upcycle.families.dense.ministral import MINISTRAL
from upcycle.families.dense.mistral import MISTRAL
from upcycle.families.dense.olmo2 import OLMO2, OLMO3
from upcycle.families.dense.phi3 import PHI3
from upcycle.families.dense.qwen2 import QWEN2
from upcycle.families.dense.qwen3 import QWEN3
from upcycle.families.dense.qwen3_5_text import QWEN3_5_TEXT
from upcycle.families.dense.seed_oss import SEED_OSS
from upcycle.families.dense.smollm3 import SMOLLM3
from upcycle.families.dense.youtu import YOUTU
from upcycle.families.rope import halves
from upcycle.families.rules import NO_BIAS, Carry, Drop, Only, Reaches, Rule
from upcycle.families.targets.cohere2_moe import COHERE2_MOE
from upcycle.families.targets.deepseek_v3 import DEEPSEEK_V3
from upcycle.families.targets.dots1 import DOTS1
from upcycle.families.targets.ernie4_5_moe import ERNIE4_5_MOE
from upcycle.families.targets.flex_olmo import FLEX_OLMO
from upcycle.families.targets.gemma4_text import GEMMA4_TEXT_MOE
from upcycle.families.targets.glm4_moe import GLM4_MOE
from upcycle.families.targets.granitemoe import GRANITEMOE
from upcycle.families.targets.granitemoe_swa import GRANITEMOE_SWA
from upcycle.families.targets.granitemoehybrid import GRANITEMOEHYBRID
from upcycle.families.targets.granitemoeshared import GRANITEMOESHARED
from upcycle.families.targets.hunyuan_v1_moe import HUNYUAN_V1_MOE
from upcycle.families.targets.hy_v3 import HY_V3
from upcycle.families.targets.lfm2_moe import LFM2_MOE
from upcycle.families.targets.mixtral import MIXTRAL
from upcycle.families.targets.qwen2_moe import QWEN2_MOE
from upcycle.families.targets.qwen3_5_moe_text import QWEN3_5_MOE_TEXT
from upcycle.families.targets.qwen3_moe import QWEN3_MOE
from upcycle.families.targets.solar_open import SOLAR_OPEN
from upcycle.families.targets.target import Config, Limit, Target


@dataclass(frozen=True, slots=True)
class Change:
    """What a part's values become on their way: `factor * sqrt(size) * (W + add)`, or its rows in another order."""

    add: float = 0.0
    factor: float = 1.0
    root: str | None = None  # a letter of `families.parts`; None: a size of 1
    order: Callable[[Mapping[str, Any]], tuple[int, ...]] | None = None  # of each head's rows, by the target's config

    def scale(self, sizes: Mapping[str, int]) -> float:
        """Return what `W + add` is multiplied by."""
        return self.factor * (sqrt(sizes[self.root]) if self.root else 1.0)


Form = Literal["full", "compact"]
"""full: every expert is a whole FFN; compact: the FFN once, as a shared expert, and small experts beside it."""


@dataclass(frozen=True)
class Pair:
    """A dense model, a mixture of experts that can compute the same, and the pair's overrides."""

    dense: Dense
    target: Target
    overrides: Mapping[str, Rule] = field(default_factory=dict)  # of the dense model's rules for config fields
    constants: Mapping[str, Any] = field(default_factory=dict)  # of the target's config
    changes: Mapping[str, Change] = field(default_factory=dict)  # of parts, by their names
    forms: tuple[Form, ...] = ("full",)
    notes: tuple[Limit, ...] = ()  # by the target's config: what transformers does otherwise, though logits agree

    @property
    def fields(self) -> Mapping[str, Rule]:
        """What becomes of each field of the dense config."""
        return {**self.dense.fields, **self.overrides}

    def notes_on(self, config: Config) -> tuple[str, ...]:
        """Return the notes that concern a model with this config, a sentence each."""
        return tuple(text for concerns, text in self.notes if concerns(config))


_NO_WINDOW = {"sliding_window": Reaches("max_position_embeddings", "the target has no sliding window")}

_BIASED = {"attention_bias": Carry(False, "flag")}

_WITH_BIASES = {"attention_bias": True}
"""Those that the dense model lacks are zero."""

_BOTH: tuple[Form, ...] = ("full", "compact")

_NO_BIAS = {"attention_bias": Only((False,), NO_BIAS)}

_WINDOWS: Mapping[str, Rule] = {
    "use_sliding_window": Drop("a sliding_window says so"),
    "sliding_window": Carry(4096, "size", given="use_sliding_window"),
    "max_window_layers": Carry(28, "number"),
    "layer_types": Carry(None),  # where it is null, both classes make it of the two fields before
}

_WIDE_WINDOW = {"sliding_window": Reaches("max_position_embeddings", "the target has no sliding window")}

_LONGROPE_CACHE: Limit = (
    lambda config: config["rope_parameters"]["rope_type"] == "longrope",
    "text that grows past original_max_position_embeddings tokens while it is generated can differ from the dense "
    "model's: there Phi3ForCausalLM computes its cache anew, with the factors of long texts, which MixtralForCausalLM "
    "does not",
)

_PADDING_ROW: Limit = (
    lambda config: config.get("pad_token_id") is not None,
    "YoutuForCausalLM makes the embedding of pad_token_id zero whenever it is loaded, DeepseekV3ForCausalLM takes it "
    "as it is on disk: where that row is not zero, text with that token and a tied head's logit of it differ",
)

_FROM_ONE = dict.fromkeys(("norm.attention", "norm.ffn", "norm.final"), Change(add=1))

_IN_HALVES = {f"attention.{name}": Change(order=halves) for name in ("q", "k", "q.bias", "k.bias")}
"""The dense model rotates neighbours, the target halves."""

_NO_DROPOUT = {"attention_dropout": Only((0, 0.0), "the target has no such dropout")}

_NO_OUT_BIAS = {"attention_out_bias": Only((False,), NO_BIAS)}

_OWN_HEAD: Limit = (
    lambda _: True,
    "the head becomes a matrix of its own, as large as the embeddings: those are scaled, and the head is not",
)

_UNTIED = {"tie_word_embeddings": False}
"""The head is the embeddings before they are scaled."""

_SCALED = {**_FROM_ONE, "embeddings": Change(root="D")}

PAIRS: tuple[Pair, ...] = (
    Pair(LLAMA, MIXTRAL),
    Pair(LLAMA, GRANITEMOE, _BIASED),
    Pair(LLAMA, GRANITEMOESHARED, _BIASED, forms=_BOTH),
    Pair(LLAMA, QWEN2_MOE, forms=_BOTH),
    Pair(LLAMA, GLM4_MOE),
    Pair(LLAMA, SOLAR_OPEN),
    Pair(MISTRAL, MIXTRAL),
    Pair(MISTRAL, GRANITEMOESHARED, _NO_WINDOW, forms=_BOTH),
    Pair(MISTRAL, QWEN2_MOE, _NO_WINDOW, forms=_BOTH),
    Pair(MINISTRAL, MIXTRAL),
    Pair(QWEN2, GRANITEMOE, constants=_WITH_BIASES),
    Pair(QWEN2, GRANITEMOESHARED, constants=_WITH_BIASES, forms=_BOTH),
    Pair(QWEN2, QWEN2_MOE, forms=_BOTH),
    Pair(QWEN2, GLM4_MOE, constants=_WITH_BIASES),
    Pair(QWEN3, QWEN3_MOE),
    Pair(QWEN3, DOTS1, _WINDOWS),
    Pair(QWEN3, GLM4_MOE, _NO_BIAS, {"use_qk_norm": True}),
    Pair(QWEN3, HY_V3),
    Pair(QWEN3_5_TEXT, QWEN3_5_MOE_TEXT),
    Pair(PHI3, MIXTRAL, notes=(_LONGROPE_CACHE,)),
    Pair(PHI3, GLM4_MOE, _WIDE_WINDOW),
    Pair(GEMMA, MIXTRAL, constants=_UNTIED, changes=_SCALED, notes=(_OWN_HEAD,)),
    Pair(GEMMA4_TEXT, GEMMA4_TEXT_MOE),
    Pair(GRANITE, GRANITEMOE),
    Pair(GRANITE, GRANITEMOESHARED, forms=_BOTH),
    Pair(GRANITE_SWA, GRANITEMOE_SWA, forms=_BOTH),
    Pair(GRANITEMOEHYBRID_DENSE, GRANITEMOEHYBRID),
    Pair(SMOLLM3, GRANITEMOE_SWA),
    Pair(OLMO2, FLEX_OLMO),
    Pair(OLMO3, FLEX_OLMO),
    Pair(COHERE, COHERE2_MOE),
    Pair(COHERE2, COHERE2_MOE),
    Pair(GLM, GLM4_MOE, changes=_IN_HALVES),
    Pair(ERNIE4_5, ERNIE4_5_MOE),
    Pair(HUNYUAN_V1_DENSE, HUNYUAN_V1_MOE),
    Pair(SEED_OSS, GRANITEMOE, constants=_WITH_BIASES),
    Pair(SEED_OSS, GRANITEMOESHARED, constants=_WITH_BIASES, forms=_BOTH),
    Pair(SEED_OSS, QWEN2_MOE, _NO_OUT_BIAS, forms=_BOTH),
    Pair(YOUTU, DEEPSEEK_V3, notes=(_PADDING_ROW,)),
    Pair(LFM2, LFM2_MOE),
    Pair(ARCEE, MIXTRAL),
    Pair(ARCEE, GRANITEMOE, _BIASED),
    Pair(HELIUM, MIXTRAL, changes=_IN_HALVES),
    Pair(HELIUM, GRANITEMOE, _BIASED, changes=_IN_HALVES),
    Pair(HELIUM, ERNIE4_5_MOE, _NO_DROPOUT),
    Pair(INTERNLM3, MIXTRAL),
    Pair(IQUESTCODER, MIXTRAL),
)
"""Of the pairs of one dense model and form, the first is made whose target can express the config.

GraniteMoeShared comes before Qwen2-MoE: other readers are right about it, too.
"""

DENSE: Mapping[str, Dense] = MappingProxyType({pair.dense.model_type: pair.dense for pair in PAIRS})
"""Dense models that have a pair, by `model_type`."""

TARGETS: Mapping[str, Target] = MappingProxyType({pair.target.model_type: pair.target for pair in PAIRS})
"""Mixtures of experts that have a pair, by `model_type`."""


def pairs_of(dense: str, target: str | None = None, form: Form = "full") -> tuple[Pair, ...]:
    """Return the pairs of a dense model's type and form, in their order: all of them, or the one of a target's type.

    Raises UnsupportedError when there is none.
    """
    of_dense = [pair for pair in PAIRS if pair.dense.model_type == dense and form in pair.forms]
    found = tuple(pair for pair in of_dense if target in (None, pair.target.model_type))
    if found:
        return found
    of_target = [
        pair.dense.model_type for pair in PAIRS if target in (None, pair.target.model_type) and form in pair.forms
    ]
    known = [pair.target.model_type for pair in of_dense]
    kind = "mixture" if form == "full" else "compact mixture"
    raise UnsupportedError(
        f"{target} cannot be the {kind} of such a model" if target else f"no {kind} of such a model is known",
        found=dense,
        expected=f"one of {', '.join(dict.fromkeys(of_target))}" if of_target else None,
        hint=f"of {dense} can be made: {', '.join(known)}" if known else _other_form(dense),
    )


def _other_form(dense: str) -> str | None:
    """Return the way to merge an adapter of a model that has no compact mixture, if there is one."""
    targets = [pair.target for pair in PAIRS if pair.dense.model_type == dense]
    merged = any(target.router.scores == "softmax" and not target.keeps_ffn for target in targets)
    return "--to full writes the model's own mixture of experts" if merged else None


def pair_of(dense: str, target: str | None = None, form: Form = "full") -> Pair:
    """Return the first of `pairs_of`."""
    return pairs_of(dense, target, form)[0]
