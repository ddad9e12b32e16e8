"""A sampler turned inside out: instead of calling the network, it is handed the network's outputs one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.kinds.sample import Sampling
from hasten.diffusion.base import Sampler
from hasten.numerics import draws
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import Schedule


class Part(NamedTuple):
    """Successive steps of a sampler of which the first one evaluates the network, and how often."""

    steps: int
    evaluations: int


class _Asked(Exception):
    """The sampler asks for an evaluation in state `x` that nobody has made yet."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


class Stepwise:
    """Runs a sampler for a loop that owns the network, as the pipelines of `diffusers` are written.

    The loop evaluates the network in the present state at `times[0], times[1], ...` and hands each output to `feed`,
    which answers with the next state. A step of several evaluations is repeated from its beginning with the outputs
    known so far, up to the evaluation that is missing; with the generator set back, random draws agree. So samplers
    need not know of it, and steps of one evaluation cost nothing more. Samplers that change the state before they
    evaluate (noise added in advance) get it from a first evaluation whose output is thrown away.

    Args:
        sampler: the sampler.
        schedule, prediction: of the network, see `Denoiser`.
        nfe: evaluations to plan with, for samplers without steps or times of their own.
        check_finite: see `Denoiser`.

    Attributes:
        times: where the network is evaluated, in order.
        begins: position in `times` of the first evaluation of each step that makes some.

    Raises:
        InputError: the sampler chooses its times while it runs, or evaluates several of them at once.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: Schedule,
        prediction: str = "epsilon",
        nfe: int | None = None,
        *,
        check_finite: bool = True,
    ) -> None:
        self.sampler, self.schedule, self.prediction, self.nfe = sampler, schedule, prediction, nfe
        self.check_finite = check_finite
        self._ahead = False
        times, counts = self._rehearse(lambda x: torch.zeros_like(x))
        if self._rehearse(lambda x: 0.1 * x + torch.sin(3.0 * x)) != (times, counts):
            raise InputError(
                f"{sampler.card.name} chooses its times by the samples while it runs, so that a loop from outside "
                "cannot know them in advance; call hasten.diffusion.sample, or take a sampler with fixed steps"
            )
        self._parts = _parts(counts)
        before = accumulate((part.evaluations for part in self._parts), initial=int(self._ahead))
        self.begins = list(before)[:-1]
        self.times = (times[0], *times) if self._ahead else times
        self.restart()

    def restart(self) -> None:
        """Forget the chain; the next output belongs to `times[0]`."""
        self._problem: Sampling | None = None
        self._state: Any = None
        self._answers: list[Tensor] = []
        self._part = 0
        self._inside = False

    def feed(self, output: Tensor, x: Tensor, generator: draws.Source | None = None) -> Tensor:
        """The state in which the network is to be evaluated next; after the last output, the samples.

        Args:
            output: what the network returned for the present state.
            x: that state; at the beginning of a step the loop may have changed it.
            generator: source of the sampler's noise, or one per sample.
        """
        if self._part >= len(self._parts):
            raise InputError(f"all {len(self.times)} evaluations of this chain are done; begin a new one")
        if output.shape != x.shape:
            raise InputError(
                f"the network's output must have the state's shape {tuple(x.shape)}, got {tuple(output.shape)}"
            )
        source = draws.checked(generator)
        first = self._problem is None
        if not self._inside:
            self._begin(x, source)
        elif self._answers and x.shape != self._answers[0].shape:
            raise InputError(f"the batch changed its shape inside a step, to {tuple(x.shape)}")
        if not (first and self._ahead):
            self._answers.append(output)
        return self._go_on(source)

    def _begin(self, x: Tensor, source: draws.Source) -> None:
        """Note where the present part begins."""
        if self._part == 0:
            denoiser = Denoiser(self._answer, self.schedule, self.prediction, check_finite=self.check_finite)
            self._problem = Sampling(denoiser, x, metric=lambda x: 0.0)
            self._problem.horizon = self.nfe
        elif self._state.x is not x:
            self._state.x = x
        self._inside = True
        self._stand = draws.positions(source) if self._ahead or self._parts[self._part].evaluations > 1 else []

    def _go_on(self, source: draws.Source) -> Tensor:
        """The present part with the outputs known so far: its result, or the state that it asks for."""
        draws.rewind(source, self._stand)
        self._asked = 0
        try:
            state = self._run(self._parts[self._part], source)
        except _Asked as question:
            return question.x
        self._state, self._answers, self._inside = state, [], False
        self._part += 1
        if self._ahead and self._part < len(self._parts):
            self._begin(state.x, source)
            return self._go_on(source)
        return state.x

    def _run(self, part: Part, source: draws.Source) -> Any:
        """The sampler's state after these steps."""
        assert self._problem is not None
        if self._part == 0:
            state = self.sampler.init(self._problem, source)  # type: ignore[arg-type]
        else:
            state = _copied(self._state)
            if hasattr(state, "generator"):
                state.generator = source
        for _ in range(part.steps):
            state = self.sampler.step(self._problem, state)
        return state

    def _answer(self, x: Tensor, t: Tensor) -> Tensor:
        if self._asked == len(self._answers):
            raise _Asked(x)
        self._asked += 1
        return self._answers[self._asked - 1]

    def _rehearse(self, network: Callable[[Tensor], Tensor]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Times of all evaluations, and how many each step makes, on a tiny batch with this network."""
        name = self.sampler.card.name
        noise = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
        times: list[float] = []
        counts: list[int] = []
        state: Any = None

        def record(x: Tensor, t: Tensor) -> Tensor:
            if x.shape != noise.shape or bool((t != t[0]).any()):
                raise InputError(
                    f"{name} evaluates several times at once, which a loop with one time per evaluation cannot do; "
                    "call hasten.diffusion.sample"
                )
            if len(times) == sum(counts) and not torch.equal(x, state.x if counts else noise):
                self._ahead = True
            times.append(float(t[0]))
            return network(x)

        problem = Sampling(Denoiser(record, self.schedule, self.prediction), noise, metric=lambda x: 0.0)
        problem.horizon = self.nfe
        generator = torch.Generator().manual_seed(0)
        state = self.sampler.init(problem, generator)
        while not self.sampler.done(state):
            before = sum(counts)
            state = self.sampler.step(problem, state)
            counts.append(len(times) - before)
        return tuple(times), tuple(counts)


def _parts(counts: Sequence[int]) -> list[Part]:
    """Steps with the evaluations of each, those without evaluations joined to the step before."""
    parts: list[Part] = []
    waiting = 0
    for count in counts:
        if count == 0 and parts:
            parts[-1] = parts[-1]._replace(steps=parts[-1].steps + 1)
        elif count == 0:
            waiting += 1
        else:
            parts.append(Part(1 + waiting, count))
            waiting = 0
    return parts


def _copied(state: Any) -> Any:
    """A copy whose lists can be changed. Tensors are shared: samplers do not change them in place."""
    made = copy.copy(state)
    names = [field.name for field in fields(made)] if is_dataclass(made) else list(vars(made))
    for name in names:
        value = getattr(made, name, None)
        if isinstance(value, (list, dict)):
            setattr(made, name, value.copy())
    return made
