"""Steps without the part along the weights, where the loss does not depend on their scale, for any optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook
from hasten.optim.layout import real, work_dtype
from hasten.optim.moments import Scalar
from hasten.optim.wrapper import StepHook

PAPER = {
    "family": "optim",
    "paper_id": 196,
    "title": "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    "authors": "Heo et al.",
    "year": 2021,
    "arxiv": "2006.08217",
    "kinds": KINDS,
}
CARD = Card(
    name="radial-free",
    **PAPER,
    summary="Takes out of any optimizer's step the part along weights whose scale does not matter.",
    cost="A copy of the parameters and four dot products per tensor in each step.",
    when="As AdamP, with any other optimizer that has momentum.",
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "radial_free = hasten.optim.RadialFree(optimizer{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


def radial_projection(
    p: Tensor, g: Tensor, u: Tensor, delta: float = 0.1, wd_ratio: float = 0.1, eps: float = 1e-8
) -> tuple[Tensor, float]:
    """Take out of the update `u` its part along the weights `p`, if the gradient `g` says that their scale is free.

    A gradient at right angles to the weights is the mark of scale invariance. Two views are tried in turn, the rows of
    the first axis (the outputs of a layer) and the tensor as a whole: the test is
    `max |cos(g, p)| < delta / sqrt(length of a row)`. Tensors of fewer than two axes never pass.

    Args:
        p, g, u: weights, gradient and update, of one shape.
        delta: how far from a right angle passes.
        wd_ratio: what to multiply weight decay by if the test is passed.
        eps: added to the norm of the weights, and floor of the norms in the cosine.

    Returns:
        The update, and the factor for the weight decay: `wd_ratio`, or 1 where the test is not passed.
    """
    if p.ndim < 2 or not p.numel():
        return u, 1.0
    found, ratio = project(p[None], g[None], u[None], delta, wd_ratio, eps)
    return found[0], float(ratio)


def project(p: Tensor, g: Tensor, u: Tensor, delta: Scalar, wd_ratio: Scalar, eps: Scalar) -> tuple[Tensor, Tensor]:
    """`radial_projection` on a stack (B, n, ...); the factors are shaped (B, 1, ...)."""
    rows, grads, steps = (x.reshape(*x.shape[:2], -1) for x in (p, g, u))
    norms, grad_norms = (torch.linalg.vector_norm(x, dim=2) for x in (rows, grads))
    along, radial = (rows * grads).sum(2), (rows * steps).sum(2)
    width = rows.shape[2]
    views = []
    for size, scale, steepness, dot, part in (
        (width, norms, grad_norms, along, radial),
        (width * rows.shape[1], *map(_whole, (norms, grad_norms)), along.sum(1, True), radial.sum(1, True)),
    ):
        cosine = dot.abs() / (scale.clamp(min=eps) * steepness.clamp(min=eps))  # type: ignore[arg-type]
        free = cosine.amax(1, keepdim=True) < delta * size**-0.5
        views.append((free, (part / (scale + eps) ** 2).expand_as(norms)))
    (by_row, row_part), (as_whole, whole_part) = views
    part = torch.where(by_row, row_part, torch.where(as_whole, whole_part, torch.zeros_like(norms)))
    ones = torch.ones_like(norms[:, :1])
    ratio = torch.where(by_row | as_whole, ones * wd_ratio, ones)
    broad = [1] * (p.ndim - 2)
    return u - part.view(*part.shape, *broad) * p, ratio.view(-1, 1, *broad)


def _whole(norms: Tensor) -> Tensor:
    return torch.linalg.vector_norm(norms, dim=1, keepdim=True)


@hook(CARD)
class RadialFree(StepHook):
    """Takes out of every step of any optimizer the part along weights whose scale does not matter to the loss.

    On `torch.optim.Adam` without weight decay it gives `AdamP`. Decoupled weight decay points along the weights and is
    taken out too: weights that pass the test of `radial_projection` do not decay.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        delta: how far from a right angle passes the test, in units of `1 / sqrt(length)`.
        eps: added to the norm of the weights.

    Raises:
        InputError: the optimizer is AdamP or SGDP, which do this themselves.

    Cost: a copy of the parameters and four dot products per tensor. Source: Heo et al. (2021), arXiv 2006.08217.
    """

    stage = "update"

    def __init__(self, optimizer: Optimizer | None = None, delta: float = 0.1, eps: float = 1e-8) -> None:
        self.delta = check.nonnegative("delta", delta)
        self.eps = check.positive("eps", eps)
        super().__init__(optimizer)

    def check(self, optimizer: Optimizer) -> None:
        if getattr(optimizer, "radial_free", False):
            raise InputError(f"{type(optimizer).__name__} leaves out the radial part itself; use it without RadialFree")

    def on_update(self, params: list[Tensor], old: list[Tensor]) -> None:
        for param, before in zip(params, old):
            if param.ndim < 2 or not param.numel():
                continue
            dtype = work_dtype(param.dtype)
            # The part of a complex step that stretches the weights is the part along them as pairs of reals.
            p, g, new = (real(x)[None].to(dtype) for x in (before, param.grad, param))  # type: ignore[arg-type]
            step, ratio = project(p, g, new - p, self.delta, 0.0, self.eps)
            real(param).copy_(torch.where(ratio == 0.0, p + step, new)[0])
