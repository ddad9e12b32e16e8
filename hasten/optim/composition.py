"""Several things on one optimizer, in an order that makes sense, as one optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hasten.core.errors import InputError
from hasten.optim.averaging.weights import WeightAverage
from hasten.optim.wrapper import OptimizerWrapper, StepHook, innermost

STAGES = ("storage", "gradient", "update")


class Composition(OptimizerWrapper):
    """An optimizer with what was composed with it; see `compose`.

    Attributes:
        parts: hooks and averages, in the order in which they act.
    """

    def __init__(self, base: Optimizer, parts: tuple[StepHook | WeightAverage, ...]) -> None:
        super().__init__(base)
        self.parts = parts
        self._watch()

    def _watch(self) -> None:
        for part in self.parts:
            if isinstance(part, WeightAverage):
                innermost(self.base).register_step_post_hook(_After(part))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()

    def own_state(self) -> dict[str, Any]:
        return {"parts": [{"kind": type(part).__name__, **part.state_dict()} for part in self.parts]}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"]):
            part.load_state_dict({name: value for name, value in saved.items() if name != "kind"})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state of the optimizer and of all parts.

        Raises:
            InputError: the state is of another composition; nothing was changed.
        """
        own = [type(part).__name__ for part in self.parts]
        theirs = [part["kind"] for part in state_dict.get("wrapper", {}).get("parts", [])]
        if "wrapper" in state_dict and own != theirs:
            raise InputError(f"state_dict is of a composition with {theirs}, this one has {own}")
        super().load_state_dict(state_dict)


def compose(optimizer: Optimizer, *parts: StepHook | WeightAverage) -> Composition:
    """One optimizer made of any optimizer and of what works with it.

        optimizer = compose(AdamW(model.parameters()), GrokfastEMA(), CoordinateClip(0.1), LatestWeightAverage(model))

    Whatever the order of the arguments, a step goes: state storage unpacks; gradient filters, in the order given; the
    optimizer; update filters, in the order given; state storage packs; averages. The result is a
    `torch.optim.Optimizer`: schedulers, `GradScaler` and checkpoints work on it; its `state_dict` restores
    all parts. Call `scheduler.step()` yourself, because only you know whether it counts steps or epochs.

    Args:
        optimizer: any `torch.optim.Optimizer`; one that was made by `compose` is taken as it is.
        parts: hooks made without an optimizer, and weight averages made with their model.

    Raises:
        InputError: a part is not such an object or is attached already, is there twice, or makes no sense with this
            optimizer or with another part; the message says why. Nothing stays attached then.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"compose takes a torch.optim.Optimizer first, got {type(optimizer).__name__}")
    _check(parts)
    hooks = [part for stage in STAGES for part in parts if isinstance(part, StepHook) and part.stage == stage]
    averages = [part for part in parts if isinstance(part, WeightAverage)]
    attached: list[StepHook] = []
    try:
        for hook in hooks:
            hook.attach(optimizer)
            attached.append(hook)
    except InputError:
        for hook in attached:
            hook.detach()
        raise
    for hook in hooks:
        # Hooks act in order of attachment, before and after a step; storage, first before it, must be last after it.
        hook.settle()
    return Composition(optimizer, (*hooks, *averages))


class _After:
    """Lets an average take note after each step."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.average.step()


def _check(parts: tuple[Any, ...]) -> None:
    for part in parts:
        name = type(part).__name__
        if inspect.isclass(part):
            raise InputError(f"compose takes objects, got the class {part.__name__}; write {part.__name__}(...)")
        if isinstance(part, LRScheduler):
            raise InputError(
                f"{name} is a schedule: make it on the composed optimizer and call its step() yourself, once per step "
                "or per epoch as it counts"
            )
        if isinstance(part, Optimizer):
            raise InputError(f"{name} is an optimizer itself; compose takes one, first, and then hooks and averages")
        if not isinstance(part, (StepHook, WeightAverage)):
            raise InputError(f"compose takes hooks and weight averages after the optimizer, got {name}")
        if sum(type(other) is type(part) for other in parts) > 1 and not getattr(part, "repeatable", False):
            raise InputError(f"{name} is there twice: its effect would be applied twice in a step; give it once")
        for other in parts:
            reason = getattr(part, "conflicts", {}).get(type(other).__name__)
            if reason:
                raise InputError(f"{name} and {type(other).__name__} do not go together: {reason}")
