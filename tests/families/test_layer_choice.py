"""Layer choices of mixtures whose config has a rule for them, held against the rule of the stock class."""

from itertools import product

import pytest

from upcycle.families.targets.ernie4_5_moe import ERNIE4_5_MOE

LAYERS = 6


def of_the_class(start: int, end: int, interval: int) -> tuple[bool, ...]:
    """The layers with experts, as Ernie4_5_MoeDecoderLayer has it."""
    return tuple((layer + 1) % interval == 0 and start <= layer <= end for layer in range(LAYERS))


EXPRESSIBLE = {
    of_the_class(start, end, interval)
    for start, end, interval in product(range(LAYERS), range(LAYERS), range(1, LAYERS + 1))
}


@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_ernie_says_every_choice_that_its_fields_can_say(count: int) -> None:
    assert ERNIE4_5_MOE.layer_choice
    for sparse in product((False, True), repeat=LAYERS):
        if sum(sparse) == count:
            fields = ERNIE4_5_MOE.layer_choice.fields(sparse)
            assert (fields is not None) == (sparse in EXPRESSIBLE), sparse
            assert fields is None or of_the_class(*fields.values()) == sparse
