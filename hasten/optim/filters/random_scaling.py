"""Random scaling: every update is multiplied by one exponentially distributed number."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.optim.adapter import KINDS, hook, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, axpy_, ema_
from hasten.optim.wrapper import StepHook

if TYPE_CHECKING:
    from typing_extensions import Unpack

PAPER = {
    "paper_id": 151,
    "title": "Random Scaling and Momentum for Non-smooth Non-convex Optimization",
    "authors": "Zhang, Cutkosky",
    "year": 2024,
    "arxiv": "2405.09742",
    "kinds": KINDS,
    "family": "optim",
}
CARD = Card(
    name="random-scaling",
    **PAPER,
    summary="Multiplies every update of any optimizer by one random number, exponential with mean 1.",
    cost="A copy of the parameters, one elementwise pass.",
    when="The loss is neither smooth nor convex and guarantees matter; elsewhere it neither helps nor harms.",
    use="optimizer = torch.optim.SGD(model.parameters(), momentum=0.9{hyper.lr})\n"
    "scaling = hasten.optim.RandomScaling(optimizer{hyper})",
    search_space={"lr": LogReal(1e-3, 1.0)},
)
SGDM = Card(
    name="random-scaled-sgdm",
    **PAPER,
    summary="SGD with momentum whose every step is multiplied by one random number, exponential with mean 1.",
    cost="As SGD with momentum: one tensor of state per parameter.",
    when="Where SGD with momentum is used on a loss that is neither smooth nor convex.",
    use="optimizer = hasten.optim.RandomScaledSGDM(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-2, 10.0), "momentum": Choice(0.9, 0.99)},
)


def exponential(*seed: int) -> float:
    """A draw of `s ~ Exp(1)`, the same one for the same seed.

    Drawn anew from seed and step, the numbers go on as they were after a checkpoint that knows only these two.
    """
    mixed = 0
    for part in seed:
        mixed = (mixed * 6_364_136_223_846_793_005 + part + 1) % 2**63
    generator = torch.Generator().manual_seed(mixed)
    return float(torch.empty((), dtype=torch.float64).exponential_(generator=generator))


@hook(CARD, base=partial(torch.optim.SGD, momentum=0.9))
class RandomScaling(StepHook):
    """Multiplies every update by one exponentially distributed number; works on any optimizer.

        s ~ Exp(1);  p <- p_old + s (p_new - p_old)

    Then `E[F(p_old + s d) - F(p_old)] = E[<grad F(p_old + s d), d>]` for any update `d`, however kinked `F` is: the
    gradient that the next step sees accounts exactly for the progress, which no fixed step length achieves. The
    optimizer's own state is not scaled. Prefer it where guarantees without smoothness matter; in practice training is
    on a par with the unscaled one.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        seed: of the numbers.
        per: `step`, one number for all tensors, as the identity asks; `tensor`, one for each.

    Cost: a copy of the parameters and one elementwise pass. Source: Zhang, Cutkosky (2024), arXiv 2405.09742.
    """

    stage: ClassVar[str] = "update"

    def __init__(self, optimizer: Optimizer | None = None, seed: int = 0, per: str = "step") -> None:
        self.seed = check.integer("seed", seed, 0)
        self.per = check.one_of("per", per, ("step", "tensor"))
        super().__init__(optimizer)

    def on_update(self, params: list[Tensor], old: list[Tensor]) -> None:
        s = exponential(self.seed, self.steps)
        for place, (param, before) in enumerate(zip(params, old)):
            if self.per == "tensor":
                s = exponential(self.seed, self.steps, place)
            param.sub_(before).mul_(s).add_(before)


@optimizer(SGDM)
class RandomScaledSGDM(RuleOptimizer):
    """SGD with momentum whose every step is multiplied by one exponentially distributed number.

        m <- momentum m + (1 - momentum) g;  s ~ Exp(1), one for all tensors;  p <- p - s lr m

    Finds approximately stationary points (in the sense of Goldstein) of losses that are neither smooth nor convex at
    the best possible rate. As the gradient enters with weight `1 - momentum`, the learning rate is `1 / (1 - momentum)`
    times that of `torch.optim.SGD`.

    Args:
        params: parameters, named parameters or groups of them.
        lr: mean step size.
        momentum: decay of the average gradient, in [0, 1).
        weight_decay: added to the gradient as `weight_decay * p`.
        seed: of the numbers; that of the first group counts.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as SGD with momentum. Source: Zhang, Cutkosky (2024), arXiv 2405.09742.
    """

    buffers = ("exp_avg",)
    kept = ("steps",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "seed": seed}
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.fraction("momentum", group["momentum"])
        check.integer("seed", group["seed"], 0)

    def advance(self, work: Any) -> None:
        taken = 1 + max(group.get("steps", 0) for group in self.param_groups)
        for group in self.param_groups:
            group["steps"] = taken
        super().advance(work)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        s = exponential(self.param_groups[0]["seed"], group["steps"])
        return {**self.decay(group, coupled=True), "lr": s * group["lr"], "weight": 1 - group["momentum"]}

    @staticmethod
    def update(p: Tensor, g: Tensor, exp_avg: Tensor, *, lr: Scalar, weight: Scalar) -> None:
        ema_(exp_avg, g, weight)
        axpy_(p, -lr, exp_avg)
