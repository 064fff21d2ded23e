"""What a user can ask for, as plain data: one dataclass per command.

The command line, the recipes and their JSON Schema, the receipt and the Python API are all made from these fields,
so an option is described once; `upcycle.option` says how.
"""

from upcycle.recipe.attach import Attach
from upcycle.recipe.checks import recorded
from upcycle.recipe.conversion import (
    MAX_EXPERTS,
    Conversion,
    Convert,
    Dtype,
    Method,
    Plan,
    RouterInit,
    Verify,
)
from upcycle.recipe.generate import Generate, RunDtype
from upcycle.recipe.merge import Merge
from upcycle.recipe.plot import MAX_RUNS, PictureFormat, Plot
from upcycle.recipe.push import Push
from upcycle.recipe.train import Train

__all__ = [
    "MAX_EXPERTS",
    "MAX_RUNS",
    "Attach",
    "Conversion",
    "Convert",
    "Dtype",
    "Generate",
    "Merge",
    "Method",
    "PictureFormat",
    "Plan",
    "Plot",
    "Push",
    "RouterInit",
    "RunDtype",
    "Train",
    "Verify",
    "recorded",
]
