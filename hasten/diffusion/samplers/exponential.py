"""Exponential-integrator steps in the log signal-to-noise ratio, of orders 1 to 3: the formulas of DPM-Solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Row, Sampler, Step
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid


@dataclass(frozen=True)
class Span:
    """From time s to time t of a schedule, in the form that noise and data prediction share.

    Noise prediction: `x_t = (alpha_t/alpha_s) x - sigma_t (e^h - 1) m ...`; data prediction:
    `x_t = (sigma_t/sigma_s) x - alpha_t (e^{-h} - 1) m ...`. So with `h` negated for data, one formula serves both.
    """

    schedule: Schedule
    predict: str
    s: float
    t: float

    @cached_property
    def h(self) -> float:
        """Length of the step in lam, negated for data prediction."""
        length = self.schedule.lam(self.t) - self.lam_s
        return length if self.predict == "eps" else -length

    @cached_property
    def lam_s(self) -> float:
        """Where the step begins in lam."""
        return self.schedule.lam(self.s)

    @cached_property
    def scale(self) -> float:
        """Factor of x."""
        level = self.schedule.alpha if self.predict == "eps" else self.schedule.sigma
        return level(self.t) / level(self.s)

    @cached_property
    def level(self) -> float:
        """Factor of the integral over the predictions."""
        return self.schedule.sigma(self.t) if self.predict == "eps" else self.schedule.alpha(self.t)

    def part(self, fraction: float) -> Span:
        """From s to the point at this fraction of the step in lam."""
        length = self.h if self.predict == "eps" else -self.h
        return Span(self.schedule, self.predict, self.s, self.schedule.t_of_lam(self.lam_s + fraction * length))


def first_order(span: Span) -> Step:
    """`x_t = a x - c (e^h - 1) m_s`: DDIM."""
    return (Row(span.s, span.scale, (-span.level * math.expm1(span.h),)),)


def second_order(span: Span, r1: float = 0.5) -> Step:
    """Midpoint: `x_t = a x - c (e^h - 1) m_s - c/(2 r1) (e^h - 1) (m_1 - m_s)`, `m_1` at `lam_s + r1 h`."""
    middle = span.part(r1)
    grown = span.level * math.expm1(span.h)
    slope = grown / (2.0 * r1)
    return (*first_order(middle), Row(middle.t, span.scale, (-slope, slope - grown)))


def third_order(span: Span, r1: float = 1.0 / 3.0, r2: float = 2.0 / 3.0) -> Step:
    """Two stages at `lam_s + r1 h` and `lam_s + r2 h`, with `D_i = m_i - m_s`.

    `u_2 = a_2 x - c_2 (e^{r2 h} - 1) m_s - c_2 (r2/r1) ((e^{r2 h} - 1)/(r2 h) - 1) D_1`
    `x_t = a x - c (e^h - 1) m_s - (c/r2) ((e^h - 1)/h - 1) D_2`
    """
    one, two, h = span.part(r1), span.part(r2), span.h
    slope_2 = two.level * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1.0)
    slope = span.level / r2 * (math.expm1(h) / h - 1.0)
    return (
        *first_order(one),
        Row(one.t, two.scale, (-slope_2, slope_2 - two.level * math.expm1(r2 * h))),
        Row(two.t, span.scale, (-slope, 0.0, slope - span.level * math.expm1(h))),
    )


def multistep(span: Span, past: Sequence[Span], order: int) -> Step:
    """One evaluation at s and the outputs at the starts of the `past` steps, newest first.

    Order 2, with `r = h_past/h`: `x_t = a x - c (e^h - 1) ((1 + 1/(2r)) m_s - 1/(2r) m_past)`. Order 3 takes the
    derivatives from a parabola: `- c ((e^h - 1)/h - 1) D_1 - 2 c ((e^h - 1 - h)/h^2 - 1/2) D_2`, D_2 the second divided
    difference. (The authors' code leaves out the factor 2, which costs the third order.)
    """
    order = min(order, len(past) + 1)
    if order == 1:
        return first_order(span)
    h = span.h
    c, grown = span.level, math.expm1(h)
    r0 = past[0].h / h
    if order == 2:
        return (Row(span.s, span.scale, (-c * grown * (1.0 + 0.5 / r0), c * grown * 0.5 / r0)),)
    r1 = past[1].h / h
    first, second = c * (grown / h - 1.0), 2.0 * c * ((grown - h) / h**2 - 0.5)
    newer = (first * (1.0 + r0 / (r0 + r1)) + second / (r0 + r1)) / r0
    older = (first * r0 + second) / (r0 + r1) / r1
    return (Row(span.s, span.scale, (-c * grown - newer, newer + older, -older)),)


RULES: dict[int, Callable[..., Step]] = {1: first_order, 2: second_order, 3: third_order}


class Predicting(Sampler):
    """A sampler that asks for the noise or for the clean data."""

    predict: str = "eps"

    def output(self, denoiser: Denoises, x: Tensor, t: float) -> Tensor:
        return denoiser.eps(x, t) if self.predict == "eps" else denoiser.x0(x, t)

    def spans(self, schedule: Schedule, times: Grid) -> list[Span]:
        """The steps of a grid, which must stay off the ends where lam is infinite."""
        check.one_of("predict", self.predict, ("eps", "x0"))
        if self.predict == "eps" and schedule.sigma(times[-1]) == 0.0:
            raise InputError(
                f"the grid ends at t={times[-1]:g} with sigma=0, where a noise prediction divides by zero; end it at a "
                'positive t_min, or use predict="x0"'
            )
        if schedule.alpha(times[0]) < 1e-12:
            raise InputError(
                f"the grid begins at t={times[0]:g} with alpha=0, an infinite step in lam; begin it at a smaller T"
            )
        return [Span(schedule, self.predict, s, t) for s, t in pairwise(times)]
