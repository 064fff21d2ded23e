"""Cohere (Command R, Aya): attention and FFN read one norm side by side; every layer rotates, in pairs."""

from dataclasses import replace

from upcycle.families.dense.cohere2 import COHERE2
from upcycle.families.derived import layers_of
from upcycle.families.rope import Rope
from upcycle.families.rules import Carry, Made, Only

ENDLESS = 2**31 - 1
"""A window that every position is within; `max_position_embeddings` is not: Command R is run beyond it."""

COHERE = replace(
    COHERE2,
    model_type="cohere",
    model_class="CohereForCausalLM",
    title="Cohere",
    known="Command R, Aya 23",
    fields={
        **COHERE2.fields,
        "pad_token_id": Carry(0),
        "bos_token_id": Carry(5),
        "eos_token_id": Carry(255001),
        "use_qk_norm": Only((False,), "the target does not normalise queries and keys"),
        # the target rotates only where it has a window
        "layer_types": Made(lambda config, _: ["sliding_attention"] * layers_of(config)),
        "sliding_window": Made(lambda *_: ENDLESS),
    },
    rope=Rope(theta=500_000.0, needs_length=True),
    derived={},
)
