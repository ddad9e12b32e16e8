"""What works with ANY `torch.optim.Optimizer`: hooks on its step, and objects that stand in for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hasten.core.errors import InputError


class StepHook:
    """Sees, and may change in place, every gradient just before a step and every parameter just after it.

    It sits on the step hooks of an optimizer: the training loop, schedulers, `GradScaler` and checkpoints of the
    optimizer go on as before. Several may sit on one optimizer; they act in the order in which they were attached, or
    in the order of `compose`. With a closure, `on_gradients` acts after each evaluation. A deep copy (or pickle)
    together with the optimizer works on the copied optimizer.

    A subclass overrides `on_gradients`, `on_update` or both, keeps what it must remember of a parameter in
    `self.state[param]` (a dict of tensors and numbers), and has `optimizer: Optimizer | None = None` as its first
    argument: None leaves it to be attached by `compose` or `attach`.

    Attributes:
        optimizer: the optimizer that it sits on, None before it is attached.
        state: what is kept per parameter.
        steps: gradients seen.
        stage: where `compose` puts it: "storage" (of the optimizer's state: first before a step and last after it),
            "gradient" or "update".
        own: names of attributes (numbers, lists, tensors) that are saved beside `state`.
        conflicts: hooks and averages that it cannot be composed with: class name -> reason.
    """

    stage: ClassVar[str] = "gradient"
    own: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[Mapping[str, str]] = {}

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        self.optimizer: Optimizer | None = None
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.steps = 0
        self._old: dict[Tensor, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        if optimizer is not None:
            self.attach(optimizer)

    def check(self, optimizer: Optimizer) -> None:
        """Raise `InputError` if working on this optimizer makes no sense; says why."""

    def on_gradients(self, params: list[Tensor]) -> None:
        """Act on the gradients of the parameters that have one; called without gradient recording."""

    def on_update(self, params: list[Tensor], old: list[Tensor]) -> None:
        """Act on the parameters that had a gradient; `old` is what they were before the step."""

    def acts(self, method: str) -> bool:
        """Whether "on_gradients" or "on_update" does anything: what does nothing costs nothing."""
        return getattr(type(self), method) is not getattr(StepHook, method)

    def attach(self, optimizer: Optimizer) -> None:
        """Begin to work on this optimizer.

        Raises:
            InputError: it is not an optimizer, this hook sits on one already, or the two make no sense together.
        """
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if self.optimizer is not None:
            raise InputError(f"this {type(self).__name__} sits on an optimizer already; make another one")
        optimizer = innermost(optimizer)
        if getattr(optimizer, "takes", "gradients") != "gradients" and self.acts("on_gradients"):
            raise InputError(
                f"{type(self).__name__} changes gradients before the step, but {type(optimizer).__name__} evaluates "
                "its own inside the step; use it with an optimizer that takes gradients"
            )
        self.check(optimizer)
        self.optimizer = optimizer
        self._register()

    def remove(self) -> None:
        """Leave the optimizer as it was; calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def detach(self) -> None:
        """As `remove`, and free to be attached elsewhere."""
        self.remove()
        self.optimizer = None

    def settle(self) -> None:
        """Act after a step behind all hooks that were attached meanwhile; before a step the place stays."""
        if self.stage == "storage" and len(self._handles) > 1:
            assert self.optimizer is not None
            self._handles.pop().remove()
            self._handles.append(self.optimizer.register_step_post_hook(self._after))

    def state_dict(self) -> dict[str, Any]:
        """What must be saved beside the optimizer's own state, to continue exactly; parameters go by their place."""
        places = {param: place for place, param in enumerate(self._params())}
        kept = {places[param]: dict(state) for param, state in self.state.items() if param in places}
        return {"steps": self.steps, "state": kept, **{name: getattr(self, name) for name in self.own}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved state; the tensors are copied.

        Raises:
            InputError: the state is of another kind of hook, or of an optimizer with other parameters; nothing was
                changed.
        """
        expected = {"steps", "state", *self.own}
        if set(state_dict) != expected:
            raise InputError(
                f"state_dict is not of a {type(self).__name__}: missing {sorted(expected - set(state_dict))}, not "
                f"known {sorted(set(state_dict) - expected)}"
            )
        params = list(self._params())
        state: dict[Tensor, dict[str, Any]] = {}
        for place, saved in state_dict["state"].items():
            if not 0 <= place < len(params):
                raise InputError(f"state_dict is of more than the {len(params)} parameters of this optimizer")
            param = params[place]
            state[param] = {name: copied(value, param.device) for name, value in saved.items()}
        self.steps = state_dict["steps"]
        self.state = state
        for name in self.own:
            setattr(self, name, copied(state_dict[name]))

    def _params(self) -> Iterator[Tensor]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return (param for group in groups for param in group["params"])

    def _register(self) -> None:
        assert self.optimizer is not None
        self._handles = [self.optimizer.register_step_pre_hook(self._before)]
        if self.acts("on_update"):
            self._handles.append(self.optimizer.register_step_post_hook(self._after))

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.acts("on_update"):
            self._old = {param: param.detach().clone() for param in self._params() if param.requires_grad}
        places = [place for place in range(1, len(args)) if callable(args[place])]
        closure = kwargs.get("closure") or (args[places[0]] if places else None)
        if getattr(optimizer, "takes", "gradients") != "gradients":
            self.steps += 1
            return None
        if closure is None:
            self._act()
            return None

        def acted() -> Any:
            loss = closure()
            self._act()
            return loss

        if kwargs.get("closure"):
            return args, {**kwargs, "closure": acted}
        return (*args[: places[0]], acted, *args[places[0] + 1 :]), kwargs

    @torch.no_grad()
    def _act(self) -> None:
        params = [param for param in self._params() if param.grad is not None]
        for param in params:
            if param.grad.layout != torch.strided:  # type: ignore[union-attr]
                raise InputError(
                    f"{type(self).__name__} does not take sparse gradients (of a parameter shaped "
                    f"{tuple(param.shape)}); build the layer with sparse=False"
                )
        # An optimizer that turns down non-finite gradients must do so before a hook has taken them in.
        finite = getattr(self.optimizer, "finite_gradients", None)
        if finite is not None and not finite():
            return
        self.steps += 1
        if self.acts("on_gradients"):
            self.on_gradients(params)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        params = [param for param in self._params() if param.grad is not None and param in self._old]
        old = [self._old[param] for param in params]
        self._old = {}
        self.on_update(params, old)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": bool(self._handles), "_old": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        attached, self._handles = state["_handles"], []
        if attached:
            self._register()


class OptimizerWrapper(Optimizer):
    """Stands in for an optimizer where hooks are not enough, and is one itself to schedulers, `GradScaler` and hooks.

    Parameter groups and state are those of the inner optimizer. A subclass overrides `step` and, if it remembers
    anything, `own_state` and `load_own_state`.

    Attributes:
        base: the optimizer that takes the steps.
        takes: what `step` is given, see `OptimizerMethod`; the base's unless the subclass says otherwise.
    """

    def __init__(self, base: Optimizer) -> None:
        if not isinstance(base, Optimizer):
            raise InputError(f"base must be a torch.optim.Optimizer, got {type(base).__name__}")
        self.base = base

    @property
    def takes(self) -> str:
        return getattr(self.base, "takes", "gradients")

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.base.defaults

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step of the base."""
        return self.base.step() if closure is None else self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base."""
        self.base.add_param_group(param_group)

    def own_state(self) -> dict[str, Any]:
        """What the wrapper itself must save."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `own_state` gave."""

    def state_dict(self) -> dict[str, Any]:
        """State of the base and of the wrapper; `param_groups` and `state` are where PyTorch has them."""
        return {**self.base.state_dict(), "wrapper": self.own_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            InputError: the state is that of a bare optimizer; nothing was changed.
        """
        if "wrapper" not in state_dict:
            raise InputError(f"state_dict is of a bare optimizer, not of a {type(self).__name__}: missing ['wrapper']")
        inner = {name: value for name, value in state_dict.items() if name != "wrapper"}
        self.base.load_state_dict(inner)
        self.load_own_state(state_dict["wrapper"])

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """As `torch.optim.Optimizer`, on the base."""
        return self.base.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """As `torch.optim.Optimizer`, on the base."""
        return self.base.register_step_post_hook(hook)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler puts a `step` on the object that belongs to this very object.
        return {name: value for name, value in vars(self).items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps are taken by, inside whatever stands in for it."""
    while isinstance(optimizer, OptimizerWrapper):
        optimizer = optimizer.base
    return optimizer


def copied(value: Any, device: torch.device | None = None) -> Any:
    """A copy that shares no memory; tensors on this device."""
    if isinstance(value, Tensor):
        return value.detach().to(device or value.device, copy=True)
    if isinstance(value, dict):
        return {name: copied(inner, device) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(inner, device) for inner in value)
    return value
