"""A denoising network and everything that its output tells: clean data, noise, score, velocity."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import DivergedError, InputError
from hasten.numerics.noise import EDM, Schedule

Network = Callable[..., Tensor]
CACHED = 4096
PREDICTIONS = ("epsilon", "x0", "v", "velocity", "score")


class Denoiser:
    """A network with its schedule, asked for any of the five quantities whichever of them it was trained to predict.

    With `x = alpha x_0 + sigma eps`, each quantity is linear in `(x_0, eps)`: epsilon `eps`, x0 `x_0`,
    v `alpha eps - sigma x_0`, velocity `alpha' x_0 + sigma' eps` (primes by t) and score `-eps/sigma`. From the
    network's output and `x` follow both unknowns, hence any other quantity, exactly.

    Args:
        fn: the network, `fn(x, t)` with x of shape (batch, ...) and t of shape (batch,); returns a tensor like x.
        schedule: the schedule it was trained with.
        prediction: what it returns: `epsilon`, `x0`, `v`, `velocity` or `score`.
        cond: condition handed to the network; None calls it without one.
        cond_arg: name of the network's argument that takes the condition.
        null: condition that stands for none, for guidance: a number for labels, a tensor for embeddings; with None the
            network is called without one.
        check_finite: look for nan and infinity in every output. Costs a reduction per call, and on an accelerator a
            synchronisation; without it only the final sample shows the damage.
        log_prob: log density of the clean data, where it is known: `log_prob(x_0)` of shape (batch,). No sampler uses
            it; pictures do.

    Raises:
        InputError: the output has another shape than x, or the wanted quantity does not exist at this t.
        DivergedError: the output is not finite.
    """

    def __init__(
        self,
        fn: Network,
        schedule: Schedule,
        prediction: str = "epsilon",
        *,
        cond: Any = None,
        cond_arg: str = "cond",
        null: Any = None,
        check_finite: bool = True,
        log_prob: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not callable(fn):
            raise InputError(f"fn must be a network or function of (x, t), got {fn!r}")
        if not isinstance(schedule, Schedule):
            raise InputError(f"schedule must be a hasten.numerics.noise.Schedule, e.g. VPLinear(); got {schedule!r}")
        self.fn = fn
        self.schedule = schedule
        self.prediction = check.one_of("prediction", prediction, PREDICTIONS)
        self.cond = cond
        self.cond_arg = cond_arg
        self.null = null
        self.check_finite = check_finite
        self.log_prob = log_prob
        self._count: Callable[[int], Any] | None = None
        self._batch = 0
        self._factors: dict[tuple[float, str], tuple[float, float]] = {}

    @classmethod
    def from_k_diffusion(
        cls, model: Network, sigma_min: float = 0.002, sigma_max: float = 80.0, **extra_args: Any
    ) -> Denoiser:
        """A denoiser from a callable in the manner of k-diffusion, `model(x, sigma, **extra_args)`.

        Args:
            model: returns the expected clean data behind `x = x_0 + sigma eps`; sigma has shape (batch,).
            sigma_min, sigma_max: the noise levels between which it was trained.
            extra_args: handed to the model in every call, e.g. a condition.
        """
        if not callable(model):
            raise InputError(f"model must be a function of (x, sigma), got {model!r}")

        def network(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return model(x, t, **extra_args, **cond)

        return cls(network, EDM(T=sigma_max, t_min=sigma_min), "x0")

    def given(self, cond: Any) -> Denoiser:
        """The same network under a condition."""
        made = copy.copy(self)
        made.cond = cond
        return made

    def counted(self, count: Callable[[int], Any], batch: int) -> Denoiser:
        """The same network, calling `count(evaluations per sample)` at each call for samples that come in `batch`es.

        A call on several batches at once, as parallel samplers make, is one call of `count`.
        """
        made = copy.copy(self)
        made._count, made._batch = count, batch
        return made

    def eps(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The noise in x at time t (a float, or one time per row). One evaluation."""
        return self._answer(x, t, "epsilon")

    def x0(self, x: Tensor, t: float | Tensor) -> Tensor:
        """The expected clean data behind x at time t. One evaluation."""
        return self._answer(x, t, "x0")

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Gradient of the log density of noisy states at x. One evaluation."""
        return self._answer(x, t, "score")

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`dx/dt` of the probability-flow ODE, `alpha' x_0 + sigma' eps`. One evaluation."""
        return self._answer(x, t, "velocity")

    def v(self, x: Tensor, t: float | Tensor) -> Tensor:
        """`alpha eps - sigma x_0`. One evaluation."""
        return self._answer(x, t, "v")

    def split(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Clean data and noise, `(x_0, eps)`, from one evaluation; `x = alpha x_0 + sigma eps`."""
        factors = [self._factors_for(x, t, wanted) for wanted in ("x0", "epsilon")]
        output = self._evaluate(x, t)
        x0, eps = (self._combined(x, output, pair) for pair in factors)
        return x0, eps

    def mix(self, x: Tensor, t: float, of_x0: float, of_eps: float) -> Tensor:
        """`of_x0 x_0 + of_eps eps` from one evaluation, as one combination of x and the network's output."""
        (x_x0, out_x0), (x_eps, out_eps) = (
            self._factors_for(x, t, wanted) or (0.0, 1.0) for wanted in ("x0", "epsilon")
        )
        output = self._evaluate(x, t)
        return (x * (of_x0 * x_x0 + of_eps * x_eps)).add_(output, alpha=of_x0 * out_x0 + of_eps * out_eps)

    def solve(self, noise: Tensor, steps: int = 400) -> Tensor:
        """The exact probability-flow ODE from `noise` at T to t_min: Runge-Kutta 4 in lam, float64."""
        from hasten.numerics.reference import rk4_lambda

        return rk4_lambda(self, noise, steps=steps)

    def _answer(self, x: Tensor, t: float | Tensor, wanted: str) -> Tensor:
        factors = self._factors_for(x, t, wanted)
        return self._combined(x, self._evaluate(x, t), factors)

    def _evaluate(self, x: Tensor, t: float | Tensor) -> Tensor:
        times = t.to(x) if isinstance(t, Tensor) else x.new_full((), t)
        extra = {} if self.cond is None else {self.cond_arg: _repeated(self.cond, len(x))}
        output = self.fn(x, times.expand(len(x)), **extra)
        if self._count is not None:
            self._count(-(-len(x) // self._batch))
        if not isinstance(output, Tensor) or output.shape != x.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the network must return a tensor of x's shape {tuple(x.shape)}, got {got}{self._at(t)}")
        if self.check_finite and not math.isfinite(output.detach().sum()) and not bool(output.isfinite().all()):
            bad = int((~output.isfinite()).flatten(1).any(1).sum())
            raise DivergedError(
                f"the network ({self.prediction}) returned nan or infinity for {bad} of {len(x)} samples{self._at(t)}"
            )
        return output

    def _at(self, t: float | Tensor) -> str:
        if isinstance(t, Tensor):
            low, high = float(t.min()), float(t.max())
            levels = f"sigma from {self.schedule.sigma(low):.4g} to {self.schedule.sigma(high):.4g}"
            return f" at t from {low:.4g} to {high:.4g} ({levels})"
        return f" at t={t:.4g} (alpha={self.schedule.alpha(t):.4g}, sigma={self.schedule.sigma(t):.4g})"

    def _factors_for(self, x: Tensor, t: float | Tensor, wanted: str) -> tuple[Any, Any] | None:
        """Factors of x and of the output, in a form that multiplies x; None for the output itself.

        They are asked for before the network is, so that a quantity that does not exist costs no evaluation.
        """
        if wanted == self.prediction:
            return None
        if not isinstance(t, Tensor):
            return self._cached(float(t), wanted)
        shape = (-1, *(1,) * (x.ndim - 1)) if t.ndim else ()
        of_x, of_output = (factor.to(x).reshape(shape) for factor in self._factors_at(t.double(), wanted))
        return of_x, of_output

    @staticmethod
    def _combined(x: Tensor, output: Tensor, factors: tuple[Any, Any] | None) -> Tensor:
        if factors is None:
            return output
        of_x, of_output = factors
        if isinstance(of_x, float):
            return (x * of_x).add_(output, alpha=of_output)
        return of_x * x + of_output * output

    def _cached(self, t: float, wanted: str) -> tuple[float, float]:
        found = self._factors.get((t, wanted))
        if found is None:
            if len(self._factors) >= CACHED:
                self._factors.clear()
            found = self._factors[t, wanted] = self._factors_at(t, wanted)
        return found

    def _factors_at(self, t: Any, wanted: str) -> tuple[Any, Any]:
        """Factors of x and of the network's output that make the wanted quantity."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        p1, p2 = self._row(self.prediction, t, alpha, sigma)
        r1, r2 = self._row(wanted, t, alpha, sigma)
        determinant = alpha * p2 - sigma * p1
        if not bool(torch.as_tensor(abs(determinant) > 1e-14).all()):
            where = f"{float(t):.4g}" if torch.as_tensor(t).numel() == 1 else "some of its times"
            raise InputError(
                f"{wanted} does not follow from a {self.prediction} prediction at t={where}, where alpha, sigma or the "
                "signal-to-noise ratio's rate vanishes; end the grid at a t_min (or begin it at a T) away from there"
            )
        return (r1 * p2 - r2 * p1) / determinant, (alpha * r2 - sigma * r1) / determinant

    def _row(self, quantity: str, t: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """Factors of x_0 and of eps in a quantity."""
        one, zero = alpha * 0.0 + 1.0, alpha * 0.0
        if quantity == "score":
            if not bool(torch.as_tensor(sigma > 0).all()):
                raise InputError("the score does not exist where sigma = 0; end the grid at a t_min with sigma > 0")
            return zero, -1.0 / sigma
        if quantity == "v":
            return -sigma, alpha
        if quantity == "velocity":
            return self.schedule.dalpha(t), self.schedule.dsigma(t)
        return (zero, one) if quantity == "epsilon" else (one, zero)


def _repeated(cond: Any, rows: int) -> Any:
    """A batch of conditions for x that stacks several batches, as parallel samplers hand over."""
    if not isinstance(cond, Tensor) or cond.ndim == 0 or not 0 < len(cond) < rows or rows % len(cond):
        return cond
    return cond.repeat(rows // len(cond), *(1,) * (cond.ndim - 1))
