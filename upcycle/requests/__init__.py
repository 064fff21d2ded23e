"""What a user can ask for, as plain data: one dataclass per command.

The command line, the recipes and their JSON Schema, the receipt and the Python API are all made from these fields,
so an option is described once; `upcycle.option` says how.
"""

from upcycle.requests.attach import Attach
from upcycle.requests.checks import recorded
from upcycle.requests.conversion import (
    MAX_EXPERTS,
    Conversion,
    Convert,
    Dtype,
    Method,
    Plan,
    RouterInit,
    Verify,
)
from upcycle.requests.generate import Generate, RunDtype
from upcycle.requests.merge import Merge
from upcycle.requests.plot import MAX_RUNS, PictureFormat, Plot
from upcycle.requests.push import Push
from upcycle.requests.train import Train

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
