"""Which layers of a mixture get experts: `--layers`, held against what the target can say."""

from collections.abc import Iterator

from upcycle.errors import RequestError
from upcycle.families.match import Match
from upcycle.families.pairs import pairs_of


def sparse_layers(matched: Match, asked: str) -> tuple[bool, ...]:
    """Return of each layer whether it gets experts; `asked` is a `--layers`.

    Raises RequestError for layers that the model does not have, and for a choice that its target cannot express.
    """
    count = matched.layers
    chosen = set(chosen_layers(asked, count))
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise RequestError(
            "--layers names no layers, or others than the model has", found=asked, expected=f"some of 0 to {count - 1}"
        )
    sparse = tuple(layer in chosen for layer in range(count))
    choice = matched.target.layer_choice
    if all(sparse) or (choice and choice.fields(sparse) is not None):
        return sparse
    others = [
        f"--target {pair.target.model_type} ({pair.target.layer_choice.says})"
        for pair in pairs_of(matched.dense.model_type)
        if pair.target.layer_choice and pair.target.layer_choice.fields(sparse) is not None
    ]
    raise RequestError(
        f"{matched.target.model_type} cannot mix dense and sparse layers like this",
        found=f"--layers {asked}",
        expected=choice.says if choice else "all",
        hint=" or ".join(others) or None,
    )


def chosen_layers(asked: str, count: int) -> Iterator[int]:
    """Yield the numbers of the layers, of `count`, that a `--layers` names."""
    word, _, number = asked.partition(":")
    if word == "all":
        yield from range(count)
    elif word == "every":  # GShard's every other layer (2006.16668): the second of two, as decoder_sparse_step has it
        yield from range(int(number) - 1, count, int(number))
    elif word == "first":
        yield from range(int(number))
    elif word == "last":
        yield from range(count - int(number), count)
    else:
        for part in asked.split(","):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)
