"""Writes the tables of models in README.md, docs/families.md and docs/adapters.md: `python -m tests.families_table`.

The figures are measured anew: every random model of `tests/families/models` is converted, and both are run by
transformers. A figure is the largest difference of a logit, relative to the largest logit.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM

from tests.families.models import MODELS, Model, save_model
from upcycle.build.merge import target_problem
from upcycle.families.dense.attachable import ATTACHABLE
from upcycle.families.dense.dense import Dense, Modules
from upcycle.families.pairs import DENSE, PAIRS, Form, Pair
from upcycle.pipeline.stages import convert
from upcycle.requests import Convert

ROOT = Path(__file__).parent.parent
CLOSING = "<!-- end -->"
FIGURE = re.compile(r"\d\.\de-\d+")


def page(name: str, measured: dict[tuple[str, str], float] | None = None) -> str:
    """Return a page with its marked block brought up to date; without figures, those of the page are kept out."""
    text = (ROOT / name).read_text(encoding="utf-8")
    opening = "<!-- families: made by make docs -->\n"
    before, after = text.split(opening)
    made = "\n".join(families(measured or {}) if name == "docs/families.md" else TABLES[name]())
    return f"{before}{opening}\n{made}\n\n{after[after.index(CLOSING) :]}"


def short_table() -> Iterator[str]:
    """Yield a line for each dense model: what it becomes."""
    yield "| dense model | becomes | or | adapter experts |"
    yield "|---|---|---|---|"
    for dense in DENSE.values():
        first, *others = [pair.target.model_type for pair in _full(dense)]
        also = ", ".join(f"`{name}`" for name in others) or "-"
        known = f" ({dense.known})" if dense.known else ""
        yield f"| `{dense.model_type}`{known} | `{first}` | {also} | {_adapters(dense)} |"


def families(measured: dict[tuple[str, str], float]) -> Iterator[str]:
    """Yield a line for each pair."""
    yield "| dense model | target | function | sparse layers | shared expert | merge | stock loss | readers tried |"
    yield "|---|---|---|---|---|---|---|---|"
    for dense in DENSE.values():
        for pair in _full(dense):
            target = pair.target
            error = measured.get((dense.model_type, target.model_type))
            cells = (
                f"`{dense.model_type}`",
                f"`{target.model_type}`",
                f"the same{' but for eps' if target.nearly else ''}{'' if error is None else f', within {error:.1e}'}",
                target.layer_choice.says if target.layer_choice else "all",
                "yes" if target.has_shared else "no",
                ", ".join(_merged(pair)) or "no",
                "yes" if target.stock_loss else "no",
                ", ".join(target.readers.names),
            )
            yield f"| {' | '.join(cells)} |"


def attachable() -> Iterator[str]:
    """Yield a line for each form of FFN: the models that adapter experts can be attached to."""
    modules = {name: row.modules for name, row in ATTACHABLE.items()}
    modules |= {name: dense.modules for name, dense in DENSE.items() if dense.modules}
    yield "| FFN | models (`model_type`) |"
    yield "|---|---|"
    forms: dict[str, Callable[[Modules], bool]] = {
        "gate, up and down, as llama has them": lambda of: of.gate is not None,
        "gate and up in one matrix": lambda of: of.gate_up is not None,
        "no gate, `W_down act(W_up x)`": lambda of: not of.gated,
    }
    for form, has in forms.items():
        yield f"| {form} | {', '.join(f'`{name}`' for name in sorted(modules) if has(modules[name]))} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {"README.md": short_table, "docs/adapters.md": attachable}
PAGES = ("README.md", "docs/adapters.md", "docs/families.md")


def without_figures(text: str) -> str:
    """Return a page without its measured figures, for comparison."""
    return FIGURE.sub("", text).replace(", within ", "")


def _full(dense: Dense) -> list[Pair]:
    return [pair for pair in PAIRS if pair.dense is dense and "full" in pair.forms]


def _adapters(dense: Dense) -> str:
    if dense.modules is None:
        return "none"
    forms = {form for pair in PAIRS if pair.dense is dense for form in _merged(pair)}
    return ", ".join(sorted(forms, reverse=True)) or "no merge"


def _merged(pair: Pair) -> tuple[Form, ...]:
    """Return what `merge` makes of adapters on the dense model with this target."""
    modules = pair.dense.modules
    problem = modules is None or target_problem(pair, gated=modules.gated, attention=False)
    return () if problem else pair.forms


def measure() -> dict[tuple[str, str], float]:
    """Return the worst figure of every pair, over its float32 models that are exact."""
    worst: dict[tuple[str, str], float] = {}
    for name, model in MODELS.items():
        if model.exact and model.dtype is torch.float32:
            key = model.model_type, model.becomes
            worst[key] = max(worst.get(key, 0.0), _error(name, model))
    return worst


def _error(name: str, model: Model) -> float:
    with TemporaryDirectory() as directory:
        dense, out = save_model(name, model, Path(directory) / "dense"), Path(directory) / "moe"
        options = {"experts": 4, "top_k": 2, **model.options}
        convert(Convert(model=str(dense), out=str(out), **options))
        ids_BT = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            theirs, ours = (
                AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids_BT).logits for path in (dense, out)
            )
        return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    """Write the pages."""
    logging.disable(logging.WARNING)
    measured = measure()
    for name in PAGES:
        made = page(name, measured)
        (ROOT / name).write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
