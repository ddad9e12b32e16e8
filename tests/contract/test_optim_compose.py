"""What works beside an optimizer also works with everything else that does: pairwise, on two optimizers."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import hasten
from hasten.core.errors import InputError
from hasten.core.registry import methods
from hasten.optim import ADOPT, GrokfastEMA, LatestWeightAverage, compose
from hasten.optim.averaging.weights import PolynomialAverager, WeightAverage
from hasten.optim.composition import STAGES, Composition
from hasten.optim.wrapper import StepHook

BASES: dict[str, Callable[[Any], Optimizer]] = {
    "torch-adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adopt": lambda params: ADOPT(params, lr=0.01),
}


def _parts() -> list[type]:
    found = [card.load() for card in methods("optim")]
    beside = [cls for cls in found if isinstance(cls, type) and issubclass(cls, (StepHook, WeightAverage))]
    return list(dict.fromkeys([*beside, PolynomialAverager]))


PARTS = _parts()
PAIRS = list(itertools.permutations(PARTS, 2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()


def build(cls: type, model: nn.Module) -> Any:
    needed = {"total_steps": 20, "num_clusters": 2}
    if issubclass(cls, WeightAverage):
        needed["model"] = model
    return cls(**{name: value for name, value in needed.items() if name in inspect.signature(cls).parameters})


def make(base: str, classes: tuple[type, ...]) -> tuple[nn.Module, Composition]:
    model = network()
    return model, compose(BASES[base](model.parameters()), *(build(cls, model) for cls in classes))


def train(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> list[torch.Tensor]:
    for step in range(first, last):
        inputs = torch.sin(torch.arange(24, dtype=torch.float64).reshape(8, 3) * (step + 1))
        optimizer.zero_grad()
        gathering = [part for part in optimizer.parts if hasattr(part, "accumulate")]  # type: ignore[attr-defined]
        for rows in inputs.chunk(2) if gathering else (inputs,):
            (model(rows).square().mean() - model(-rows).mean()).backward()
            for part in gathering:
                part.accumulate()
        for part in optimizer.parts:  # type: ignore[attr-defined]
            if hasattr(part, "observe"):
                part.observe(step % 2)
        optimizer.step()
    averages = [part for part in optimizer.parts if isinstance(part, WeightAverage)]  # type: ignore[attr-defined]
    tensors = [*model.parameters(), *(t for part in averages for t in part.averaged_model.parameters())]
    return [tensor.detach().clone() for tensor in tensors]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def refused(base: str, pair: tuple[type, type]) -> bool:
    """Whether compose turns the pair down; it must then say why, and leave nothing attached."""
    model = network()
    optimizer = BASES[base](model.parameters())
    reason = ""
    try:
        compose(optimizer, *(build(cls, model) for cls in pair))
    except InputError as error:
        reason = str(error)
    if not reason:
        return False
    assert len(reason) > 40
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    return True


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(cls.__name__ for cls in pair))
def test_every_pair_trains_and_its_state_dict_restores_all(base: str, pair: tuple[type, type]) -> None:
    if refused(base, pair):
        return
    model, optimizer = make(base, pair)
    start = [param.detach().clone() for param in model.parameters()]
    middle = train(model, optimizer, 0, 4)
    assert all(torch.isfinite(tensor).all() for tensor in middle)
    assert not same(start, middle[: len(start)])
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other, fresh = make(base, pair)
    train(other, fresh, 0, 2)
    other.load_state_dict(weights)
    fresh.load_state_dict(state)
    assert same(train(model, optimizer, 4, 8), train(other, fresh, 4, 8))


def test_there_is_something_to_compose() -> None:
    assert len(PAIRS) > 50


@pytest.mark.parametrize("cls", PARTS, ids=lambda cls: cls.__name__)
def test_every_part_has_a_place_in_the_order(cls: type) -> None:
    assert issubclass(cls, WeightAverage) or cls.stage in STAGES


class Note(StepHook):
    """Writes down when it acts."""

    seen: list[str] = []  # noqa: RUF012

    def on_gradients(self, params: list[torch.Tensor]) -> None:
        self.seen.append(f"before {type(self).__name__}")

    def on_update(self, params: list[torch.Tensor], old: list[torch.Tensor]) -> None:
        self.seen.append(f"after {type(self).__name__}")


class Storage(Note):
    stage = "storage"


class Filter(Note):
    stage = "gradient"


class Second(Note):
    stage = "gradient"


class Update(Note):
    stage = "update"


def test_the_order_is_that_of_the_documentation() -> None:
    Note.seen.clear()
    model = network()
    optimizer = compose(BASES["adopt"](model.parameters()), Update(), Second(), Filter(), Storage())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    names = ["Storage", "Second", "Filter", "Update"]
    assert Note.seen[:4] == [f"before {name}" for name in names]
    assert Note.seen[-1] == "after Storage"


@pytest.mark.parametrize("base", BASES)
def test_schedulers_scalers_closures_and_copies_work_on_a_composition(base: str) -> None:
    model, optimizer = make(base, (GrokfastEMA, LatestWeightAverage))
    scheduler = LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    train(model, optimizer, 0, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    scaler = torch.amp.GradScaler("cpu")
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(4, 3, dtype=torch.float64)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert same(train(model, optimizer, 3, 6), train(twin_model, twin, 3, 6))


def test_wrong_compositions_are_refused_with_the_reason() -> None:
    model = network()
    optimizer = BASES["torch-adamw"](model.parameters())
    with pytest.raises(InputError, match="twice"):
        compose(optimizer, GrokfastEMA(), GrokfastEMA())
    with pytest.raises(InputError, match="write GrokfastEMA"):
        compose(optimizer, GrokfastEMA)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="its step\\(\\) yourself"):
        compose(optimizer, LambdaLR(optimizer, lambda _: 1.0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is an optimizer itself"):
        compose(optimizer, BASES["adopt"](network().parameters()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"torch\.optim\.Optimizer first"):
        compose(GrokfastEMA(), optimizer)  # type: ignore[arg-type]
    attached = GrokfastEMA(optimizer)
    with pytest.raises(InputError, match="sits on an optimizer already"):
        compose(BASES["adopt"](network().parameters()), attached)
    smb = hasten.optim.make("smb", network().parameters())
    with pytest.raises(InputError, match="evaluates its own"):
        compose(smb, GrokfastEMA())


def test_state_of_another_composition_is_refused() -> None:
    _, left = make("adopt", (GrokfastEMA,))
    _, right = make("adopt", (GrokfastEMA, LatestWeightAverage))
    with pytest.raises(InputError, match="LatestWeightAverage"):
        left.load_state_dict(right.state_dict())
    with pytest.raises(InputError, match="bare optimizer"):
        left.load_state_dict(left.base.state_dict())
