"""What every schedule, gradient filter and weight average must stand, on any optimizer."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hasten.core.errors import InputError
from hasten.core.registry import methods
from hasten.optim.averaging.weights import PolynomialAverager, WeightAverage
from hasten.optim.schedules.refined_schedule import GradNormRecorder, RefinedSchedule
from hasten.optim.wrapper import StepHook

HORIZON = 24
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
}


def kinds() -> list[type]:
    """Everything that a card of the family offers beside an optimizer, and what has no card of its own."""
    found = [card.load() for card in methods("optim")]
    beside = [cls for cls in found if isinstance(cls, type) and issubclass(cls, (StepHook, WeightAverage, LRScheduler))]
    return [*beside, PolynomialAverager, GradNormRecorder, RefinedSchedule]


GIVEN = {"total_steps": HORIZON, "factors": [0.2, 1.0, 0.7, 0.5, 0.1]}


def arguments(cls: type) -> dict[str, Any]:
    """What must be given beside the optimizer or the network, by its usual name."""
    wanted = list(inspect.signature(cls).parameters.values())[1:]
    return {argument.name: GIVEN[argument.name] for argument in wanted if argument.default is argument.empty}


@dataclass
class Loop:
    """A network in training with what stands beside its optimizer."""

    model: nn.Module
    optimizer: Optimizer
    beside: Any

    @classmethod
    def make(cls, kind: type, optimizer: str) -> Loop:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
        groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[3].parameters()]}]
        made = OPTIMIZERS[optimizer](groups)
        given = model if issubclass(kind, WeightAverage) else made
        return cls(model, made, kind(given, **arguments(kind)))

    def gradients(self, t: int, skip: bool = False) -> torch.Tensor:
        inputs = torch.sin(torch.arange(24, dtype=torch.float64).reshape(8, 3) * (t + 1))
        self.optimizer.zero_grad()
        loss = self.model(inputs).square().mean() - self.model(-inputs).mean()
        loss.backward()
        if skip:
            self.model[0].bias.grad = None
        feed(self.beside)
        return loss

    def steps(self, first: int, last: int, closure: bool = False) -> list[torch.Tensor]:
        for t in range(first, last):
            if closure:
                self.optimizer.step(lambda t=t: self.gradients(t, skip=t % 5 == 1).item())
            else:
                self.gradients(t, skip=t % 5 == 1)
                self.optimizer.step()
            if not isinstance(self.beside, StepHook):
                self.beside.step()
        return self.seen()

    def seen(self) -> list[torch.Tensor]:
        tensors = list(self.model.state_dict().values())
        if isinstance(self.beside, WeightAverage):
            tensors += self.beside.averaged_model.state_dict().values()
        if isinstance(self.beside, GradNormRecorder):
            tensors.append(torch.tensor(self.beside.norms))
        tensors.append(torch.tensor([group["lr"] for group in self.optimizer.param_groups]))
        return [tensor.detach().clone() for tensor in tensors]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def feed(beside: Any) -> None:
    """Give a hook that wants the gradients of micro-batches those that are in place, as two equal ones."""
    if hasattr(beside, "accumulate"):
        grads = {param: param.grad for group in beside.optimizer.param_groups for param in group["params"]}
        for _ in range(2):
            for param, grad in grads.items():
                param.grad = grad
            beside.accumulate()


def fits(kind: type, optimizer: str) -> bool:
    """Whether the kind takes this optimizer; a hook may refuse one that it makes no sense on."""
    if not issubclass(kind, StepHook) or kind.check is StepHook.check:
        return True
    try:
        kind(None, **arguments(kind)).check(OPTIMIZERS[optimizer]([nn.Parameter(torch.zeros(1))]))
    except InputError:
        return False
    return True


PAIRS = [(kind, optimizer) for kind in kinds() for optimizer in OPTIMIZERS if fits(kind, optimizer)]
assert {kind for kind, _ in PAIRS} == set(kinds())
pytestmark = pytest.mark.parametrize(
    ("kind", "optimizer"), PAIRS, ids=[f"{kind.__name__}-{optimizer}" for kind, optimizer in PAIRS]
)


def test_trains(kind: type, optimizer: str):
    loop = Loop.make(kind, optimizer)
    start = loop.seen()
    end = loop.steps(0, 15)
    assert not same(start, end)
    assert all(torch.isfinite(tensor).all() for tensor in end)


def test_saved_state_continues_exactly(kind: type, optimizer: str):
    loop = Loop.make(kind, optimizer)
    loop.steps(0, 9)
    file = io.BytesIO()
    parts = (loop.model, loop.optimizer, loop.beside)
    torch.save([part.state_dict() for part in parts], file)
    expected = loop.steps(9, 20)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = Loop.make(kind, optimizer)
    other.steps(0, 3)
    for part, state in zip((other.model, other.optimizer, other.beside), saved):
        part.load_state_dict(state)
    assert same(other.steps(9, 20), expected)


def test_loaded_state_shares_no_memory(kind: type, optimizer: str):
    loop = Loop.make(kind, optimizer)
    loop.steps(0, 9)
    saved = copy.deepcopy(loop.beside.state_dict())
    kept = copy.deepcopy(saved)
    other = Loop.make(kind, optimizer)
    other.beside.load_state_dict(saved)
    other.steps(0, 5)
    assert repr(saved) == repr(kept)


def test_deep_copies_go_their_own_way(kind: type, optimizer: str):
    loop = Loop.make(kind, optimizer)
    if isinstance(loop.beside, LRScheduler):
        return  # torch's schedulers bind the step method of the very optimizer: they are copied by state_dict
    loop.steps(0, 7)
    copied = copy.deepcopy(loop)
    before = loop.seen()
    moved = copied.steps(7, 15)
    assert same(loop.seen(), before), "the copy must not touch the original"
    assert same(loop.steps(7, 15), moved)


def test_closure_is_the_same_as_gradients_before(kind: type, optimizer: str):
    plain = Loop.make(kind, optimizer).steps(0, 8)
    assert same(Loop.make(kind, optimizer).steps(0, 8, closure=True), plain)


def test_parameters_added_later_take_part(kind: type, optimizer: str):
    if not issubclass(kind, StepHook):
        return
    loop = Loop.make(kind, optimizer)
    loop.steps(0, 3)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    loop.optimizer.add_param_group({"params": [late]})
    late.grad = torch.tensor([1.0, 2.0], dtype=torch.float64)
    feed(loop.beside)
    loop.optimizer.step()
    assert not torch.equal(late.detach(), torch.ones(2, dtype=torch.float64))
    loop.steps(3, 6)


def test_can_be_removed(kind: type, optimizer: str):
    loop = Loop.make(kind, optimizer)
    if not isinstance(loop.beside, StepHook):
        assert not loop.optimizer._optimizer_step_pre_hooks, "only gradient hooks may sit on the optimizer"
        return
    loop.beside.remove()
    loop.beside.remove()
    assert not loop.optimizer._optimizer_step_pre_hooks
    steps = loop.beside.steps
    loop.steps(0, 2)
    assert loop.beside.steps == steps


def test_sparse_gradients_are_refused(kind: type, optimizer: str):
    if not issubclass(kind, StepHook):
        return
    table = nn.Embedding(5, 2, sparse=True)
    made = OPTIMIZERS[optimizer](table.parameters())
    hook = kind(made, **arguments(kind))
    table(torch.tensor([1, 2])).sum().backward()

    def step() -> None:
        feed(hook)
        made.step()

    with pytest.raises(ValueError, match="does not take sparse gradients"):
        step()


def test_only_an_optimizer_or_a_network_is_accepted(kind: type, optimizer: str):
    with pytest.raises((TypeError, ValueError)):
        kind([nn.Parameter(torch.zeros(1))], **arguments(kind))
