"""MultiAdam: Adam for several losses at once, each with moments of its own, so that their scales do not matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import add_ratio_, axpy_, ema_, ema_square_, maximum_

CARD = Card(
    name="multiadam",
    family="optim",
    paper_id=319,
    title="MultiAdam: Parameter-wise Scale-invariant Optimizer for Multiscale Training of Physics-informed Neural "
    "Networks",
    authors="Yao et al.",
    year=2023,
    arxiv="2306.02816",
    summary="Adam with moments of its own for each of several losses, so that none drowns out the others.",
    cost="G backward passes and G times Adam's state for G losses, and one tensor more.",
    when="Losses of very different scale are summed, as equation and boundary terms of physics-informed networks.",
    kinds=KINDS,
    needs=("loss",),
    use="optimizer = hasten.optim.MultiAdam(model.parameters(), num_groups=2{hyper})\n"
    "for inputs, labels in loader:\n"
    "    outputs = model(inputs)\n"
    "    optimizer.step(losses=[loss_fn(outputs, labels), outputs.square().mean()])",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class MultiAdam(RuleOptimizer):
    """Adam per objective; the steps are summed.

        m_i <- b1 m_i + (1-b1) g_i;  v_i <- b2 v_i + (1-b2) g_i^2        for each of the losses i = 1 .. G
        u = sum_i w_i m_i / (sqrt(v_i) / sqrt(1-b2^t) + eps);  p <- p - lr / (1-b1^t) u

        optimizer.step(losses=[equation_loss, boundary_loss])
        optimizer.step(lambda: [equation_loss(), boundary_loss()])

    With `agg_betas` a second Adam smooths `u`. Multiplying a loss by a constant changes nothing but the weight of
    `eps`. For physics-informed networks put the residuals of the equation in one loss, and boundary and initial terms
    in another. One group is Adam.

    Args:
        params: parameters, named parameters or groups of them.
        num_groups: number of losses G, at least 1.
        lr: learning rate.
        betas: decay rates of the moments, in [0, 1).
        eps: added to each root.
        weight_decay: added to every gradient as `weight_decay * p`.
        group_weights: one weight per loss, at least 0; `1 / G` each if None.
        amsgrad: divide by the largest second moment so far.
        agg_betas: decay rates of the second Adam, None for none.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Raises:
        InputError: the number of losses is not `num_groups`, or a loss is not a number with a graph.

    Cost: G backward passes, 2 G + 1 tensors of state per parameter. After a step `p.grad` holds the sum of the
    gradients. Source: Yao et al. (2023), arXiv 2306.02816.
    """

    takes = "loss"
    static = ("objective",)

    def __init__(
        self,
        params: Any,
        num_groups: int = 1,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.99, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        group_weights: Sequence[float] | None = None,
        amsgrad: bool = False,
        agg_betas: tuple[float, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        check.integer("num_groups", num_groups, 1)
        weights = None if group_weights is None else tuple(group_weights)
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "group_weights": weights}
        hyper |= {"amsgrad": amsgrad, "agg_betas": agg_betas, "num_groups": num_groups}
        super().__init__(params, hyper, **options)

    @property
    def num_groups(self) -> int:
        """Number of losses."""
        return self.defaults["num_groups"]

    def check_group(self, group: Mapping[str, Any]) -> None:
        if group["num_groups"] != self.num_groups:
            raise InputError(f"num_groups must be the same for all parameters, {self.num_groups}")
        weights = group["group_weights"]
        if weights is not None:
            if len(weights) != self.num_groups:
                raise InputError(f"group_weights must hold {self.num_groups} numbers, got {weights!r}")
            for place, weight in enumerate(weights):
                check.nonnegative(f"group_weights[{place}]", weight)
        for place, beta in enumerate(group["agg_betas"] or ()):
            check.fraction(f"agg_betas[{place}]", beta)

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        kinds = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        names = [f"{kind}_{place}" for place in range(group["num_groups"]) for kind in kinds]
        names += ["agg_exp_avg", "agg_exp_avg_sq"] if group["agg_betas"] else []
        return dict.fromkeys(["direction", *names], tuple(shape))

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, losses: Sequence[Tensor] | None = None
    ) -> Any:
        """Take one step on the losses, or on what the closure returns: a list of losses, or one loss if G is 1.

        Returns the losses as they were given.
        """
        if (closure is None) == (losses is None):
            raise InputError("MultiAdam.step needs either a closure that returns the losses, or losses=[...]")
        given: Any = losses
        if closure is not None:
            with torch.enable_grad():
                given = closure()
        each = self._gradients_of([given] if isinstance(given, Tensor) else list(given))
        for grads in each:
            if not self._finite(self._work(grads)):
                self.skipped += 1
                return given
        for grads in each:
            self.advance(self._work(grads))
        for param in each[0]:
            param.grad = torch.stack([grads[param] for grads in each]).sum(0)
        return given

    def _gradients_of(self, losses: list[Any]) -> list[dict[Tensor, Tensor]]:
        """The gradient of every loss, by parameter; zero where another loss has one."""
        if len(losses) != self.num_groups:
            raise InputError(f"MultiAdam was made for num_groups={self.num_groups} losses, got {len(losses)}")
        for place, loss in enumerate(losses):
            if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
                raise InputError(f"losses[{place}] must be a number with its graph (no backward), got {loss!r}")
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        found: list[dict[Tensor, Tensor]] = []
        for place, loss in enumerate(losses):
            more = place + 1 < len(losses)
            grads = torch.autograd.grad(loss, params, retain_graph=more, allow_unused=True) if params else ()
            found.append({param: grad for param, grad in zip(params, grads) if grad is not None})
        used = [param for param in params if any(param in grads for grads in found)]
        return [{p: grads[p] if p in grads else torch.zeros_like(p) for p in used} for grads in found]

    def _work(self, grads: Mapping[Tensor, Tensor]) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = grads.get(param)
        return [(batch, self._gradients(batch)) for batch in self._batches()]

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        # The base counts gradients, of which a step has one per loss.
        done, objective = divmod(t - 1, group["num_groups"])
        (b1, b2), t = group["betas"], done + 1
        weights = group["group_weights"] or (1 / group["num_groups"],) * group["num_groups"]
        values = {
            **self.decay(group, coupled=True),
            "objective": objective,
            "last": objective + 1 == group["num_groups"],
            "weight": weights[objective],
            "rate1": 1 - b1,
            "rate2": 1 - b2,
            "root": math.sqrt(1 - b2**t),
            "eps": group["eps"],
            "lr": group["lr"] / (1 - b1**t),
        }
        if group["agg_betas"]:
            a1, a2 = group["agg_betas"]
            values |= {"agg1": 1 - a1, "agg2": 1 - a2, "scale": 1 / (1 - a1**t), "agg_root": math.sqrt(1 - a2**t)}
        return values

    @staticmethod
    def update(
        p: Tensor, g: Tensor, direction: Tensor, agg_exp_avg: Tensor | None = None,
        agg_exp_avg_sq: Tensor | None = None, *, objective: int, last: bool, weight: Any, rate1: Any, rate2: Any,
        root: Any, eps: Any, lr: Any, agg1: Any = None, agg2: Any = None, scale: Any = None, agg_root: Any = None,
        **moments: Tensor,
    ) -> None:  # fmt: skip
        m, v = moments[f"exp_avg_{objective}"], moments[f"exp_avg_sq_{objective}"]
        ema_(m, g, rate1)
        ema_square_(v, g, rate2)
        if f"max_exp_avg_sq_{objective}" in moments:
            v = maximum_(moments[f"max_exp_avg_sq_{objective}"], v)
        add_ratio_(direction, weight, m, v.sqrt().div_(root).add_(eps))
        if not last:
            return
        if agg_exp_avg is None or agg_exp_avg_sq is None:
            axpy_(p, -lr, direction)
        else:
            ema_(agg_exp_avg, direction, agg1)
            ema_square_(agg_exp_avg_sq, direction, agg2)
            add_ratio_(p, -lr * scale, agg_exp_avg, agg_exp_avg_sq.sqrt().div_(agg_root).add_(eps))
        direction.zero_()
