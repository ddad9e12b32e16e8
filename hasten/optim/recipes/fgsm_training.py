"""Adversarial training with one attack step, around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.errors import InputError
from hasten.optim.recipes.attacks import injected, undisturbed
from hasten.optim.wrapper import OptimizerWrapper


class Smoother(Protocol):
    """What changes the loss of the attacked batch in the light of that of the clean one, such as `ConvergeSmooth`."""

    def loss(self, adv_loss: Tensor, clean_loss: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...


class FastAdversarialTraining(OptimizerWrapper):
    """Trains on single-step attacks from a random start (FGSM-RS), with any optimizer.

        d ~ U(-eps, eps);  d <- P(d + alpha sign(grad_x L(x + d)));  step on L(x + d)

    The closure calls the network on the clean batch; the attack is put in the place of its input.

        loss = optimizer.step(lambda: loss_fn(model(inputs), labels))

    Args:
        base: any `torch.optim.Optimizer` that takes gradients.
        model: the network; the closure calls it once, with the inputs as its first argument.
        eps: largest change of an input entry, >= 0.
        alpha: length of the step; 1.25 eps if None, eps for large eps.
        box: allowed values of the inputs, None for all.
        smooth: a `ConvergeSmooth` that watches the clean loss; None for plain FGSM-RS.

    Raises:
        InputError: the base evaluates gradients itself, `step` got no closure, or the closure does not call the model.

    Cost: two forward and backward passes, and with `smooth` one more forward pass. Sources: Wong, Rice, Kolter (2020),
    arXiv 2001.03994; Zhao et al. (2023), ICCV 2023.
    """

    takes = "loss"  # type: ignore[assignment]

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        eps: float,
        alpha: float | None = None,
        box: tuple[float, float] | None = (0.0, 1.0),
        smooth: Smoother | None = None,
    ) -> None:
        super().__init__(base)
        if getattr(base, "takes", "gradients") != "gradients":
            raise InputError(f"base must take gradients, but {type(base).__name__} evaluates its own inside the step")
        self.model, self.box, self.smooth = model, box, smooth
        self.eps = check.nonnegative("eps", eps)
        self.alpha = 1.25 * eps if alpha is None else check.nonnegative("alpha", alpha)

    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """One step of the base on the attacked batch; returns its loss."""
        if closure is None:
            raise InputError("FastAdversarialTraining.step needs a closure that returns the loss (without backward)")
        low, high = (-float("inf"), float("inf")) if self.box is None else self.box
        seen: dict[str, Tensor] = {}

        def start(clean: Tensor) -> Tensor:
            noise = self.eps * (2 * torch.rand_like(clean) - 1)
            seen["below"], seen["above"] = (clean - self.eps).clamp(min=low), (clean + self.eps).clamp(max=high)
            seen["point"] = (clean + noise).clamp(seen["below"], seen["above"]).detach().requires_grad_()
            return seen["point"]

        with torch.enable_grad():
            clean_loss = closure() if self.smooth is not None else None
            with undisturbed(self.model), injected(self.model, start):
                first = closure()
            if "point" not in seen:
                raise InputError("the closure did not call the model that was given to FastAdversarialTraining")
            (grad,) = torch.autograd.grad(first, seen["point"])
            moved = seen["point"].detach() + self.alpha * grad.sign()
            attacked = moved.clamp(seen["below"], seen["above"])
            with injected(self.model, lambda _: attacked):
                loss = closure()
            whole = loss if self.smooth is None or clean_loss is None else self.smooth.loss(loss, clean_loss)
            self.base.zero_grad()
            whole.backward()
        self.base.step()
        return loss.detach()

    def own_state(self) -> dict[str, Any]:
        return {"smooth": None if self.smooth is None else self.smooth.state_dict()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        if self.smooth is not None and state["smooth"] is not None:
            self.smooth.load_state_dict(state["smooth"])
