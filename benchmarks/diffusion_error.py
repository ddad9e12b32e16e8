"""How far our samplers and the schedulers of diffusers end from the exact solution, at equal network evaluations.

Everyone begins at the same noise and chooses the best of its own grids and options. Each is measured against the exact
solution between the very noise levels at which it begins and ends, and the network sees its exact levels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from diffusion_options import EDMS, FLOW, GRIDS, OURS, SHIFTS, THEIRS
from torch import Tensor

from hasten.core.errors import HastenError
from hasten.diffusion import EDM, Denoiser, DiscreteVP, FlowMatching, Schedule, sample
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rk4_lambda, rms

RUNGS = (5, 10, 20)
NOTHING = 1e-4
"""Noise-to-signal ratio that stands for none."""


@dataclass
class Case:
    """A model, the noise that everyone starts from and the exact solutions.

    Attributes:
        name: what it is called.
        denoiser: the model as our samplers take it.
        noise: state at the schedule's T.
        schedulers: those of diffusers that fit the model.
    """

    name: str
    denoiser: Denoiser
    noise: Tensor
    schedulers: dict[str, list[dict[str, Any]]]
    _solved: dict[tuple[float, float], Tensor] = field(default_factory=dict)

    def exact(self, start: float, end: float) -> Tensor:
        """The exact solution from the noise at ratio `start = sigma/alpha` down to the ratio `end`."""
        key = (round(start, 6), round(end, 9))
        if key not in self._solved:
            self._solved[key] = self.solve(start, end)
        return self._solved[key]

    def solve(self, start: float, end: float) -> Tensor:
        """In states divided by alpha, which are those of `alpha = 1`."""
        schedule = self.denoiser.schedule

        def network(y: Tensor, rho: Tensor) -> Tensor:
            level = float(rho[0])
            alpha = 1.0 / math.hypot(1.0, level)
            return mixture_eps(self, y * alpha, alpha, level * alpha)

        x = self.noise.double() / schedule.alpha(schedule.T)
        end, start = max(end, NOTHING), min(start, schedule.rho(schedule.T) * 1.001)
        y = rk4_lambda(Denoiser(network, EDM(T=start, t_min=end)), x, steps=600)
        alpha = 1.0 if isinstance(schedule, EDM) else 1.0 / math.hypot(1.0, end)
        return alpha * y


def mixture_eps(case: Case, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The exact noise of a case's mixture."""
    return MIXTURES[case.name.split()[1]].eps(x, alpha, sigma)


MIXTURES = {"2-d": circle(), "16-d": circle(dim=16)}


class FlowCase(Case):
    """A velocity network, solved in its own time."""

    def solve(self, start: float, end: float) -> Tensor:
        """From time `start` to time `end`, which are the noise levels."""
        schedule = FlowMatching(T=min(start, 1.0 - NOTHING), t_min=max(end, NOTHING))
        exact = Denoiser(self.denoiser.fn.double(), schedule, "velocity").given(self.denoiser.cond)  # type: ignore[attr-defined]
        x = self.noise.double()
        if start > schedule.T:
            x = x - (start - schedule.T) * exact.fn(x, torch.full((len(x),), start, dtype=torch.float64), exact.cond)
        solved = rk4_lambda(exact, x, steps=60)
        self.denoiser.fn.float()  # type: ignore[attr-defined]
        return solved


def mixtures(batch: int) -> list[Case]:
    """Mixtures under a thousand discrete levels, and under EDM."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for name, mixture in MIXTURES.items():
        noise = torch.randn(batch, mixture.dim, dtype=torch.float64, generator=generator)
        vp, edm = DiscreteVP.linear(), EDM()
        cases.append(Case(f"VP {name}", mixture.denoiser(vp), noise, THEIRS))
        cases.append(Case(f"EDM {name}", mixture.denoiser(edm), 80.0 * noise, EDMS))
    return cases


def digits(batch: int) -> Case:
    """The class-conditional flow on digits."""
    from hasten.problems.digits_diffusion import digits_denoiser

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    noise = torch.randn(batch, 1, 8, 8, generator=generator)
    return FlowCase("flow digits", digits_denoiser().given(labels), noise, FLOW)


def our_errors(case: Case, nfe: int) -> Iterator[tuple[str, str, float]]:
    """Sampler, choice and error of everything of ours with this many evaluations."""
    schedule = case.denoiser.schedule
    flow = isinstance(schedule, FlowMatching)
    for name, choices in OURS.items():
        for hyper, grid, shift in itertools.product(choices, GRIDS, SHIFTS if flow else (1.0,)):
            if shift != 1.0 and grid != "uniform":
                continue
            costs: dict[str, int] = {}
            made = case.denoiser
            if flow:
                made = Denoiser(made.fn, FlowMatching(shift=shift), "velocity", check_finite=False).given(made.cond)
            try:
                x = sample(made, noise=case.noise, sampler=name, nfe=nfe, grid=grid, costs=costs, **hyper)
            except HastenError:
                continue
            assert costs["nfe"] <= nfe
            level = schedule.sigma if flow else schedule.rho
            start, end = level(schedule.T), level(schedule.t_min)
            yield name, f"{grid} {hyper or ''}{f' shift={shift}' if flow else ''}", rms(x, case.exact(start, end))


def their_errors(case: Case, nfe: int) -> Iterator[tuple[str, str, float]]:
    """The same for the schedulers of diffusers."""
    flow = isinstance(case.denoiser.schedule, FlowMatching)
    for name, choices in case.schedulers.items():
        for choice in choices:
            for shift in SHIFTS if flow else (None,):
                for plan in plans(name, nfe):
                    found = attempt(case, name, choice, shift, plan, nfe)
                    if found is not None:
                        yield name, f"{choice} {'' if shift is None else f'shift={shift} '}", found


def plans(name: str, nfe: int) -> list[Callable[[Any], None]]:
    """Ways to set the timesteps of a scheduler for this many evaluations."""
    if "Heun" in name:
        return [lambda s: s.set_timesteps((nfe + 1) // 2)]
    usual: list[Callable[[Any], None]] = [lambda s: s.set_timesteps(nfe)]
    if name == "FlowMatchEulerDiscreteScheduler":
        usual.append(lambda s: s.set_timesteps(sigmas=np.linspace(1.0, 1.0 / nfe, nfe)))
    return usual


def attempt(
    case: Case, name: str, choice: dict[str, Any], shift: float | None, plan: Callable[[Any], None], nfe: int
) -> float | None:
    """Error of a scheduler with these options; None if it does not run with them."""
    more = {} if shift is None else {"shift" if name.startswith("FlowMatch") else "flow_shift": shift}
    if name == "HeunDiscreteScheduler":
        more = {"beta_start": 1e-4, "beta_end": 0.02}
    try:
        scheduler = getattr(diffusers, name)(**choice, **more)
        plan(scheduler)
        x, start, end = drive(case, scheduler)
    except ValueError:  # how schedulers refuse options that do not go together; anything else is a fault of this bench
        return None
    assert len(scheduler.timesteps) <= nfe
    schedule = case.denoiser.schedule
    first = schedule.T if isinstance(schedule, FlowMatching) else schedule.rho(schedule.T)
    if not bool(x.isfinite().all()) or abs(math.log(start / first)) > 2e-3 or end > clean(schedule):
        return None
    return rms(x, case.exact(start if isinstance(schedule, FlowMatching) else first, end))


def clean(schedule: Schedule) -> float:
    """The highest noise-to-signal ratio at which a chain may end; with some options schedulers stop much earlier."""
    return 0.0101 if isinstance(schedule, FlowMatching) else 1.01 * schedule.rho(schedule.t_min)


@torch.no_grad()
def drive(case: Case, scheduler: Any) -> tuple[Tensor, float, float]:
    """Samples of a scheduler, and the noise levels between which it went; the network sees its exact levels."""
    schedule, x = case.denoiser.schedule, case.noise
    ddim = isinstance(scheduler, diffusers.DDIMScheduler)
    kept = scheduler.alphas_cumprod if ddim else None
    scaled = isinstance(scheduler, (diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler))
    if scaled:
        x = x / schedule.alpha(schedule.T)
    levels = []
    for i, t in enumerate(scheduler.timesteps):
        rho = float((1 / kept[int(t)] - 1).sqrt()) if kept is not None else float(scheduler.sigmas[i])
        levels.append(rho)
        if isinstance(schedule, FlowMatching):
            output = case.denoiser.fn(x, torch.full((len(x),), rho), case.denoiser.cond)
        elif isinstance(schedule, EDM):
            scheduler.scale_model_input(x, t)
            data = scheduler.config.sigma_data
            total = rho**2 + data**2
            skip, out = data**2 / total, rho * data / math.sqrt(total)
            output = ((x - rho * mixture_eps(case, x, 1.0, rho)) - skip * x) / out
        else:
            alpha = 1.0 / math.hypot(1.0, rho)
            output = mixture_eps(case, scheduler.scale_model_input(x, t).double(), alpha, rho * alpha)
        x = scheduler.step(output, t, x).prev_sample
    if ddim:
        end = float((1 / scheduler.final_alpha_cumprod - 1).sqrt())
    else:
        end = float(scheduler.sigmas[-1])
    if scaled:
        x = x / math.hypot(1.0, max(end, NOTHING))
    return x, levels[0], end


def best(found: Iterator[tuple[str, str, float]]) -> dict[str, tuple[float, str]]:
    """Least error of each method, and the choice that gave it; the best method first."""
    table: dict[str, tuple[float, str]] = {}
    for name, choice, error in found:
        if math.isfinite(error) and error < table.get(name, (math.inf, ""))[0]:
            table[name] = (error, choice.strip())
    return dict(sorted(table.items(), key=lambda item: item[1][0]))


def errors(quick: bool) -> dict[str, Any]:
    """Print the tables of errors and return them."""
    cases = mixtures(64 if quick else 256)
    if not quick:
        cases.append(digits(32))
    record: dict[str, Any] = {}
    for case in cases:
        for nfe in RUNGS:
            ours, theirs = best(our_errors(case, nfe)), best(their_errors(case, nfe))
            ratio = next(iter(ours.values()))[0] / next(iter(theirs.values()))[0]
            print(f"\n{case.name}, {nfe} evaluations: best of ours / best of diffusers {ratio:.3f}", flush=True)
            for side, table in (("ours", ours), ("diffusers", theirs)):
                for name, (error, choice) in table.items():
                    print(f"  {side:10} {name:32} {error:10.5f}  {choice}")
            record.setdefault(case.name, {})[str(nfe)] = {
                "ratio": round(ratio, 4),
                "ours": {name: float(f"{error:.4g}") for name, (error, _) in ours.items()},
                "diffusers": {name: float(f"{error:.4g}") for name, (error, _) in theirs.items()},
            }
    return record
