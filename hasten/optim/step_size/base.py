"""What rules share that look at the loss itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.optim.base import NonFiniteGradientError, RuleOptimizer


def finite_loss(optimizer: RuleOptimizer, value: float) -> bool:
    """Whether to go on with this loss; one that is infinite or NaN is dealt with as `on_nonfinite` says."""
    if math.isfinite(value) or optimizer.on_nonfinite == "ignore":
        return True
    if optimizer.on_nonfinite == "raise":
        raise NonFiniteGradientError(
            f"the loss is {value}; nothing was changed. Lower the step size or look at the data"
        )
    optimizer.skipped += 1
    return False


class LossOptimizer(RuleOptimizer):
    """Base of rules that evaluate and differentiate the loss themselves, possibly at several points of a step.

    `step` puts the gradients at the present point in place, with `self.value` the loss there, and goes on as any rule
    does; `advance` may call `at_this_point` and `gradients` after it has moved the parameters.
    """

    takes: ClassVar[str] = "loss"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step and return the loss at its start.

        Args:
            closure: returns the loss on the batch, with its graph; it must not call `backward`, and gives the loss of
                the same batch whenever it is called.

        Raises:
            InputError: there is no closure, or it does not return such a loss.
        """
        if closure is None:
            raise InputError(f"{type(self).__name__}.step needs a closure that returns the loss, without backward()")
        self._closure = closure
        try:
            loss = self.at_this_point()
            self._value = float(loss)
            params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
            for param, grad in zip(params, self.differentiate(loss, params), strict=True):
                param.grad = grad
            super().step()
        finally:
            del self._closure
        return loss.detach()

    def at_this_point(self) -> Tensor:
        """The loss at the parameters as they are now, with its graph."""
        with torch.enable_grad():
            loss = self._closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise InputError(
                f"the closure given to {type(self).__name__}.step must return the loss as a tensor with its graph (and "
                f"not call backward), got {loss!r}"
            )
        return loss

    def differentiate(self, loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients of `at_this_point`, None for parameters that it does not depend on."""
        try:
            return list(torch.autograd.grad(loss, list(params), allow_unused=True))
        except RuntimeError as error:
            if "second time" in str(error):
                raise InputError(
                    f"the closure given to {type(self).__name__}.step called backward(); it should only return the loss"
                ) from error
            raise
