"""Kind `sample`: turning noise into samples of a trained diffusion or flow model in few network evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem

RUNGS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers")
"""Usual names of a network's lists of blocks."""

D = TypeVar("D", bound="Denoises")


class Denoises(Protocol):
    """What sampling needs of a denoiser; `hasten.numerics.denoiser.Denoiser` is the library's own."""

    schedule: Any

    def eps(self, x: Tensor, t: Any) -> Tensor:
        """The noise in x at time t."""
        ...

    def x0(self, x: Tensor, t: Any) -> Tensor:
        """The expected clean data behind x at time t."""
        ...

    def split(self, x: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """`(x_0, eps)` from one evaluation."""
        ...

    def counted(self: D, count: Callable[[int], Any], batch: int) -> D:
        """The same denoiser, reporting its evaluations per sample to `count` at each call of the network."""
        ...

    def solve(self, noise: Tensor, steps: int = ...) -> Tensor:
        """The exact solution from `noise`, for the metric, in this many steps of a precise solver."""
        ...


class Sampling(Instance):
    """A batch of start noise to be denoised. The answer (`state.x`) is the batch in its present state.

    Oracle: the network behind `denoiser`, counted as `nfe`: evaluations per sample. `horizon` is the number of them
    that a sampler may plan with; None leaves it free. A denoiser under a condition offers `condition`, one
    whose network has a list of blocks `blocks`.

    Args:
        denoiser: the network with its schedule; this instance counts its calls.
        noise: the start at time T, shape (batch, ...).
        metric: distance of a batch of samples from the goal; not counted.
        rungs: numbers of evaluations to try, increasing.
        picture: the picture of a batch of samples, see `Instance.picture`.

    Attributes:
        rounds: calls of the network one after the other, since `calls` was last cleared. A sampler that evaluates
            several time points in one batched call makes one round and counts every point in `nfe`.
    """

    kind = "sample"

    def __init__(
        self,
        denoiser: Denoises,
        noise: Tensor,
        metric: Callable[[Tensor], float],
        rungs: Sequence[int] = (),
        picture: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__()
        if noise.ndim < 2 or len(noise) == 0 or not noise.is_floating_point():
            raise InputError(
                f"noise must be a real batch of shape (batch, ...), got {tuple(noise.shape)} {noise.dtype}"
            )
        self.denoiser = denoiser.counted(self._count, len(noise))
        self.schedule = denoiser.schedule
        self.noise = noise
        self.rungs = tuple(rungs)
        self.rounds = 0
        self._metric = metric
        self._picture = picture

    def metric(self, x: Tensor) -> float:
        with torch.no_grad():
            return float(self._metric(x))

    def picture(self, x: Tensor) -> Any:
        return None if self._picture is None else self._picture(x)

    def offers(self) -> frozenset[str]:
        offered = set() if getattr(self.denoiser, "cond", None) is None else {"condition"}
        network = getattr(self.denoiser, "fn", None)
        if isinstance(network, nn.Module) and any(isinstance(getattr(network, b, None), nn.ModuleList) for b in BLOCKS):
            offered.add("blocks")
        return frozenset(offered)

    def _count(self, evaluations: int) -> None:
        self.rounds = self.rounds + 1 if self.calls else 1
        self.calls["nfe"] += evaluations


def sampling(
    name: str,
    denoiser: Denoises | Callable[[int], Denoises],
    shape: Sequence[int] | None = None,
    *,
    noise: Callable[[int], Tensor] | None = None,
    reference: Callable[[Tensor], Tensor] | None = None,
    exact_steps: int = 400,
    metric: Callable[[Tensor], float] | None = None,
    rungs: Sequence[int] = RUNGS,
    picture: Callable[[Tensor], Any] | None = None,
    **options: Any,
) -> Problem:
    """A sampling problem of your own, from a denoiser.

    A run tries the numbers of network evaluations in `rungs`, smallest first, until the target is met: its trace is the
    error against the number of evaluations.

    Args:
        name: what it is called in reports.
        denoiser: the trained network with its schedule, e.g. `hasten.diffusion.Denoiser`; or a function of the seed
            that gives it, where conditions depend on the seed or making it takes time.
        shape: shape of the batch, (batch, ...); the start noise of a seed is then `sigma(T)` times standard normal.
        noise: start noise from a seed, instead of `shape`.
        reference: the exact samples from the start noise; the metric is then the root mean square, over
            the batch, of the Euclidean distance to them. If neither this nor `metric` is given, it is
            `denoiser.solve`, which costs many evaluations per seed.
        exact_steps: steps of that solution, of four evaluations each.
        metric: a function of the batch of samples, smaller is better, instead of the distance to a reference.
        rungs: numbers of network evaluations per sample to try, increasing.
        picture: a picture of the batch of samples for the report, e.g. `hasten.core.picture.tiles` for images.
        options: further fields of `Problem`: `target`, `budget`, `baseline`, `contenders`, `measures`, ...
    """
    if (shape is None) == (noise is None):
        raise InputError("give either shape (of the batch) or noise (a function of the seed)")
    if metric is not None and reference is not None:
        raise InputError("give either metric or reference, not both")
    rungs = tuple(check.integer("rungs", rung, 1) for rung in rungs)
    if not rungs or list(rungs) != sorted(set(rungs)):
        raise InputError(f"rungs must be increasing numbers of network evaluations, got {rungs}")

    check.integer("exact_steps", exact_steps, 1)
    references: dict[int, Tensor] = {}

    def build(seed: int) -> Sampling:
        model: Any = denoiser if hasattr(denoiser, "eps") else denoiser(seed)  # type: ignore[operator]
        if noise is not None:
            start = noise(seed)
        else:
            generator = torch.Generator().manual_seed(seed)
            start = model.schedule.noise_scale * torch.randn(*shape, generator=generator)  # type: ignore[misc]

        def distance(x: Tensor) -> float:
            if seed not in references:
                exact = reference(start) if reference is not None else model.solve(start, exact_steps)
                references[seed] = exact.double()
            return _distance(x, references[seed])

        return Sampling(model, start, distance if metric is None else metric, rungs, picture)

    options.setdefault("measures", "samples" if metric else "RMS distance to the exact samples")
    options.setdefault("baseline", "diffusion.ddim")
    options.setdefault("cost", "calls")
    options.setdefault("budget", rungs[-1])
    return Problem(name=name, kind=Sampling.kind, build=build, **options)


def _distance(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).flatten(1).square().sum(1).mean().sqrt())
