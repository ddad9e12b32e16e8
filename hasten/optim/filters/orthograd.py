"""OrthoGrad: gradients without their part along the weights, before any optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, hook
from hasten.optim.layout import real, work_dtype
from hasten.optim.wrapper import StepHook

CARD = Card(
    name="orthograd",
    family="optim",
    paper_id=378,
    title="Grokking at the Edge of Numerical Stability",
    authors="Prieto et al.",
    year=2025,
    arxiv="2501.04697",
    summary="Removes from every gradient its part along the weights, which only scales the logits up.",
    cost="Three dot products and one elementwise pass per tensor; no state.",
    when="Cross entropy falls on by growing weights alone while the network does not generalise.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "orthogonal = hasten.optim.OrthoGrad(optimizer{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@hook(CARD)
class OrthoGrad(StepHook):
    """Makes the gradient of every tensor orthogonal to the tensor and keeps its length; works on any optimizer.

        o = g - (w.g) / (w.w + eps) w
        g <- o |g| / (|o| + eps)

    Once the training data are fitted, a step along the weights lowers cross entropy by scaling all logits, which
    teaches nothing and ends where rounding makes the gradient zero. Tensors of one element are left alone, as they have
    no direction orthogonal to themselves; a gradient that is parallel to its weights up to rounding becomes zero. The
    optimizer's own weight decay still acts. Prefer it where a network memorises first; a network that has to grow its
    weights to fit at all is held back.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        eps: keeps the quotients finite for weights or gradients of zero; above 0.

    Cost: three dot products and one elementwise pass per tensor. Source: Prieto et al. (2025), arXiv 2501.04697, who
    call the method with AdamW or SGD PerpGrad.
    """

    def __init__(self, optimizer: Optimizer | None = None, eps: float = 1e-30) -> None:
        self.eps = check.positive("eps", eps)
        super().__init__(optimizer)

    def on_gradients(self, params: list[Tensor]) -> None:
        for param in params:
            if param.numel() < 2:
                continue
            dtype = work_dtype(param.dtype)
            grad: Tensor = real(param.grad)  # type: ignore[arg-type]
            w, g = real(param).to(dtype).reshape(-1), grad.to(dtype).reshape(-1)
            o = g - w.dot(g) / (w.dot(w) + self.eps) * w
            before, after = g.norm(), o.norm()
            # Of a parallel gradient only rounding errors are left, which must not be blown up to full length.
            parallel = after <= 4 * torch.finfo(dtype).eps * before
            grad.copy_((o * torch.where(parallel, 0.0, before / (after + self.eps))).view_as(grad))
