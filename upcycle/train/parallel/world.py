"""The processes that train together: which of them this is, and what they agree on."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, distributed

from upcycle.errors import InputError, UpcycleError
from upcycle.moe.device import wide

_DATA_PARALLEL = {
    DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}  # fmt: skip


class World:
    """All processes of a training, one of which is this.

    Every method but the properties, `log` and `leave` is to be called by all of them, or by none.
    """

    def __init__(self, device: torch.device, tracker: str | None = None, logs: Path | None = None) -> None:
        """Join the processes that were started beside this one; `tracker` gets figures, and may write into `logs`.

        Raises UpcycleError unless as many work together as were started, InputError for kinds of parallel training
        that are not supported.
        """
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        try:
            self.accelerator = Accelerator(  # for this room only
                cpu=device.type == "cpu",
                mixed_precision="no",  # autocast would wrap the experts, and halves the speed of fused ones
                gradient_accumulation_steps=1,  # `upcycle.train.step` scales the losses
                log_with=tracker,
                project_dir=None if logs is None else str(logs),
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
            )
        except (ValueError, RuntimeError) as error:
            raise UpcycleError(f"accelerate cannot bring the processes together ({error})") from error
        self._check_processes()

    def _check_processes(self) -> None:
        kind = self.accelerator.distributed_type
        if kind not in _DATA_PARALLEL:
            raise InputError("trains data-parallel only", found=str(kind), expected="no FSDP, DeepSpeed or TPU")
        started = int(os.environ.get("WORLD_SIZE", "1"))
        together = int(self.sum(1))
        if not started == together == self.size:
            raise UpcycleError(
                f"{started} processes were started and {together} work together: on CPUs set ACCELERATE_USE_CPU=true"
            )

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def size(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and tells what happens."""
        return bool(self.accelerator.is_main_process)

    @property
    def alone(self) -> bool:
        """Whether this is the only process, which need not agree with others on when to stop."""
        return self.size == 1

    # -- what they agree on --------------------------------------------------------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        mean: Tensor = self.accelerator.reduce(value, "mean")
        return mean

    def sum(self, value: float) -> float:
        """Return the sum of a number over the processes."""
        return float(self.accelerator.reduce(self._number(value), "sum"))

    def largest(self, value: float) -> Tensor:
        """Return the largest of a number over the processes, `(1,)`, on the device, which is not waited for."""
        largest = self._number(value)
        if not self.alone:
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return largest

    def gather(self, value: Any) -> list[Any]:
        """Return what each process has, any picklable value, in the order of their ranks."""
        return list(gather_object([value]))

    def from_main(self, value: Any) -> Any:
        """Return what the main process has."""
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.accelerator.wait_for_everyone()

    def delay_sync(self, model: Any) -> AbstractContextManager[None]:
        """Return a context in which backward passes leave the gradients of a shared model unsummed."""
        context: AbstractContextManager[None] = self.accelerator.no_sync(model)
        return context

    def _number(self, value: float) -> Tensor:
        return torch.full((1,), float(value), dtype=wide(self.device), device=self.device)

    # -- the tracker ---------------------------------------------------------------------------------------------------

    def begin_tracking(self, settings: Mapping[str, Any]) -> None:
        """Begin a run in the tracker, if there is one."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers("upcycle", config=dict(settings))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Give the tracker the numbers of a step."""
        if self.accelerator.trackers:
            self.accelerator.log(dict(numbers), step=step)

    def leave(self) -> None:
        """End the tracker's run and leave the other processes."""
        self.accelerator.end_training()
