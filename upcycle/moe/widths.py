"""Lets experts run whose widths torch's grouped_mm cannot take, by computing them one after the other."""

from typing import Any

from upcycle.families.grouped import ROW_BYTES


def run_any_width(model: Any) -> None:
    """Switch a stock model's experts to `eager` where a row of their matrices is no multiple of 16 bytes.

    Stacked experts are the parameters with three axes, `(E, out, in)`. Nothing changes where grouped_mm runs, or where
    another implementation was asked for.
    """
    if getattr(model.config, "_experts_implementation", None) != "grouped_mm":
        return
    stacked = [parameter for parameter in model.parameters() if parameter.dim() == 3]
    if any(parameter.shape[-1] * parameter.element_size() % ROW_BYTES for parameter in stacked):
        model.set_experts_implementation("eager")
