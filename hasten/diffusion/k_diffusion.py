"""Samplers as functions with the calling convention of k-diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.registry import entry
from hasten.diffusion.base import Sampler, planned, sample
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import EDM


class KSampler(Protocol):
    """A sampling function as k-diffusion has them."""

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor: ...


def k_diffusion(sampler: str = "dpmpp-2m", **hyper: Any) -> KSampler:
    """Any sampler as a function `run(model, x, sigmas, extra_args, callback, disable)`, the convention of k-diffusion.

    `model(x, sigma, **extra_args)` returns the expected clean data behind `x = x_0 + sigma eps`; x has the standard
    deviation `sigmas[0]`. Steps go from each of the decreasing `sigmas` to the next. If the last one is 0, samplers
    that cannot step there (those that predict the noise) stop one before it and return what the model says there.
    `callback` gets a dictionary with `x`, `i`, `sigma`, `sigma_hat` and `denoised` after every step; `disable` is for a
    progress bar, which there is none. Samplers that choose their own steps keep to the ends of `sigmas` and plan with
    as many evaluations as there are intervals.

    Args:
        sampler: name of the sampler.
        hyper: its own arguments.

    Raises:
        InputError: the sampler is unknown, or `sigmas` do not decrease.

    Example:
        >>> samples = hasten.diffusion.k_diffusion("dpm-solver-3")(model, x, sigmas, extra_args={"cond": labels})
    """
    method = entry(sampler if "." in sampler else f"diffusion.{sampler}").build(**hyper)
    if not isinstance(method, Sampler) or "sample" not in method.card.kinds:
        raise InputError(f"{sampler} is no sampler of noise into data (`hasten list sample`)")

    def run(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        levels = tuple(float(sigma) for sigma in sigmas)
        if len(levels) < 2 or levels[-1] < 0.0 or any(s <= t for s, t in pairwise(levels)):
            raise InputError(f"sigmas must be two or more levels that decrease strictly, to 0 at most; got {levels}")
        watch = _Watch(model, x, levels, callback)
        schedule = EDM(T=levels[0], t_min=levels[-2] if levels[-1] == 0.0 and len(levels) > 2 else levels[-1])
        denoiser = Denoiser.from_k_diffusion(watch.model, schedule.t_min, schedule.T, **dict(extra_args or {}))
        made, reached, nfe = _planned(method, schedule, levels)
        if made is not None:
            x = sample(denoiser, noise=x, sampler=made, nfe=nfe, generator=generator, callback=watch.step)
        if reached:
            return x
        with torch.no_grad():
            end = denoiser.x0(x, schedule.t_min if made is not None else levels[0])
        watch.report(end)
        return end

    return run


def _planned(method: Sampler, schedule: EDM, levels: tuple[float, ...]) -> tuple[Sampler | None, bool, int | None]:
    """The sampler on these levels, whether it reaches the last of them, and the evaluations that it must be given."""
    whole = levels if levels[-1] > 0.0 else levels[:-1]
    reaches = levels[-1] > 0.0
    try:
        made = method.changed(grid=levels, steps=None)
    except InputError:
        if len(whole) < 2:
            return None, False, None
        return method, reaches, len(whole) - 1
    try:
        planned(made, schedule, None)
    except InputError:
        if reaches:
            raise
        if len(whole) < 2:
            return None, False, None
        return method.changed(grid=whole, steps=None), False, None
    return made, True, None


class _Watch:
    """Remembers what the callback wants to know: the state at which a step began and what the model said there."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        levels: Sequence[float],
        callback: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        self._model, self._x, self._levels, self._callback = model, x, levels, callback
        self._denoised: Tensor | None = None
        self._index = 0

    def model(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """The model; the first answer of a step is kept."""
        answer = self._model(x, sigma, **extra_args)
        if self._denoised is None:
            self._denoised = answer
        return answer

    def step(self, state: Any) -> None:
        """A step of the sampler is done."""
        self.report(state.x)

    def report(self, x: Tensor) -> None:
        """Tell the callback about the step that ends in x."""
        if self._callback is not None:
            sigma = self._levels[min(self._index, len(self._levels) - 1)]
            told = {"x": self._x, "i": self._index, "sigma": sigma, "sigma_hat": sigma, "denoised": self._denoised}
            self._callback(told)
        self._x, self._denoised = x, None
        self._index += 1
