"""D-Adaptation: SGD, Adam and AdaGrad that estimate the distance to the solution and so need no learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card
from hasten.optim import flat
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options
from hasten.optim.layout import real
from hasten.optim.moments import add_ratio_, axpy_, ema_, ema_square_
from hasten.optim.step_size.dadapt_base import DAdaptation, Work, l2, of, quotient, sign

PAPER = {
    "family": "optim",
    "paper_id": 259,
    "title": "Learning-Rate-Free Learning by D-Adaptation",
    "authors": "Defazio, Mishchenko",
    "year": 2023,
    "arxiv": "2301.07733",
    "kinds": KINDS,
}
SGD_CARD = Card(
    name="dadapt-sgd",
    **PAPER,
    summary="SGD whose step size comes from a growing lower bound on the distance to the solution; nothing to tune.",
    cost="Two tensors per parameter; a dot product and a norm per step.",
    when="Problems where SGD does well and there is no time to tune its learning rate.",
    use="optimizer = hasten.optim.DAdaptSGD(model.parameters(){hyper})",
)
ADAM_CARD = Card(
    name="dadapt-adam",
    **PAPER,
    summary="Adam whose learning rate is a growing lower bound on the distance to the solution; nothing to tune.",
    cost="One tensor more than Adam; a weighted dot product and a norm per step.",
    when="Networks that are trained with Adam, where there is no time to tune its learning rate.",
    use="optimizer = hasten.optim.DAdaptAdam(model.parameters(){hyper})",
)
ADAGRAD_CARD = Card(
    name="dadapt-adagrad",
    **PAPER,
    summary="AdaGrad whose learning rate is a growing lower bound on the distance to the solution; nothing to tune.",
    cost="Three tensors per parameter; three sums per step.",
    when="Convex problems with features of very different frequency or scale.",
    use="optimizer = hasten.optim.DAdaptAdaGrad(model.parameters(){hyper})",
)


@optimizer(SGD_CARD)
class DAdaptSGD(DAdaptation):
    """Dual-averaging SGD without a learning rate: it follows from a lower bound `d` on the distance to the solution.

        lam = d * lr / |g_1|
        N <- N + lam <g, s>;   s <- s + lam g;   d <- max(d, min(2 N / |s|, growth_rate * d))
        p <- momentum * p + (1 - momentum) * (x_0 - s)

    `d` starts at `d0`, only grows, and is one number for all groups. On convex Lipschitz problems it reaches the
    distance within a factor of two or so, and the rate of optimally tuned SGD follows, without a logarithmic factor.

    Args:
        params: parameters, named parameters or groups of them; the lr of a group is that of the others, or 0: then the
            group rests.
        lr: multiplies the step size; leave it at 1, or let a schedule change it.
        momentum: in [0, 1).
        weight_decay: added to the gradient as `weight_decay * p`.
        d0: first estimate, too small rather than too large.
        growth_rate: most that `d` may grow by in a step, at least 1; 1.02 warms up slowly where training is unstable.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Steps are left out until the first gradient that is not zero.

    Cost: two tensors per parameter. Source: Defazio, Mishchenko (2023), arXiv 2301.07733.
    """

    buffers = ("s", "start")

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "d0": d0, "growth_rate": growth_rate}
        super().__init__(params, hyper, **options)

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        state["start"].copy_(param)

    def scale(self, work: Work, k: int) -> float:
        memory = self.param_groups[0]
        if "first_norm" not in memory:
            norm = flat.norm([grad for _, grads in work for grad in grads])
            if norm == 0.0:
                return 0.0
            memory["first_norm"] = norm
        return 1.0 / memory["first_norm"]

    def numerator_before(self, work: Work) -> float:
        total = 0.0
        for batch, grads in work:
            s = of(batch, "s")
            along, shrink = flat.dots((grads, s), (batch.params, s) if l2(batch) else ((), ()))
            total += sign(batch) * along + l2(batch) * shrink
        return self._lam * total

    def estimate(self, numerator: float) -> float:
        return quotient(2 * numerator, flat.norm(self.states("s")))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {**self.decay(group, coupled=True), "lam": self._lam, "weight": 1 - group["momentum"]}

    @staticmethod
    def update(p: Tensor, g: Tensor, s: Tensor, start: Tensor, *, lam: Any, weight: Any) -> None:
        axpy_(s, lam, g)
        ema_(p, start - s, weight)


@optimizer(ADAM_CARD)
class DAdaptAdam(DAdaptation):
    """Adam without a learning rate: it is a lower bound `d` on the distance to the solution, in the l-infinity norm.

        lam = d * lr   (times sqrt(1 - beta2^t) / (1 - beta1^t) with `use_bias_correction`),   q = sqrt(beta2)
        a = lam <g, s / (sqrt(v) + eps)>,   with s and v from before the step
        m <- beta1 m + (1 - beta1) lam g;   v <- beta2 v + (1 - beta2) g^2;   s <- q s + (1 - q) lam g
        p <- p - m / (sqrt(v) + eps)
        N <- q N + (1 - q) a;   d <- max(d, min(N / ((1 - q) |s|_1), growth_rate * d))

    `d` starts at `d0`, only grows, and is one number for all groups.

    Args:
        params: parameters, named parameters or groups of them; the lr of a group is that of the others, or 0: then the
            group rests.
        lr: multiplies the step size; leave it at 1, or let a schedule change it.
        betas: decay rates of the moments, in [0, 1); the second of the first group also serves `s` and `N`.
        eps: added to the root of the second moment.
        weight_decay: added to the gradient, or with `decouple`: `p <- p * (1 - weight_decay * lam)`.
        decouple: decoupled weight decay, as AdamW has it.
        use_bias_correction: Adam's correction; without it the first steps are smaller.
        d0: first estimate, too small rather than too large.
        growth_rate: most that `d` may grow by in a step, at least 1; 1.02 where `d` overshoots.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Steps are left out until the first gradient that is not zero.

    Cost: one tensor more than Adam. Source: Defazio, Mishchenko (2023), arXiv 2301.07733.
    """

    buffers = ("exp_avg", "exp_avg_sq", "s")

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decouple": decouple,
            "use_bias_correction": use_bias_correction, "d0": d0, "growth_rate": growth_rate,
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eps", group["eps"])
        super().check_group(group)

    @property
    def _q(self) -> float:
        return math.sqrt(self.param_groups[0]["betas"][1])

    def scale(self, work: Work, k: int) -> float:
        memory = self.param_groups[0]
        if not memory["use_bias_correction"]:
            return super().scale(work, k)
        beta1, beta2 = memory["betas"]
        return super().scale(work, k) * math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))

    def numerator_before(self, work: Work) -> float:
        total = 0.0
        for batch, grads in work:
            sums, seconds = of(batch, "s"), of(batch, "exp_avg_sq")
            scaled = [s / v.sqrt().add_(batch.group["eps"]) for s, v in zip(sums, seconds)]
            along, shrink = flat.dots((grads, scaled), (batch.params, scaled) if l2(batch) else ((), ()))
            total += sign(batch) * along + l2(batch) * shrink
        return self._lam * total

    def numerator_after(self, before: float, work: Work) -> float:
        memory = self.param_groups[0]
        memory["numerator"] = self._q * memory.get("numerator", 0.0) + (1 - self._q) * before
        return memory["numerator"]

    def estimate(self, numerator: float) -> float:
        return quotient(numerator, (1 - self._q) * flat.norm(self.states("s"), 1))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        decay = group["weight_decay"]
        kind = {"keep": 1 - decay * self._lam} if group["decouple"] and decay else self.decay(group, coupled=True)
        beta1, beta2 = group["betas"]
        weights = {"weight1": 1 - beta1, "weight2": 1 - beta2, "weight_s": 1 - self._q}
        return {**kind, **weights, "lam": self._lam, "eps": group["eps"]}

    @staticmethod
    def update(
        p: Tensor, g: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, s: Tensor, *,
        lam: Any, weight1: Any, weight2: Any, weight_s: Any, eps: Any,
    ) -> None:  # fmt: skip
        scaled = g * lam
        ema_(exp_avg, scaled, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        ema_(s, scaled, weight_s)
        add_ratio_(p, -1.0, exp_avg, exp_avg_sq.sqrt().add_(eps))


@optimizer(ADAGRAD_CARD)
class DAdaptAdaGrad(DAdaptation):
    """Dual-averaging AdaGrad without a learning rate: it is a lower bound `d` on the distance, in the l-infinity norm.

        lam = d * lr
        G <- G + g^2  (from 1e-6);   s <- s + lam g;   A = sqrt(G) + eps
        N <- N + lam^2 sum(g^2 / A);   d <- max(d, min((sum(s^2 / A) - N) / |s|_1, growth_rate * d))
        p <- momentum * p + (1 - momentum) * (x_0 - s / A)

    Args:
        params, lr, momentum, weight_decay, d0, growth_rate, options: as in `DAdaptSGD`.
        eps: added to the root of the summed squares.

    Steps are left out until the first gradient that is not zero.

    Cost: three tensors per parameter. Source: Defazio, Mishchenko (2023), arXiv 2301.07733.
    """

    buffers = ("s", "start", "sum")

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {**hyper, "d0": d0, "growth_rate": growth_rate}, **options)

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        state["start"].copy_(param)
        state["sum"].fill_(1e-6)

    def numerator_before(self, work: Work) -> float:
        # The gradient with its decay is that of before the step, its weight 1 / A that of after it.
        total = 0.0
        for batch, grads in work:
            for param, grad, state in zip(batch.params, grads, batch.states):
                g = real(grad).to(state["s"].dtype) * sign(batch)
                g = g.add_(real(param), alpha=l2(batch)) if l2(batch) else g
                square = g.square()
                total += flat.dot([square], [(state["sum"] + square).sqrt_().add_(batch.group["eps"]).reciprocal_()])
        return self._lam**2 * total

    def estimate(self, numerator: float) -> float:
        weighted = 0.0
        for group in self.param_groups:
            states = [
                self.state[param] for param in group["params"] if float(group["lr"]) > 0 and self.state.get(param)
            ]
            scaled = [state["s"] / (state["sum"].sqrt() + group["eps"]) for state in states]
            weighted += flat.dot([state["s"] for state in states], scaled)
        return quotient(weighted - numerator, flat.norm(self.states("s"), 1))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        decay = self.decay(group, coupled=True)
        return {**decay, "lam": self._lam, "weight": 1 - group["momentum"], "eps": group["eps"]}

    @staticmethod
    def update(p: Tensor, g: Tensor, s: Tensor, start: Tensor, sum: Tensor, *, lam: Any, weight: Any, eps: Any) -> None:
        sum.add_(g * g)
        axpy_(s, lam, g)
        ema_(p, torch.sub(start, s / sum.sqrt().add_(eps)), weight)
