"""Kind `minimise`: an explicit function of one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem

Function = Callable[[Tensor], Tensor]


class Minimisation(Instance):
    """A function `fun` to be minimised from `x0`. The answer (`state.x`) is a tensor shaped like `x0`.

    Oracles, each counted under its name: `value`, `gradient`, `hessian`, `hvp`, `prox`. Derivatives that are not
    given come from autograd. With `noisy_gradient`, `gradient` draws a stochastic one. `evaluate` is the value with its
    graph, of the drawn sample where gradients are stochastic; counted as `gradient` where a graph is recorded.

    Args:
        fun: the smooth part, tensor -> 0-dim tensor.
        x0: the start.
        gradient, hessian: closed forms, if known.
        noisy_gradient: `(x, generator)` -> unbiased estimate of the gradient.
        noisy_fun: `(x, generator)` -> value of the sample that `noisy_gradient` would draw from this generator.
        nonsmooth, prox: a second term `h` and `prox(v, t) = argmin_u h(u) + |u-v|^2/(2t)`.
        minimum: least value of the whole objective, so that the metric is the gap; 0 if not known.
        metric: replaces the objective gap.
        generator: source of the noise.
    """

    kind = "minimise"

    def __init__(
        self,
        fun: Function,
        x0: Tensor,
        *,
        gradient: Function | None = None,
        hessian: Function | None = None,
        noisy_gradient: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        noisy_fun: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        nonsmooth: Function | None = None,
        prox: Callable[[Tensor, float], Tensor] | None = None,
        minimum: float = 0.0,
        metric: Callable[[Tensor], float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.fun = fun
        self.x0 = x0
        self.minimum = minimum
        self.generator = generator or torch.Generator().manual_seed(0)
        self._gradient = gradient or torch.func.grad(fun)
        self._hessian = hessian or torch.func.hessian(fun)
        self._noisy = noisy_gradient
        self._noisy_fun = noisy_fun
        self._drawn: Tensor | None = None
        self._nonsmooth = nonsmooth
        self._prox = prox
        self._metric = metric

    def offers(self) -> frozenset[str]:
        smooth = {"gradient", "value"} | ({"hessian", "hvp"} if self._noisy is None else set())
        smooth |= {"loss"} if self._noisy is None or self._noisy_fun is not None else set()
        return frozenset(smooth | ({"prox"} if self._prox else set()))

    def value(self, x: Tensor) -> Tensor:
        """Smooth part at `x`."""
        self.calls["value"] += 1
        return self.fun(x)

    def gradient(self, x: Tensor, fresh: bool = True) -> Tensor:
        """Gradient of the smooth part at `x`, or an unbiased estimate of it.

        `fresh=False` stays on the sample drawn last, for rules that evaluate several points on one sample.
        """
        self.calls["gradient"] += 1
        return self._noisy(x, self._sample(fresh)) if self._noisy else self._gradient(x)

    def evaluate(self, x: Tensor, fresh: bool = True) -> Tensor:
        """Value at `x` for rules that differentiate it themselves; of the drawn sample where gradients are noisy.

        Raises:
            InputError: the problem has noisy gradients, but not the values that belong to them.
        """
        self.calls["gradient" if torch.is_grad_enabled() else "value"] += 1
        if self._noisy is None:
            return self.fun(x)
        if self._noisy_fun is None:
            raise InputError("this problem has no values of its samples; give it noisy_fun beside noisy_gradient")
        return self._noisy_fun(x, self._sample(fresh))

    def _sample(self, fresh: bool) -> torch.Generator:
        if fresh or self._drawn is None:
            self._drawn = self.generator.get_state()
        else:
            self.generator.set_state(self._drawn)
        return self.generator

    def hessian(self, x: Tensor) -> Tensor:
        """Hessian of the smooth part at `x`."""
        self.calls["hessian"] += 1
        return self._hessian(x)

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Hessian of the smooth part at `x`, times `v`."""
        self.calls["hvp"] += 1
        return torch.func.jvp(self._gradient, (x,), (v,))[1]

    def prox(self, v: Tensor, t: float) -> Tensor:
        """Proximal map of the nonsmooth term with step `t`."""
        self.calls["prox"] += 1
        return v if self._prox is None else self._prox(v, t)

    def metric(self, x: Tensor) -> float:
        with torch.no_grad():
            if self._metric is not None:
                return float(self._metric(x))
            total = self.fun(x) + (self._nonsmooth(x) if self._nonsmooth else 0.0)
            return float(total) - self.minimum


def minimisation(name: str, fun: Function, x0: Tensor, **options: Any) -> Problem:
    """A minimisation problem of your own, from a function and a start.

    Args:
        fun: tensor -> 0-dim tensor, differentiable by autograd.
        x0: the start.
        options: fields of `Problem` (`target`, `budget`, ...) and arguments of `Minimisation` (`gradient`, ...).
    """
    fields = {key: options.pop(key) for key in list(options) if key in Problem.__dataclass_fields__}

    def build(seed: int) -> Minimisation:
        return Minimisation(fun, x0.detach().clone(), generator=torch.Generator().manual_seed(seed), **options)

    fields.setdefault("measures", "objective gap" if "minimum" in options else "objective")
    return Problem(name=name, kind=Minimisation.kind, build=build, **fields)
