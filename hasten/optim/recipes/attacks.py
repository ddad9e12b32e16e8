"""Adversarial attacks inside a box: one sign step (FGSM), one from a random start (FGSM-RS), many (PGD)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
Box = tuple[float, float] | None


def fgsm(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, *, loss: Loss = F.cross_entropy,
         box: Box = (0.0, 1.0)) -> Tensor:  # fmt: skip
    """One step of length `eps` along the sign of the gradient: `P(x + eps sign(grad))`.

    Args:
        model: the network; its mode (training or evaluation) is kept, its batch statistics and gradients are not
            touched.
        inputs: (n, ...) floating point.
        labels: what `loss` takes.
        eps: largest change of an entry, >= 0.
        loss: `loss(model(inputs), labels)`, to be increased.
        box: allowed values of the inputs, None for all.

    Returns:
        Changed inputs, without graph. Cost: one forward and one backward pass. Source: Goodfellow, Shlens, Szegedy
        (2015), arXiv 1412.6572.
    """
    return pgd(model, inputs, labels, eps, alpha=eps, steps=1, start=False, loss=loss, box=box)


def fgsm_rs(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, alpha: float | None = None, *,
            loss: Loss = F.cross_entropy, box: Box = (0.0, 1.0), generator: torch.Generator | None = None
            ) -> Tensor:  # fmt: skip
    """One sign step of length `alpha` from a uniformly random start within `eps`.

    Args:
        alpha: length of the step, > 0; 1.25 eps if None.
        generator: source of the start.

    Other arguments, result and cost as for `fgsm`. Source: Wong, Rice, Kolter (2020), arXiv 2001.03994.
    """
    step = 1.25 * eps if alpha is None else alpha
    return pgd(model, inputs, labels, eps, alpha=step, steps=1, loss=loss, box=box, generator=generator)


def pgd(model: nn.Module, inputs: Tensor, labels: Tensor, eps: float, alpha: float | None = None, steps: int = 10, *,
        start: bool = True, loss: Loss = F.cross_entropy, box: Box = (0.0, 1.0),
        generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
    """Projected sign steps: `d <- P(d + alpha sign(grad L(x + d)))`, with `|d| <= eps` and `x + d` in the box.

    Args:
        alpha: length of a step, >= 0; `2.5 eps / steps` if None.
        steps: number of steps, at least 1.
        start: begin at a uniformly random point within `eps` (and the box) instead of at `inputs`.
        generator: source of the start.

    Other arguments and result as for `fgsm`. Cost: `steps` forward and backward passes. Source: Madry et al. (2018),
    arXiv 1706.06083.
    """
    check.nonnegative("eps", eps)
    check.integer("steps", steps, 1)
    length: float = 2.5 * eps / steps if alpha is None else check.nonnegative("alpha", alpha)
    if not inputs.is_floating_point():
        raise InputError(f"inputs must be floating point, got {inputs.dtype}; scale them to the box first")
    low, high = (-float("inf"), float("inf")) if box is None else box
    if not low < high:
        raise InputError(f"box must be (low, high) with low < high, got {box}")
    clean = inputs.detach()
    below, above = (clean - eps).clamp(min=low), (clean + eps).clamp(max=high)
    attacked = clean
    if start:
        noise = torch.rand(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        attacked = (clean + eps * (2 * noise - 1)).clamp(below, above)
    with undisturbed(model):
        for _ in range(steps):
            point = attacked.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(loss(model(point), labels), point)
            attacked = (point.detach() + length * grad.sign()).clamp(below, above)
    return attacked


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluations inside leave the buffers of the network, such as running statistics, as they were."""
    # Others are put in their place: graphs that are still needed hold the present ones.
    kept = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        for module, name, buffer in kept:
            module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer


@contextmanager
def injected(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the network sees `replace(inputs)` instead of the inputs that it is called with."""
    handle = model.register_forward_pre_hook(lambda _, args: (replace(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of inputs whose largest output is their label, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = zip(inputs.split(batch_size), labels.split(batch_size))
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    finally:
        model.train(training)
    return right / len(inputs)
