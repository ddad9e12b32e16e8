"""DPM-Solver and DPM-Solver++: exponential integrators in the log signal-to-noise ratio."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.diffusion.base import Step, sampler
from hasten.diffusion.samplers.exponential import RULES, Predicting, first_order, multistep
from hasten.numerics import time_grid
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

PAPER = "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps"
PLUS_PLUS = "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"


def _card(name: str, title: str, summary: str, cost: str, when: str) -> Card:
    plus_plus = title is PLUS_PLUS
    return Card(
        name=name,
        family="diffusion",
        title=title,
        authors="Lu, Zhou, Bao, Chen, Li & Zhu",
        year=2022,
        arxiv="2211.01095" if plus_plus else "2206.00927",
        paper_id=None if plus_plus else 92,
        summary=summary,
        cost=cost,
        when=when,
        kinds=("sample",),
        search_space={"grid": Choice("logsnr", "quadratic", "uniform", "karras")},
        use=f'samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="{name}", nfe=12{{hyper}})',
    )


SECOND = _card(
    "dpm-solver-2",
    PAPER,
    "Solves the linear part of the ODE exactly and the noise to second order in the log signal-to-noise ratio.",
    "Two evaluations per step, nothing stored.",
    "At 10 to 20 evaluations without strong guidance.",
)
THIRD = _card(
    "dpm-solver-3",
    PAPER,
    "Solves the linear part of the ODE exactly and the noise to third order in the log signal-to-noise ratio.",
    "Three evaluations per step, nothing stored.",
    "From about 12 evaluations, without strong guidance, where accuracy counts.",
)
MULTISTEP = _card(
    "dpm-solver-2m",
    PAPER,
    "Second order in the log signal-to-noise ratio, from the last two noise predictions.",
    "One evaluation per step, one stored output.",
    "Where evaluations are dear and guidance is weak; `dpmpp-2m` where it is strong.",
)
PLUS_PLUS_2M = _card(
    "dpmpp-2m",
    PLUS_PLUS,
    "DPM-Solver++(2M): second order from the last two predictions of the clean data.",
    "One evaluation per step, one stored output.",
    "The default for guided sampling in 10 to 30 evaluations; bounded predictions keep it stable.",
)
PLUS_PLUS_2S = _card(
    "dpmpp-2s",
    PLUS_PLUS,
    "DPM-Solver++(2S): second order by a midpoint, on predictions of the clean data.",
    "Two evaluations per step, nothing stored.",
    "Under strong guidance, where the multistep form overshoots.",
)
FAST = _card(
    "dpm-solver-fast",
    PAPER,
    "Splits any number of evaluations into steps of order three, and one or two of lower order at the end.",
    "Exactly as many evaluations as are allowed.",
    "When the number of evaluations is fixed and is not a multiple of three.",
)


@sampler(SECOND, order=2)
@sampler(PLUS_PLUS_2S, order=2, predict="x0")
@sampler(PLUS_PLUS_2M, order=2, variant="multistep", predict="x0")
@sampler(MULTISTEP, order=2, variant="multistep")
@sampler(THIRD, order=3)
@dataclass(frozen=True)
class DPMSolver(Predicting):
    """DPM-Solver (noise prediction) and DPM-Solver++ (data prediction), of order 1, 2 or 3.

    From s to t with `h = lam_t - lam_s`, order 1 is DDIM: `x_t = (alpha_t/alpha_s) x - sigma_t (e^h - 1) eps_s`. Higher
    orders add differences of predictions at points inside the step (singlestep) or before it (multistep):
    see `second_order`, `third_order` and `multistep`. A last step to sigma = 0 (data prediction only) is of order 1.

    Args:
        order: 1, 2 or 3.
        variant: `singlestep` evaluates `order` times per step, `multistep` once.
        predict: `eps`, or `x0` for DPM-Solver++.
        r1, r2: where in the step (in lam) the inner evaluations of `singlestep` lie; 1/2, or 1/3 and 2/3, if None.
            The third order needs r2 = 2/3.
        lower_order_final: end a `multistep` chain of fewer than 15 steps with a step of order 1.
        grid, steps: see `Sampler`.

    Cost: 1, 2 or 3 evaluations per step; multistep 1, and `order - 1` stored outputs.
    Source: Lu et al. (2022), arXiv 2206.00927 and 2211.01095.
    """

    order: int = 2
    variant: str = "singlestep"
    predict: str = "eps"
    r1: float | None = None
    r2: float | None = None
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("order", self.order, 1, 3)
        check.one_of("variant", self.variant, ("singlestep", "multistep"))
        check.one_of("predict", self.predict, ("eps", "x0"))
        if self.r1 is not None:
            check.real("r1", self.r1, 0.0, 1.0, open_low=True, open_high=self.order == 3)
        if self.r2 is not None:
            check.real("r2", self.r2, self.r1 or 1.0 / 3.0, 1.0, open_low=True)

    @property
    def evaluations(self) -> int:
        return self.order if self.variant == "singlestep" else 1

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        spans = self.spans(schedule, times)
        orders = [self.order] * len(spans)
        final = self.variant == "multistep" and self.lower_order_final and len(spans) < 15
        if final or schedule.sigma(times[-1]) == 0.0:
            orders[-1] = 1
        if self.variant == "multistep":
            return [multistep(span, spans[:i][::-1], order) for i, (span, order) in enumerate(zip(spans, orders))]
        inner = {key: value for key, value in (("r1", self.r1), ("r2", self.r2)) if value is not None}
        return [RULES[order](span, **inner) if order > 1 else first_order(span) for span, order in zip(spans, orders)]


@sampler(FAST)
@dataclass(frozen=True)
class DPMSolverFast(Predicting):
    """DPM-Solver-fast: spends a given number of evaluations exactly, in steps of orders 3, ..., 3 and a lower rest.

    With K = floor(nfe/3) + 1 steps: orders (3, ..., 3, 2, 1), (3, ..., 3, 1) or (3, ..., 3, 2) where nfe leaves 0, 1 or
    2 modulo 3.

    Args:
        nfe: evaluations to spend; None takes what the problem allows.
        predict: `eps` or `x0`.
        grid: kind of grid. On `logsnr` all steps are equal in lam; on the others a step of order k spans k intervals of
            the grid with `nfe` intervals.

    Cost: `nfe` evaluations. Source: Lu et al. (2022), arXiv 2206.00927.
    """

    nfe: int | None = None
    predict: str = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nfe is not None:
            check.integer("nfe", self.nfe, 1)
        if self.steps is not None:
            raise InputError("dpm-solver-fast chooses its steps itself; give nfe instead of steps")
        if not isinstance(self.grid, str):
            raise InputError("dpm-solver-fast chooses the number of its steps; give the kind of grid, not the times")

    def orders(self, nfe: int) -> list[int]:
        """Order of every step; they sum to `nfe`."""
        count = nfe // 3 + 1
        rest = {0: [2, 1], 1: [1], 2: [2]}[nfe % 3]
        return [3] * (count - len(rest)) + rest

    def plan_for(self, schedule: Schedule, nfe: int | None) -> list[Step]:
        spend = self.nfe if self.nfe is not None else nfe
        if spend is None:
            raise InputError("dpm-solver-fast: give nfe, the number of evaluations to spend")
        orders = self.orders(spend)
        if self.grid == "logsnr":
            times = time_grid.make(schedule, len(orders), "logsnr")
        else:
            fine = time_grid.make(schedule, spend, str(self.grid))
            times = tuple(fine[end] for end in accumulate(orders, initial=0))
        return [RULES[order](span) for span, order in zip(self.spans(schedule, times), orders)]
