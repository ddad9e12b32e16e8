"""UDIM: SAM on the data, and gradients that stay consistent on worst-case inputs, for domains not seen in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import Parts, companion
from hasten.optim.recipes.attacks import injected, undisturbed
from hasten.optim.recipes.sam import moved, refuse_evaluating, worst_direction
from hasten.optim.wrapper import OptimizerWrapper

CARD = Card(
    name="udim",
    family="optim",
    paper_id=359,
    title="Unknown Domain Inconsistency Minimization for Domain Generalization",
    authors="Shin et al.",
    year=2024,
    summary="SAM plus a penalty on how much the classifier's per-sample gradients change on worst-case inputs.",
    cost="About five forward and backward passes, one of them twice differentiated.",
    when="The network meets inputs from other domains than those it is trained on.",
    kinds=("train",),
    needs=("loss",),
    use="base = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "optimizer = hasten.optim.UDIM(base, model, classifier=model[-1]{hyper})\n"
    "for inputs, labels in loader:\n    optimizer.step(lambda: loss_fn(model(inputs), labels))",
    search_space={"lr": LogReal(1e-4, 1e-1), "rho": LogReal(1e-2, 0.5)},
)


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    base = torch.optim.AdamW(model.parameters(), lr=own.pop("lr", 1e-3))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    # A point to be minimised has no layers; it is assembled only to have its arguments checked.
    return Parts(UDIM(base, model, linear[-1] if linear else nn.Linear(1, 1), **own))


@companion(CARD, _assemble)
class UDIM(OptimizerWrapper):
    """Minimises the loss in a neighbourhood of the weights, and its inconsistency in a neighbourhood of the inputs.

        x~ = x + input_lr * normalised grad_x (L + rho |grad L|);   e = rho grad L / |grad L|
        p.grad = grad L(x; p + e) + weight * grad l
        l = mean over d of mean (V_d - (V_0 + V_1) / 2)^2 + mean_i |g~_i|^2 / size

    `g_i` and `g~_i` are the gradients of single samples in the classifier's parameters, at `x` and `x~`; `V_0` and
    `V_1` are their mean squares around the mean of `g_i`. The closure calls the network on the batch; changed inputs
    are put in their place.

        loss = optimizer.step(lambda: loss_fn(model(inputs), labels))

    Args:
        base: any `torch.optim.Optimizer` that takes gradients.
        model: the network; the closure calls it once, with the inputs (n, ...) as its first argument.
        classifier: its last linear layer, applied to features (n, d).
        rho: radius of SAM's neighbourhood, >= 0.
        input_lr: length of the step of the inputs, >= 0; each entry is normalised over the batch.
        weight: of the inconsistency, >= 0.
        warm_up: first steps, which are SAM.
        style: change only the mean and deviation of each channel of images (n, c, h, w).

    Attributes:
        inconsistency: that of the last step after the warm-up.

    Raises:
        InputError: the base evaluates gradients itself, `step` got no closure, the closure does not call the model, or
            the loss does not depend on the classifier.

    Cost: four forward and five backward passes, of which two are of second order. The closure's loss must be a mean
    over samples. Source: Shin et al. (2024), Unknown Domain Inconsistency Minimization for Domain Generalization, ICLR.
    """

    takes = "loss"  # type: ignore[assignment]

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        classifier: nn.Module,
        rho: float = 0.05,
        input_lr: float = 1.0,
        weight: float = 1.0,
        warm_up: int = 0,
        style: bool = False,
    ) -> None:
        super().__init__(base)
        refuse_evaluating(self, base)
        if not isinstance(classifier, nn.Linear):
            raise InputError(f"classifier must be an nn.Linear, got {type(classifier).__name__}")
        self.model, self.classifier, self.style = model, classifier, style
        self.rho = check.nonnegative("rho", rho)
        self.input_lr = check.nonnegative("input_lr", input_lr)
        self.weight = check.nonnegative("weight", weight)
        self.warm_up = check.integer("warm_up", warm_up, 0)
        self.steps = 0
        self.inconsistency = 0.0

    @torch.enable_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """One step of the base; `closure` returns the loss (no backward), which is returned."""
        if closure is None:
            raise InputError("UDIM.step needs a closure that returns the loss (without backward)")
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        warm = self.steps < self.warm_up
        if warm:
            loss = closure()
            grads = _grads(loss, params)
            changed = None
        else:
            with undisturbed(self.model):
                loss, grads, changed = self._worst_inputs(closure, params)
        with moved(params, worst_direction(params, grads, self.rho)):
            sharp = _grads(closure(), params)
        if changed is not None:
            with undisturbed(self.model):
                inconsistency = self.measure(closure, changed)
            for g, other in zip(sharp, _grads(inconsistency, params)):
                g.add_(other, alpha=self.weight)
            self.inconsistency = float(inconsistency.detach())
        for p, g in zip(params, sharp):
            p.grad = g
        self.base.step()
        self.steps += 1
        return loss.detach()

    def worst_inputs(self, closure: Callable[[], Any]) -> Tensor:
        """The batch of the closure, changed so that loss and sharpness grow."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad(), undisturbed(self.model):
            return self._worst_inputs(closure, params)[2]

    def measure(self, closure: Callable[[], Any], changed: Tensor) -> Tensor:
        """The inconsistency `l` between the batch of the closure and changed inputs, with its graph."""
        with torch.enable_grad():
            plain, other = self._per_sample(closure, None), self._per_sample(closure, changed)
        spread: list[list[Tensor]] = [[], []]
        size_of_gradients = torch.zeros((), device=changed.device, dtype=plain[0].dtype)
        for g, h in zip(plain, other):
            mean = g.mean(0, keepdim=True)
            for place, each in enumerate((g, h)):
                spread[place].append((each - mean).square().mean(0))
            size_of_gradients = size_of_gradients + h.square().sum(1).mean() / h.shape[1]
        first, second = (torch.cat(parts) for parts in spread)
        # Both are as far from their mean as from each other, halved.
        return ((first - second) / 2).square().mean() + size_of_gradients

    def _worst_inputs(self, closure: Callable[[], Any], params: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        seen: dict[str, Tensor] = {}

        def start(inputs: Tensor) -> Tensor:
            x = inputs.detach()
            if not self.style:
                seen["x"] = x.clone().requires_grad_()
                return seen["x"]
            if x.ndim != 4:
                raise InputError(f"style=True needs images (n, c, h, w), got inputs shaped {tuple(x.shape)}")
            seen["mean"] = x.mean((2, 3), keepdim=True)
            seen["std"] = (x.var((2, 3), keepdim=True) + 1e-5).sqrt()
            seen["normed"] = (x - seen["mean"]) / seen["std"]
            return seen["normed"] * seen["std"].requires_grad_() + seen["mean"].requires_grad_()

        with injected(self.model, start):
            loss = closure()
        if not seen:
            raise InputError("the closure did not call the model that was given to UDIM")
        found = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        sharpness = torch.stack([g.square().sum() for g in found if g is not None]).sum().clamp_min(1e-24).sqrt()
        leaves = [seen["mean"], seen["std"]] if self.style else [seen["x"]]
        rise = torch.autograd.grad(loss + self.rho * sharpness, leaves)
        grads = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(params, found)]
        if self.style:
            mean, std = (leaf.detach() + self.input_lr * g for leaf, g in zip(leaves, rise))
            return loss.detach(), grads, seen["normed"] * std + mean
        return loss.detach(), grads, seen["x"].detach() + self.input_lr * F.normalize(rise[0], dim=0, eps=1e-12)

    def _per_sample(self, closure: Callable[[], Any], inputs: Tensor | None) -> list[Tensor]:
        """Gradients of single samples in the classifier's weight and bias, (n, entries), with their graph."""
        with _recorded(self.classifier) as seen:
            if inputs is None:
                loss = closure()
            else:
                with injected(self.model, lambda _: inputs):
                    loss = closure()
        if not seen:
            raise InputError("the loss does not depend on the classifier: it was not called")
        features, outputs = seen[-1]
        (slope,) = torch.autograd.grad(loss, outputs, create_graph=True)
        slope = slope * len(slope)
        weight = (slope.unsqueeze(2) * features.unsqueeze(1)).flatten(1)
        return [weight] if self.classifier.bias is None else [weight, slope]

    def own_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


def _grads(loss: Tensor, params: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.clone() for p, g in zip(params, found)]


@contextmanager
def _recorded(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Input and output of a layer in the evaluations inside."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, args: Any, output: Any) -> None:
        seen.append((args[0], output))

    handle = layer.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
