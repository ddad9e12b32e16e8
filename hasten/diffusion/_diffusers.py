"""Every sampler as a scheduler of the `diffusers` library."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.registry import entry
from hasten.diffusion.base import Sampler
from hasten.diffusion.stepwise import Stepwise
from hasten.numerics.noise import DiscreteVP, FlowMatching, Schedule

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
"""Predictions: what diffusers calls them, and what they are called here."""

LEAST_SIGNAL = 2.0**-24
"""alpha^2 of a last level without signal: its logarithm must be finite."""


class HastenScheduler(SchedulerMixin, ConfigMixin):
    """A sampler as a scheduler: `timesteps` has one entry per evaluation of the network.

    Variance-preserving models on discrete levels (`epsilon`, `sample` and `v_prediction`) get the level, between two
    levels a fraction, as timestep; flow models (`flow_prediction`) get `num_train_timesteps * t`. The sampler chooses
    the times (`hyper={"grid": ...}`), so timestep spacing, clipping and thresholding of other schedulers'
    configurations are not used.

    Args:
        sampler: name of the sampler.
        hyper: its own arguments, such that they can be saved as JSON.
        num_train_timesteps: levels that the model was trained on.
        beta_start, beta_end, beta_schedule: variances added per level: `linear`, `scaled_linear` or
            `squaredcos_cap_v2`.
        trained_betas: the variances themselves.
        rescale_betas_zero_snr: change them so that the last level is noise alone.
        prediction_type: what the network predicts.
        shift: of a flow, see `FlowMatching`.
        check_finite: see `Denoiser`.

    Raises:
        InputError: the sampler is unknown or cannot be driven from outside; the message says why.
    """

    _compatibles = [member.name for member in KarrasDiffusionSchedulers]  # noqa: RUF012
    order = 1

    @register_to_config
    def __init__(
        self,
        *,
        sampler: str = "dpmpp-2m",
        hyper: dict[str, Any] | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        shift: float = 1.0,
        check_finite: bool = True,
    ) -> None:
        check.one_of("prediction_type", prediction_type, tuple(PREDICTIONS))
        self._method = _built(sampler, hyper or {})
        self._schedule: Schedule
        if prediction_type == "flow_prediction":
            check.integer("num_train_timesteps", num_train_timesteps, 1)
            self._schedule, self._per_time = FlowMatching(shift=shift), float(num_train_timesteps)
        else:
            betas = _betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
            betas = _without_signal(betas) if rescale_betas_zero_snr else betas
            self._schedule, self._per_time = DiscreteVP(betas), 1.0
            self.betas = betas.float()
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = (1.0 - betas).cumprod(0).float()
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._run: Stepwise | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler for the model that another scheduler's configuration describes; `kwargs` overrule it."""
        found = dict(config or {})
        name = str(found.get("_class_name", ""))
        if name.startswith("EDM") or found.get("sigma_data") is not None:
            raise InputError(
                f"{name or 'this configuration'} is for a preconditioned EDM model, which no scheduler here stands "
                "for; wrap its network as model(x, sigma) and call hasten.diffusion.k_diffusion"
            )
        if found.get("use_flow_sigmas") or ("shift" in found and "beta_start" not in found):
            found["prediction_type"] = "flow_prediction"
            found["shift"] = found.get("flow_shift", found.get("shift", 1.0))
            kept = [key for key in found.get("_use_default_values", []) if key not in ("prediction_type", "shift")]
            found["_use_default_values"] = kept
            found.pop("_class_name", None)
        return super().from_config(found, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)  # type: ignore[attr-defined]

    @property
    def step_index(self) -> int | None:
        """Evaluations done, counted from the first timestep; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where the loop begins, if it was said."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which timestep the loop will begin."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a chain.

        Args:
            num_inference_steps: evaluations of the network to spend; samplers with several per step spend the largest
                number of them that fits.
            device: where `timesteps` shall be.
            timesteps: where the sampler's steps begin, decreasing, instead of the sampler's own grid.
            sigmas: the same as noise-to-signal ratios (of a flow: noise levels before the shift).
            mu: logarithm of a flow's shift, for pipelines that choose it by the size of the image.
        """
        given = sum(value is not None for value in (num_inference_steps, timesteps, sigmas))
        if given == 0 or (timesteps is not None and sigmas is not None):
            raise InputError("give num_inference_steps, or one of timesteps and sigmas")
        if mu is not None and isinstance(self._schedule, FlowMatching):
            self._schedule = FlowMatching(shift=math.exp(mu))
        method, schedule = self._method, self._schedule
        if timesteps is not None or sigmas is not None:
            grid = self._times(timesteps, sigmas)
            if isinstance(schedule, FlowMatching) and grid[0] > schedule.T:
                schedule = FlowMatching(shift=schedule.shift, T=1.0)
            end = (schedule.t_min,) if grid[-1] > schedule.t_min else ()
            method = method.changed(grid=(*grid, *end), steps=None)
        nfe = None if num_inference_steps is None else check.integer("num_inference_steps", num_inference_steps, 1)
        self._plan(method, schedule, nfe, device)
        self.num_inference_steps = nfe or len(self.timesteps)

    def _times(self, timesteps: Any, sigmas: Any) -> tuple[float, ...]:
        if timesteps is not None:
            return tuple(float(t) / self._per_time for t in timesteps)
        levels = [float(sigma) for sigma in sigmas if float(sigma) > 0.0]
        if isinstance(self._schedule, FlowMatching):
            return tuple(self._schedule.shifted(torch.tensor(levels, dtype=torch.float64)).tolist())
        return tuple(self._schedule.t_of_rho(level) for level in levels)

    def _plan(self, method: Sampler, schedule: Schedule, nfe: int | None, device: Any) -> None:
        known: Any = self.config
        prediction = PREDICTIONS[known.prediction_type]
        self._run = Stepwise(method, schedule, prediction, nfe, check_finite=known.check_finite)
        self.timesteps = torch.tensor(self._run.times, dtype=torch.float64).mul(self._per_time).float().to(device)
        self._step_index = self._begin_index = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """The sample at which the network is to be evaluated next; after the last timestep, the clean sample.

        Args:
            model_output: what the network returned at this timestep.
            timestep: an entry of `timesteps`, one after the other.
            sample: where the network was evaluated. At the beginning of a sampler's step it may have been changed.
            generator: source of noise, or one per sample.
        """
        if self._run is None:
            raise InputError("call set_timesteps before step")
        if self._step_index is None:
            self._start(timestep)
        assert self._run is not None and self._step_index is not None  # noqa: PT018
        self._expect(timestep)
        exact = sample.float() if sample.dtype in (torch.float16, torch.bfloat16) else sample
        found = self._run.feed(model_output.to(exact.dtype), exact, generator)
        self._step_index += 1
        return SchedulerOutput(prev_sample=found.to(sample.dtype)) if return_dict else (found.to(sample.dtype),)

    def _start(self, timestep: Any) -> None:
        """Begin the chain at this timestep, with a new plan if it is not the first."""
        assert self._run is not None
        index, whole = self._begin_index, self._run
        if index is None:
            index = int((self.timesteps - float(timestep)).abs().argmin())
        self._step_index = index
        if index == 0:
            whole.restart()
            return
        if index not in whole.begins:
            raise InputError(
                f"timestep {index} lies inside a step of {whole.sampler.card.name}; begin at one of the timesteps "
                f"{whole.begins}, or take a sampler with one evaluation per step"
            )
        grid = whole.sampler.times(whole.schedule, whole.nfe)
        rest = whole.sampler.changed(grid=grid[whole.begins.index(index) :], steps=None)
        self._run = Stepwise(rest, whole.schedule, whole.prediction, None, check_finite=whole.check_finite)
        if len(self._run.times) != len(whole.times) - index:
            raise InputError(f"{rest.card.name} cannot begin in the middle; take another sampler")

    def _expect(self, timestep: Any) -> None:
        """Refuse timesteps out of turn, where looking at them costs no synchronisation."""
        index: Any = self._step_index
        if index >= len(self.timesteps):
            raise InputError(f"all {len(self.timesteps)} timesteps are done; call set_timesteps for a new chain")
        if isinstance(timestep, Tensor) and (timestep.device.type != "cpu" or self.timesteps.device.type != "cpu"):
            return
        due = float(self.timesteps[index])
        if abs(float(timestep) - due) > 1e-3 * max(1.0, abs(due)):
            raise InputError(f"timestep {float(timestep):g} is out of turn; the next one is timesteps[{index}]={due:g}")

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Noisy samples `alpha x_0 + sigma eps` at these timesteps, one per sample or one for all."""
        alpha, sigma = self._levels(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise`, as pipelines of flow models call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """What a network with `v_prediction` is trained on, `alpha eps - sigma x_0`; of a flow `eps - x_0`."""
        if isinstance(self._schedule, FlowMatching):
            return noise - sample
        alpha, sigma = self._levels(sample, timesteps)
        return alpha * noise - sigma * sample

    def _levels(self, like: Tensor, timesteps: Any) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(timesteps, dtype=torch.float64, device=like.device) / self._per_time
        t = t.reshape(-1, *(1,) * (like.ndim - 1))
        return self._schedule.alpha(t).to(like), self._schedule.sigma(t).to(like)


def _built(name: str, hyper: dict[str, Any]) -> Sampler:
    """The sampler of this name, if it is one whose configuration can be saved."""
    try:
        json.dumps(hyper)
    except TypeError as error:
        raise InputError(f"hyper must be numbers, strings and lists of them, to be saved; {error}") from None
    try:
        made = entry(name if "." in name else f"diffusion.{name}").build(**hyper)
    except TypeError as error:
        raise InputError(f"{name} cannot be made from hyper={hyper}: {error}") from None
    if not isinstance(made, Sampler) or "sample" not in made.card.kinds:
        raise InputError(
            f"{name} is no sampler of noise into data (`hasten list sample`); guidance is the business of the "
            "pipeline, and other methods have functions of their own"
        )
    if "spectrum" in made.card.needs:
        raise InputError(f"{name} needs a model with one schedule per frequency, which schedulers cannot describe")
    return made


def _betas(levels: int, start: float, end: float, kind: str, trained: Sequence[float] | None) -> Tensor:
    """Variances added per level, float64."""
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    check.integer("num_train_timesteps", levels, 2)
    check.one_of("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2"))
    if kind == "squaredcos_cap_v2":
        made = DiscreteVP.cosine(levels)
    else:
        made = (DiscreteVP.linear if kind == "linear" else DiscreteVP.scaled_linear)(levels, start, end)
    return torch.tensor(made.betas, dtype=torch.float64)


def _without_signal(betas: Tensor) -> Tensor:
    """Betas with the signal level moved and scaled to end at (almost) nothing. Source: Lin et al., arXiv 2305.08891."""
    signal = (1.0 - betas).cumprod(0).sqrt()
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    kept = signal.square() * (1.0 - LEAST_SIGNAL) + LEAST_SIGNAL
    return 1.0 - torch.cat((kept[:1], kept[1:] / kept[:-1]))
