"""What all guidance shares: two predictions of one network, and a denoiser made of them that any sampler can use.

A guided evaluation gives an estimate of the clean data and the noise with which the state is noised again. For most
guidance these belong together, `x = alpha x_0 + sigma eps`, and the guided denoiser is a denoiser like any other. Where
they do not (CFG++), the pair describes another state of the same noise level, and a step begins there: the sampler
moves to `x + shift` before it combines. On DDIM this is `x_t = alpha_t x_0 + sigma_t eps`, the rule of the paper.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.registry import entry
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import Schedule


class Split(NamedTuple):
    """Clean data and noise of a state."""

    x0: Tensor
    eps: Tensor

    def towards(self, other: Split, w: float) -> Split:
        """`(1 - w) self + w other`: extrapolates for `w > 1`."""
        return Split(torch.lerp(self.x0, other.x0, w), torch.lerp(self.eps, other.eps, w))

    def with_eps(self, look: Look, eps: Tensor) -> Split:
        """The split of the same state whose noise is this."""
        return Split(self.x0 + (look.sigma / look.alpha) * (self.eps - eps), eps)

    def moved(self, look: Look, change: Tensor) -> Split:
        """With these clean data more, and the noise that then belongs to the state."""
        return Split(self.x0 + change, self.eps - look.alpha / look.sigma * change)


class Guidance(ABC):
    """A rule that makes one prediction out of a conditional and an unconditional one. A value, like a sampler.

    Attributes:
        evaluations: network evaluations of a guided one, at most.
        conditional: whether it needs a condition of the network.
        renoises: whether the noise of the answer does not belong to its clean data.
        remembers: whether an answer depends on earlier ones, so that the steps must come one after the other.
    """

    evaluations: ClassVar[int] = 2
    conditional: ClassVar[bool] = True
    renoises: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    @abstractmethod
    def guide(self, look: Look) -> Split:
        """The guided estimate of the clean data, and the noise to noise it with."""

    def memory(self) -> Any:
        """What a chain carries from one evaluation to the next, at its beginning."""
        return None


class Look:
    """One state that is to be denoised, as guidance sees it.

    Attributes:
        denoiser: the network with its schedule and condition.
        x: the batch.
        alpha, sigma: levels of signal and noise, a number or one per row.
        progress: share of the steps that are done.
        memory: what `Guidance.memory` made, for this chain.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, t: float | Tensor, progress: float, memory: Any) -> None:
        self.denoiser = denoiser
        self._t = t
        self.x = x
        self.alpha, self.sigma = levels(denoiser.schedule, x, t)
        self.progress = progress
        self.memory = memory

    def times(self) -> Tensor:
        """The time of every row of x."""
        t = self._t.to(self.x) if isinstance(self._t, Tensor) else self.x.new_full((), self._t)
        return t.expand(len(self.x))

    def conditional(self) -> Split:
        """The network's prediction under the condition. One evaluation."""
        return Split(*self.denoiser.split(self.x, self._t))

    def slope(self, loss: Callable[[Split], Tensor]) -> tuple[Split, Tensor]:
        """The prediction under the condition, and the gradient by x, through the network, of a loss of it.

        Two evaluations: the backward pass counts as one.

        Args:
            loss: a number, the sum over the samples, so that they do not see each other.
        """
        with torch.enable_grad():
            at = copy.copy(self)
            at.x = self.x.detach().requires_grad_(True)
            found = at.conditional()
            (slope,) = torch.autograd.grad(loss(found), at.x)
        if self.denoiser._count is not None:
            self.denoiser._count(len(self.x))
        return Split(found.x0.detach(), found.eps.detach()), slope

    def both(self) -> tuple[Split, Split]:
        """Predictions under the condition and without it. Two evaluations, in one call where conditions are tensors."""
        denoiser, x, t = self.denoiser, self.x, self._t
        cond, null = denoiser.cond, null_condition(denoiser)
        if not (isinstance(cond, Tensor) and isinstance(null, Tensor) and cond.ndim and len(x) == len(cond)):
            return self.conditional(), Split(*denoiser.given(null).split(x, t))
        times = torch.cat((t, t)) if isinstance(t, Tensor) and t.ndim else t
        x0, eps = denoiser.given(torch.cat((cond, null))).split(torch.cat((x, x)), times)
        (x0_c, x0_u), (eps_c, eps_u) = x0.chunk(2), eps.chunk(2)
        return Split(x0_c, eps_c), Split(x0_u, eps_u)

    def unconditional(self, rows: Tensor) -> Split:
        """The prediction without the condition for the rows of these indices. At most one evaluation."""
        null, t = null_condition(self.denoiser), self._t
        if null is not None and not isinstance(null, Tensor):
            x0, eps = self.denoiser.given(null).split(self.x, t)
            return Split(x0[rows], eps[rows])
        if null is not None and null.ndim and len(null) == len(self.x):
            null = null[rows]
        times = t[rows] if isinstance(t, Tensor) and t.ndim else t
        return Split(*self.denoiser.given(null).split(self.x[rows], times))


class GuidedDenoiser:
    """A conditional network under guidance, which answers like a `Denoiser`.

    Args:
        denoiser: the network with its condition, `denoiser.given(labels)`.
        guidance: the rule, e.g. `CFG(7.5)`.

    Attributes:
        shift: what the latest answer adds to the state from which a step begins; None for most guidance.

    Raises:
        InputError: the denoiser has no condition.
    """

    def __init__(self, denoiser: Any, guidance: Guidance) -> None:
        if not isinstance(guidance, Guidance):
            raise InputError(f"guidance must be a hasten.diffusion Guidance, e.g. CFG(7.5); got {guidance!r}")
        if not isinstance(denoiser, Denoiser):
            raise InputError(f"guidance needs a Denoiser, got {type(denoiser).__name__}")
        if guidance.conditional and denoiser.cond is None:
            raise InputError(
                "guidance needs a conditional model and a condition to steer towards, but the denoiser has none; "
                "give denoiser.given(labels)"
            )
        self.guidance = guidance
        self.schedule = denoiser.schedule
        self.shift: Tensor | None = None
        self._count, self._batch = denoiser._count, denoiser._batch
        self._inner = denoiser
        self._begin()

    def _begin(self) -> None:
        self._memory = self.guidance.memory()
        self._progress = 0.0
        self._rows = self._reported = 0
        self._denoiser = self._inner if self._count is None else self._inner.counted(self._tally, 1)

    def begin_step(self, index: int, steps: int) -> None:
        """A sampler begins the step of this index; the first one begins a new chain."""
        if index == 0:
            self._memory = self.guidance.memory()
        self._progress = index / steps

    def counted(self, count: Callable[[int], Any], batch: int) -> GuidedDenoiser:
        """The same, calling `count(evaluations per sample)` at each call of the network; see `Denoiser.counted`.

        Where only some of the samples are evaluated, their shares add up to whole evaluations.
        """
        made = copy.copy(self)
        made._count, made._batch = count, batch
        made._begin()
        return made

    def split(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """The guided clean data and the noise to noise them with."""
        look = Look(self._denoiser, x, t, self._progress, self._memory)
        found = self.guidance.guide(look)
        self.shift = None
        if self.guidance.renoises:
            self.shift = look.alpha * found.x0 + look.sigma * found.eps - x
        return found

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The noise in x, or in the state `x + shift`."""
        return self.split(x, t)[1]

    def x0(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The guided clean data."""
        return self.split(x, t)[0]

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`-eps/sigma`."""
        return self.eps(x, t) / -levels(self.schedule, x, t)[1]

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`alpha' x_0 + sigma' eps`."""
        x0, eps = self.split(x, t)
        time: Any = t.double() if isinstance(t, Tensor) else t
        return column(self.schedule.dalpha(time), x) * x0 + column(self.schedule.dsigma(time), x) * eps

    def v(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`alpha eps - sigma x_0`."""
        x0, eps = self.split(x, t)
        alpha, sigma = levels(self.schedule, x, t)
        return alpha * eps - sigma * x0

    def solve(self, noise: Tensor, steps: int = 400) -> Tensor:
        """The exact guided ODE from `noise`, for guidance that has one."""
        from hasten.numerics.reference import rk4_lambda

        if self.guidance.renoises or self.guidance.remembers:
            raise InputError(f"{type(self.guidance).__name__} follows no differential equation that could be solved")
        return rk4_lambda(self, noise, steps=steps)  # type: ignore[arg-type]

    def _tally(self, rows: int) -> None:
        """Report whole evaluations per sample, from the numbers of samples evaluated."""
        self._rows += rows
        whole = -(-self._rows // self._batch)
        assert self._count is not None
        self._count(whole - self._reported)
        self._reported = whole


def guided(
    sampler: Any, denoiser: Any, guidance: str | Guidance, horizon: int | None
) -> tuple[GuidedDenoiser, int | None]:
    """The denoiser under guidance for a sampler, and how many guided evaluations `horizon` evaluations pay for."""
    if isinstance(guidance, str):
        found = entry(guidance if "." in guidance else f"diffusion.{guidance}").target
        if not (isinstance(found, type) and issubclass(found, Guidance)):
            raise InputError(f"guidance must be a kind of guidance, e.g. 'cfg' or CFG(7.5); {guidance!r} is none")
        guidance = found()
    made = GuidedDenoiser(denoiser, guidance)
    sampler.accept(guidance)
    if horizon is not None and horizon < guidance.evaluations:
        raise InputError(f"a guided step needs {guidance.evaluations} evaluations, but only nfe={horizon} may be used")
    return made, None if horizon is None else horizon // guidance.evaluations


def null_condition(denoiser: Denoiser) -> Any:
    """The denoiser's `null`, a number repeated to the shape of its conditions."""
    cond, null = denoiser.cond, denoiser.null
    if isinstance(cond, Tensor) and isinstance(null, (int, float)):
        return torch.full_like(cond, null)
    if isinstance(cond, Tensor) and isinstance(null, Tensor):
        return null.to(cond).expand_as(cond)
    return null


def levels(schedule: Schedule, x: Tensor, t: float | Tensor) -> tuple[Any, Any]:
    """alpha and sigma at t, as numbers or as columns for rows of x."""
    if not isinstance(t, Tensor):
        return schedule.alpha(t), schedule.sigma(t)
    return column(schedule.alpha(t.double()), x), column(schedule.sigma(t.double()), x)


def column(level: Any, x: Tensor) -> Any:
    """A level per row in the shape that multiplies x; a number as it is."""
    if not isinstance(level, Tensor) or level.ndim == 0:
        return level
    return level.to(x).reshape(-1, *(1,) * (x.ndim - 1))
