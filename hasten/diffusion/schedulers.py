"""Samplers as schedulers of the `diffusers` library, for its pipelines."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from hasten.core.errors import InputError

if TYPE_CHECKING:
    from hasten.diffusion._diffusers import HastenScheduler


def scheduler(sampler: str = "dpmpp-2m", config: Any = None, **options: Any) -> HastenScheduler:
    """A sampler as a scheduler for pipelines of `diffusers`.

    The sampler's answers are those of `sample` with `nfe=num_inference_steps`. All samplers can be had but those that
    choose their times while they run (`dpm-solver-adaptive`) or evaluate several at once (`paradigms`).

    Args:
        sampler: name of the sampler.
        config: configuration of the scheduler that the model came with, `pipe.scheduler.config`; it says how the model
            was trained.
        options: how it was trained, where the configuration does not say (`num_train_timesteps=1000`, `beta_start`,
            `beta_end`, `beta_schedule="linear"`, `trained_betas`, `prediction_type="epsilon"`, `shift` of a flow, ...),
            and the sampler's own arguments, e.g. `grid="karras"`.

    Returns:
        A scheduler that can be saved and loaded; its class is `HastenScheduler` of this module.

    Raises:
        InputError: `diffusers` is not installed, or the sampler cannot serve as a scheduler.

    Example:
        >>> pipe.scheduler = hasten.diffusion.scheduler("dpm-solver-3", pipe.scheduler.config)
        >>> images = pipe(num_inference_steps=12).images
    """
    made = _class()
    known = set(inspect.signature(made.__init__).parameters) - {"self", "sampler", "hyper"}
    of_model = {name: options.pop(name) for name in tuple(options) if name in known}
    options = {**options.pop("hyper", {}), **options}
    if config is None:
        return made(sampler=sampler, hyper=options, **of_model)
    return made.from_config(config, sampler=sampler, hyper=options, **of_model)


def _class() -> type[HastenScheduler]:
    """The scheduler class; only now `diffusers` is imported."""
    try:
        from hasten.diffusion._diffusers import HastenScheduler
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        raise InputError("schedulers need the diffusers library: pip install diffusers") from None
    return HastenScheduler


def __getattr__(name: str) -> Any:
    """`HastenScheduler`, when it is first touched."""
    if name != "HastenScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class()
