"""What works on the gradients of ANY `torch.optim.Optimizer`: the base of gradient filters and recorders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hasten.core.errors import InputError


class GradientHook(ABC):
    """Sees, and may change in place, every gradient just before the optimizer takes its step.

    It sits on the optimizer's step hook: the training loop, schedulers, `GradScaler` and checkpoints of the
    optimizer go on as before. Several may sit on one optimizer; they act in the order in which they were made. With a
    closure they act after each of its evaluations. A deep copy (or pickle) together with the optimizer works on the
    copied optimizer.

    Attributes:
        optimizer: the optimizer that it sits on.
        state: what is kept per parameter.
        steps: gradients seen.

    Args:
        optimizer: any `torch.optim.Optimizer`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.steps = 0
        self._handle: RemovableHandle | None = optimizer.register_step_pre_hook(self._before)

    @abstractmethod
    def on_gradients(self, params: list[Tensor]) -> None:
        """Act on the parameters that have a gradient; called without gradient recording."""

    def remove(self) -> None:
        """Leave the optimizer as it was; calling it again does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self) -> dict[str, Any]:
        """What must be saved beside the optimizer's own state, to continue exactly; parameters go by their place."""
        places = {param: place for place, param in enumerate(self._params())}
        kept = {places[param]: dict(state) for param, state in self.state.items() if param in places}
        return {"steps": self.steps, "state": kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved state; the tensors are copied.

        Raises:
            InputError: the state is of an optimizer with other parameters.
        """
        params = list(self._params())
        state: dict[Tensor, dict[str, Any]] = {}
        for place, saved in state_dict["state"].items():
            if not 0 <= place < len(params):
                raise InputError(f"state_dict is of more than the {len(params)} parameters of this optimizer")
            param = params[place]
            state[param] = {name: _copy(value, param.device) for name, value in saved.items()}
        self.steps = state_dict["steps"]
        self.state = state

    def _params(self) -> Iterator[Tensor]:
        return (param for group in self.optimizer.param_groups for param in group["params"])

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        places = [place for place in range(1, len(args)) if callable(args[place])]
        closure = kwargs.get("closure") or (args[places[0]] if places else None)
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
        self.steps += 1
        self.on_gradients(params)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handle": self._handle is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._handle = self.optimizer.register_step_pre_hook(self._before) if state["_handle"] else None


def _copy(value: Any, device: torch.device) -> Any:
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value
