"""AdamW with float32 master weights: moves parameters in bfloat16 by less than their last digit.

A bfloat16 weight has 8 significant bits: an update below 1/256 of it is rounded away, and at the learning rates of
continued training most are. So every parameter below float32 has a master, its float32 copy; the optimizer moves the
masters, and the parameters are the masters rounded (1710.03740, section 3.1). Gradients of micro-batches are summed
in float32 too. A parameter in float32 is its own master, and then all this is torch's AdamW digit for digit.

Memory beyond a bfloat16 model of P parameters: 16 P bytes (master, gradient, two moments; 10 P with `adamw8bit`), all
of it allocated at the start, and 2 P for autograd's gradients between `backward` and `collect`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.errors import CheckpointError, InputError
from upcycle.message import listed
from upcycle.requests.train import OptimizerKind
from upcycle.train.parallel.state import clip, gradient_norms

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Where torch has a fused AdamW. On a CPU it takes a sixth of the time of foreach, or less, and no temporary copies."""

SHARED_STATE = frozenset({"qmap1", "qmap2"})
"""bitsandbytes' tables of the values that a byte can stand for: constants, of all parameters in common."""


@dataclass(frozen=True, slots=True, eq=False)
class Master:
    """A trained parameter and its weights in float32."""

    name: str
    parameter: nn.Parameter
    weights: Tensor  # the parameter itself where that is float32
    sum: Tensor | None  # memory for the gradient, where the parameter is not float32
    stored: bool  # whether a checkpoint of the model may hold fewer digits

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter, *, stored: bool = False) -> "Master":
        """Return the master of `parameter`; that of a parameter below float32 is always stored."""
        if parameter.dtype.itemsize >= torch.float32.itemsize:
            return cls(name, parameter, parameter, None, stored)
        weights = parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)
        return cls(name, parameter, weights, torch.empty_like(weights), True)

    def collect(self) -> None:
        """Move the parameter's gradient into the master's."""
        gradient = self.parameter.grad
        if self.sum is None or gradient is None:
            return
        if self.weights.grad is None:
            self.weights.grad = self.sum.copy_(gradient)
        else:
            self.sum.add_(gradient)
        self.parameter.grad = None


class Optimizer:
    """AdamW over named parameters in groups, with float32 masters for parameters below float32.

    For each step: `zero_grad`; for each micro-batch `backward` and `collect`; `norms` and `clip`; `step`.
    """

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        *,
        lr: Mapping[str, float],
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        kind: OptimizerKind = "adamw",
    ) -> None:
        """Allocate masters and state; `groups` is group -> name -> parameter, `lr` the peak of each group.

        Parameters of fewer than two dimensions (norms, biases) do not decay. Raises InputError where `kind` needs a
        package that is not installed.
        """
        self.groups = {
            # Checkpoints store routers as the model's other weights, and with fewer digits than they have here.
            group: [Master.of(name, parameter, stored=group == "router") for name, parameter in named.items()]
            for group, named in groups.items()
        }
        self._peaks: list[float] = []
        options: list[dict[str, Any]] = []
        for group, decay, weights in self._by_decay():
            self._peaks.append(lr[group])
            options.append({"params": weights, "lr": lr[group], "weight_decay": weight_decay if decay else 0.0})
        self._inner = _inner(options, kind, betas=betas, eps=eps)
        _allocate_state(self._inner)

    def _by_decay(self) -> Iterator[tuple[str, bool, list[Tensor]]]:
        for group, masters in self.groups.items():
            for decay in (True, False):
                if weights := [master.weights for master in masters if _decays(master) == decay]:
                    yield group, decay, weights

    @property
    def masters(self) -> list[Master]:
        """The masters of all groups."""
        return [master for masters in self.groups.values() for master in masters]

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> None:
        """After a backward pass: add gradients below float32 to their sums in float32, and free them."""
        for master in self.masters:
            master.collect()

    def gradients(self) -> list[Tensor]:
        """Return the gradients, float32, of parameters that took part, in the order of the groups: to be reduced."""
        return _gradients(self.masters)

    def norms(self) -> dict[str, Tensor]:
        """Return the L2 norms of the gradients, "total" and by group; see `gradient_norms`."""
        device = self._inner.param_groups[0]["params"][0].device
        return gradient_norms({group: _gradients(masters) for group, masters in self.groups.items()}, device)

    def clip(self, max_norm: float, total: Tensor) -> None:
        """Scale the gradients down to the norm `max_norm`, where `total`, which they have, is above it."""
        clip([master.weights for master in self.masters], max_norm, total)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update with the peak learning rates times `factor`, and round the masters into the parameters."""
        for options, peak in zip(self._inner.param_groups, self._peaks, strict=True):
            options["lr"] = peak * factor
        self._inner.step()
        self._round()

    def _round(self) -> None:
        rounded = [master for master in self.masters if master.sum is not None]
        if rounded:
            torch._foreach_copy_([m.parameter for m in rounded], [m.weights for m in rounded])

    def zero_grad(self) -> None:
        """Forget all gradients; the memory of their sums stays."""
        for master in self.masters:
            master.parameter.grad = master.weights.grad = None

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state as `<parameter>:exp_avg`, `:exp_avg_sq`, `:step` and `:master`, for a safetensors file.

        Nothing is copied: the tensors change with the next step. `adamw8bit` has bitsandbytes' names for the moments.
        """
        tensors: dict[str, Tensor] = {}
        for master in self.masters:
            if master.stored:
                tensors[f"{master.name}:master"] = master.weights.detach()
            for key, value in self._inner.state[master.weights].items():
                if key not in SHARED_STATE:
                    tensors[f"{master.name}:{key}"] = torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on digit for digit where `state_tensors` was taken, parameters that have masters included.

        Raises CheckpointError, and loads nothing, when the names, shapes or data types are not those of this optimizer.
        """
        expected = self.state_tensors()
        _refuse_other_names(expected, tensors)
        _refuse_other_shapes(expected, tensors)
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
        for master in self.masters:
            state = self._inner.state[master.weights]
            if isinstance(state["step"], int):  # bitsandbytes' is no tensor
                state["step"] = int(tensors[f"{master.name}:step"])
        self._round()


def _decays(master: Master) -> bool:
    """Whether weight decay is for it: matrices, but not the fused biases or scales of experts, `(E, F)`, nor Mamba's
    `A_log`.
    """
    return master.weights.ndim >= 2 and not master.name.endswith(("bias", ".scale", "A_log"))


def _gradients(masters: list[Master]) -> list[Tensor]:
    return [master.weights.grad for master in masters if master.weights.grad is not None]


def _inner(groups: list[dict[str, Any]], kind: OptimizerKind, **options: Any) -> Any:
    if kind == "adamw8bit":
        if find_spec("bitsandbytes") is None:
            raise InputError(
                "the optimizer adamw8bit needs bitsandbytes, which is not installed",
                hint="pip install bitsandbytes, or --optimizer adamw",
            )
        return import_module("bitsandbytes").optim.AdamW8bit(groups, **options)
    fused = all(weights.device.type in FUSED_DEVICES for group in groups for weights in group["params"])
    return torch.optim.AdamW(groups, **options, fused=fused, foreach=not fused)


def _allocate_state(inner: Any) -> None:
    """What would be allocated at the first step: so the state of step 0 can be saved, and memory does not grow."""
    for index, group in enumerate(inner.param_groups):
        for place, weights in enumerate(group["params"]):
            if not isinstance(inner, torch.optim.AdamW):
                inner.init_state(group, weights, index, place)
                continue
            device = weights.device if group["fused"] else "cpu"
            inner.state[weights] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(weights, memory_format=torch.preserve_format, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(weights, memory_format=torch.preserve_format, requires_grad=False),
            }


def _refuse_other_names(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for what, names in (("lacks", expected.keys() - tensors.keys()), ("has also", tensors.keys() - expected.keys())):
        if names:
            raise CheckpointError(
                f"the optimizer's state {what} {listed(sorted(names), 5)}",
                found=f"{len(tensors)} tensors",
                expected=f"{len(expected)} for the parameters that are trained",
                hint="resume with the model, --train and --optimizer that the checkpoint was made with",
            )


def _refuse_other_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        found, wanted = (f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in (tensors[name], tensor))
        if found != wanted:
            raise CheckpointError(f"the optimizer's state {name} has another shape", found=found, expected=wanted)
