"""AdamW with float32 masters: torch's own on float32, and what bfloat16 alone would lose."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from upcycle.errors import CheckpointError, InputError
from upcycle.train.optimizer import Optimizer

OPTIONS: dict[str, Any] = {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
LR = {"router": 3e-3, "experts": 1e-2, "rest": 1e-3}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "router": {"gate.weight": (4, 16)},
    "experts": {"experts.up": (4, 24, 16), "experts.down": (4, 16, 24)},
    "rest": {"embed.weight": (32, 16), "norm.weight": (16,), "q.bias": (16,)},
}

Groups = dict[str, dict[str, nn.Parameter]]


def drawn(dtype: torch.dtype, seed: int = 0) -> Groups:
    """Parameters of every group."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group: {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}
        for group, shapes in SHAPES.items()
    }


def optimizer(groups: Mapping[str, Mapping[str, nn.Parameter]], **changes: Any) -> Optimizer:
    return Optimizer(groups, **{"lr": LR, "kind": "adamw", **OPTIONS, **changes})


def flat(groups: Groups) -> dict[str, nn.Parameter]:
    return {name: parameter for named in groups.values() for name, parameter in named.items()}


def backward(groups: Groups, seed: int, scale: float = 1.0) -> None:
    """Add gradients of that seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in flat(groups).values():
        gradient = (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def train(groups: Groups, made: Optimizer, steps: range, factor: float = 1.0) -> None:
    """Steps of two micro-batches, clipped."""
    for step in steps:
        made.zero_grad()
        for half in (0, 1):
            backward(groups, 2 * step + half)
            made.collect()
        made.clip(5.0, made.norms()["total"])
        made.step(factor)


def one(values: list[float], dtype: torch.dtype, **changes: Any) -> tuple[nn.Parameter, Optimizer]:
    """A single parameter in the group `rest`."""
    parameter = nn.Parameter(torch.tensor([values], dtype=dtype))
    return parameter, optimizer({"rest": {"w": parameter}}, **changes)


# -- float32: torch's own ---------------------------------------------------------------------------------------------


def torch_adamw(groups: Groups) -> torch.optim.AdamW:
    options = [
        {"params": [p], "lr": LR[group], "weight_decay": 0.1 if p.ndim > 1 else 0.0}
        for group, named in groups.items()
        for p in named.values()
    ]
    return torch.optim.AdamW(options, betas=OPTIONS["betas"], eps=OPTIONS["eps"], fused=True)


def test_float32_is_torchs_adamw_bit_for_bit() -> None:
    ours, theirs = drawn(torch.float32), drawn(torch.float32)
    made, reference = optimizer(ours), torch_adamw(theirs)
    peaks = [options["lr"] for options in reference.param_groups]
    for step in range(20):
        factor = 1 / (1 + step)
        made.zero_grad()
        reference.zero_grad()
        for groups in (ours, theirs):
            backward(groups, step)
        made.collect()
        made.step(factor)
        for options, peak in zip(reference.param_groups, peaks, strict=True):
            options["lr"] = peak * factor
        reference.step()
        assert all(torch.equal(p, q) for p, q in zip(flat(ours).values(), flat(theirs).values(), strict=True)), step


def test_clipping_is_torchs() -> None:
    ours, theirs = drawn(torch.float32), drawn(torch.float32)
    made = optimizer(ours)
    for groups in (ours, theirs):
        backward(groups, 1)
    total = made.norms()["total"]
    made.clip(0.5, total)
    reference = nn.utils.clip_grad_norm_(flat(theirs).values(), 0.5)
    torch.testing.assert_close(total.float(), reference, rtol=1e-6, atol=0)
    torch.testing.assert_close(made.norms()["total"].item(), 0.5, rtol=1e-5, atol=0)
    for p, q in zip(flat(ours).values(), flat(theirs).values(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


def test_small_gradients_are_not_scaled_up() -> None:
    groups = drawn(torch.float32)
    made = optimizer(groups)
    backward(groups, 1)
    before = [gradient.clone() for gradient in made.gradients()]
    made.clip(1e6, made.norms()["total"])
    assert all(map(torch.equal, before, made.gradients()))


def test_one_step_by_hand() -> None:
    # The first step of Adam moves by the learning rate whatever the gradient: m / sqrt(v) = g / |g|.
    # Matrix: 2 - 0.1 * 0.5 * 2 (decay) - 0.1 * 1 = 1.8; vector, which does not decay: 2 - 0.1 * 1 = 1.9
    matrix, vector = nn.Parameter(torch.full((1, 1), 2.0)), nn.Parameter(torch.full((1,), 2.0))
    made = optimizer({"rest": {"matrix": matrix, "vector": vector}}, lr={"rest": 0.1}, weight_decay=0.5, eps=0.0)
    matrix.grad, vector.grad = torch.full((1, 1), 7.0), torch.full((1,), 7.0)
    made.step(1.0)
    assert matrix.item() == pytest.approx(1.8)
    assert vector.item() == pytest.approx(1.9)


def test_groups_have_learning_rates_of_their_own() -> None:
    # As above without decay: each moves by its learning rate times the factor.
    groups = {name: {name: nn.Parameter(torch.zeros(1, 1))} for name in LR}
    made = optimizer(groups, eps=0.0)
    for parameter in flat(groups).values():
        parameter.grad = torch.ones(1, 1)
    made.step(0.5)
    for name, parameter in flat(groups).items():
        assert parameter.item() == pytest.approx(-LR[name] / 2)


def test_norms() -> None:
    # router 3, experts 4, rest none: total 5
    groups = {name: {name: nn.Parameter(torch.zeros(2, 2))} for name in LR}
    made = optimizer(groups)
    groups["router"]["router"].grad = torch.full((2, 2), 1.5)
    groups["experts"]["experts"].grad = torch.full((2, 2), 2.0)
    norms = made.norms()
    assert {name: norm.item() for name, norm in norms.items()} == {"total": 5, "router": 3, "experts": 4, "rest": 0}
    assert all(norm.ndim == 0 for norm in norms.values())


def test_squares_are_summed_in_float64() -> None:
    # 4096^2 = 2^24, from which on float32 has no room for a further one; here are 2^20 ones
    matrix = nn.Parameter(torch.zeros(2, 2**19 + 1))
    made = optimizer({"rest": {"w": matrix}})
    matrix.grad = torch.ones_like(matrix)
    matrix.grad[0, 0], matrix.grad[1, 0] = 4096, 0
    exact = (2**24 + 2**20) ** 0.5
    assert made.norms()["total"].item() == pytest.approx(exact, rel=1e-13) == made.norms()["rest"].item()
    matrix.grad = matrix.grad.T.contiguous().T  # as strided as autograd may leave it
    assert made.norms()["total"].item() == pytest.approx(exact, rel=1e-13)
    made.clip(1.0, made.norms()["total"])
    assert matrix.grad[0, 0].item() == pytest.approx(4096 / exact, rel=1e-6)


def test_a_group_may_be_empty() -> None:
    made = optimizer({"router": {}, "experts": {}, "rest": drawn(torch.bfloat16)["rest"]})
    assert made.norms()["router"] == 0
    made.step(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_without_gradient_stands_still(dtype: torch.dtype) -> None:
    """Not even decay: that is torch's rule for float32, and so it is for masters."""
    groups = drawn(dtype)
    made = optimizer(groups)
    train(groups, made, range(1))
    before = {name: parameter.detach().clone() for name, parameter in flat(groups).items()}
    made.zero_grad()
    backward({"rest": groups["rest"]}, 5)
    made.collect()
    made.step(1.0)
    moved = {name for name, parameter in flat(groups).items() if not torch.equal(parameter, before[name])}
    assert moved == SHAPES["rest"].keys()
    assert len(made.gradients()) == len(SHAPES["rest"])


# -- bfloat16: what masters are for -----------------------------------------------------------------------------------


def test_many_tiny_updates_move_a_bfloat16_parameter() -> None:
    """1 and the next smaller bfloat16 are 1/256 apart: steps of 1e-4 are rounded away, all hundred of them."""
    plain = nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    reference = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0)
    ours, made = one([1.0], torch.bfloat16, lr={"rest": 1e-4}, weight_decay=0.0)
    for _ in range(100):
        plain.grad, ours.grad = torch.ones_like(plain), torch.ones_like(ours)
        reference.step()
        made.zero_grad()
        ours.grad = torch.ones_like(ours)
        made.collect()
        made.step(1.0)
    assert plain.item() == 1.0  # the trap
    assert made.state_tensors()["w:master"].item() == pytest.approx(1 - 100 * 1e-4, rel=1e-5)
    assert ours.item() == 0.98828125  # 0.99 in bfloat16


def test_bfloat16_parameters_are_float32_ones_rounded() -> None:
    """The same gradients, representable in both: after 20 steps the masters are the float32 run's weights."""
    low, high = drawn(torch.bfloat16), drawn(torch.bfloat16)
    high = {
        group: {name: nn.Parameter(p.detach().float()) for name, p in named.items()} for group, named in high.items()
    }
    made, reference = optimizer(low), optimizer(high)
    for step in range(20):
        for groups, which in ((low, made), (high, reference)):
            which.zero_grad()
            generator = torch.Generator().manual_seed(step)
            for parameter in flat(groups).values():
                gradient = torch.randn(parameter.shape, generator=generator).to(torch.bfloat16)
                parameter.grad = gradient.to(parameter.dtype)
            which.collect()
            which.step(1.0)
    masters = {master.name: master.weights for master in made.masters}
    for name, parameter in flat(high).items():
        assert torch.equal(masters[name], parameter)
        assert torch.equal(flat(low)[name], parameter.to(torch.bfloat16))


def test_gradients_are_summed_in_float32() -> None:
    """64 micro-batches: bfloat16 stops adding once the sum is 256 times an addend."""
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.rand(1, 1000, generator=generator).to(torch.bfloat16) for _ in range(64)]
    exact = torch.stack(pieces).double().sum(0)
    plain = nn.Parameter(torch.zeros(1, 1000, dtype=torch.bfloat16))
    ours, made = one([0.0] * 1000, torch.bfloat16)
    for piece in pieces:
        (plain * piece).sum().backward()  # autograd adds to .grad in bfloat16
        (ours * piece).sum().backward()
        made.collect()
        assert ours.grad is None  # freed
    assert plain.grad is not None
    errors = [(total.double() - exact).abs().max().item() for total in (made.gradients()[0], plain.grad)]
    assert errors[0] < 1e-5
    assert errors[1] > 0.1


def test_float16_has_masters_and_float32_has_none() -> None:
    parameters = {str(dtype): nn.Parameter(torch.ones(1, 1, dtype=dtype)) for dtype in (torch.float16, torch.float32)}
    made = optimizer({"rest": parameters})
    assert [name for name in made.state_tensors() if name.endswith(":master")] == ["torch.float16:master"]
    assert made.masters[1].weights is parameters["torch.float32"]


# -- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_visible(dtype: torch.dtype, value: float) -> None:
    groups = drawn(dtype)
    made = optimizer(groups)
    backward(groups, 0)
    gradient = groups["experts"]["experts.up"].grad
    assert gradient is not None
    gradient[1, 2, 3] = value
    made.collect()
    before = [gradient.clone() for gradient in made.gradients()]
    norms = made.norms()
    assert not norms["total"].isfinite()
    assert not norms["experts"].isfinite()
    assert norms["router"].isfinite()
    made.clip(1.0, norms["total"])
    for old, new in zip(before, made.gradients(), strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())  # torch's own would have made zeros of the rest
    finite = [bool(one.isfinite().all()) for one in made.gradients()]
    assert finite == [name != "experts.up" for name in flat(groups)]
    assert not made.norms()["total"].isfinite()


def test_torch_clips_by_infinity_to_zero() -> None:
    """The trap: after it only the gradient that was infinite shows."""
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    parameters[0].grad, parameters[1].grad = torch.ones(2), torch.tensor([torch.inf, 1.0])
    nn.utils.clip_grad_norm_(parameters, 1.0)
    assert parameters[0].grad.tolist() == [0.0, 0.0]


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_same_digit_for_digit(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = drawn(dtype)
    made = optimizer(whole)
    train(whole, made, range(4))
    save_file(made.state_tensors(), tmp_path / "optimizer.safetensors")
    weights = {name: parameter.detach().clone() for name, parameter in flat(whole).items()}
    train(whole, made, range(4, 8))

    again = drawn(dtype, seed=9)
    with torch.no_grad():
        for name, parameter in flat(again).items():
            parameter.copy_(weights[name])
        again["router"]["gate.weight"].add_(1)  # the checkpoint of the model had it in fewer digits
    resumed = optimizer(again)
    resumed.load_state_tensors(load_file(tmp_path / "optimizer.safetensors"))
    assert all(torch.equal(parameter, weights[name]) for name, parameter in flat(again).items())
    train(again, resumed, range(4, 8))
    for name, parameter in flat(again).items():
        assert torch.equal(parameter, flat(whole)[name]), name
    ours, theirs = resumed.state_tensors(), made.state_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_of_the_state() -> None:
    groups = drawn(torch.bfloat16)
    keys = ("step", "exp_avg", "exp_avg_sq", "master")
    assert optimizer(groups).state_tensors().keys() == {f"{name}:{key}" for name in flat(groups) for key in keys}


def test_routers_in_float32_are_stored_in_full() -> None:
    stored = [name for name in optimizer(drawn(torch.float32)).state_tensors() if name.endswith(":master")]
    assert stored == ["gate.weight:master"]


DAMAGES: dict[str, tuple[Any, str]] = {
    "missing": (lambda tensors: tensors.pop("norm.weight:exp_avg"), "lacks norm.weight:exp_avg"),
    "surplus": (lambda tensors: tensors.update({"other:exp_avg": torch.zeros(1)}), "has also other:exp_avg"),
    "shape": (lambda tensors: tensors.update({"q.bias:exp_avg": torch.zeros(4)}), r"q.bias:exp_avg .* \(4,\)"),
    "dtype": (lambda tensors: tensors.update({"q.bias:exp_avg": torch.zeros(16).half()}), "q.bias:exp_avg .* float16"),
    "many": (lambda tensors: tensors.clear(), "and 19 more"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_state_of_something_else_is_refused_whole(damage: str) -> None:
    change, message = DAMAGES[damage]
    groups = drawn(torch.bfloat16)
    made = optimizer(groups)
    tensors = {name: tensor + 1 for name, tensor in made.state_tensors().items()}
    change(tensors)
    before = {name: tensor.clone() for name, tensor in made.state_tensors().items()}
    with pytest.raises(CheckpointError, match=message):
        made.load_state_tensors(tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_tensors().items())


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_allocated_once(dtype: torch.dtype) -> None:
    groups = drawn(dtype)
    made = optimizer(groups)

    def places() -> dict[str, int]:
        tensors: dict[str, Tensor] = dict(made.state_tensors())
        tensors |= {f"{m.name}/sum": m.sum for m in made.masters if m.sum is not None}
        tensors |= {name: parameter.data for name, parameter in flat(groups).items()}
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    before = places()
    train(groups, made, range(3))
    made.load_state_tensors({name: tensor.clone() for name, tensor in made.state_tensors().items()})
    assert places() == before


# -- 8 bits -----------------------------------------------------------------------------------------------------------


def test_eight_bits_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(InputError, match="pip install bitsandbytes") as error:
        optimizer(drawn(torch.float32), kind="adamw8bit")
    assert "--optimizer adamw" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    """Moments of large tensors take a byte each; a step goes where AdamW's goes; a resumed run is the same."""
    groups: Groups = {
        "rest": {
            "big": nn.Parameter(torch.ones(64, 80, dtype=dtype)),
            "small": nn.Parameter(torch.ones(8, dtype=dtype)),
        }
    }
    made = optimizer(groups, kind="adamw8bit")
    train(groups, made, range(3))
    state = {name: tensor.clone() for name, tensor in made.state_tensors().items()}
    assert state["big:state1"].dtype == torch.uint8
    save_file(state, tmp_path / "optimizer.safetensors")
    plain: Groups = {"rest": {name: nn.Parameter(torch.ones_like(p)) for name, p in groups["rest"].items()}}
    train(plain, optimizer(plain), range(3))
    for name, parameter in plain["rest"].items():
        torch.testing.assert_close(
            groups["rest"][name], parameter, rtol=0, atol=4e-3 if dtype == torch.float32 else 8e-3
        )

    again: Groups = {"rest": {name: nn.Parameter(p.detach().clone()) for name, p in groups["rest"].items()}}
    resumed = optimizer(again, kind="adamw8bit")
    resumed.load_state_tensors(load_file(tmp_path / "optimizer.safetensors"))
    train(groups, made, range(3, 6))
    train(again, resumed, range(3, 6))
    assert all(torch.equal(p, again["rest"][name]) for name, p in groups["rest"].items())
