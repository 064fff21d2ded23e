"""What a user can ask for, as plain data: one frozen dataclass per command, and one row per command in `commands`.

The command line, the recipes and their JSON Schema, the receipt and the Python API are all made from these fields,
so an option is described once; `upcycle.option` says how.
"""

from upcycle.requests.checks import recorded as recorded
from upcycle.requests.commands import *  # noqa: F403  the requests, from the file that lists them
from upcycle.requests.conversion import MAX_EXPERTS as MAX_EXPERTS
from upcycle.requests.conversion import Conversion as Conversion
from upcycle.requests.conversion import Dtype as Dtype
from upcycle.requests.conversion import Method as Method
from upcycle.requests.conversion import RouterInit as RouterInit
from upcycle.requests.generate import RunDtype as RunDtype
from upcycle.requests.plot import MAX_RUNS as MAX_RUNS
from upcycle.requests.plot import PictureFormat as PictureFormat
