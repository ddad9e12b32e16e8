"""Latent diffusion: a denoiser that lives in the latents of an autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.diffusion.base import sample
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.draws import standard_normal


class LatentDiffusion:
    """An autoencoder around a denoiser: the denoiser sees `scale (encode(images) - shift)`.

    Args:
        vae: an object with `encode` and `decode`, such as `diffusers.AutoencoderKL`. They return tensors, or what
            diffusers returns (`.latent_dist`, `.latents`, `.sample`).
        denoiser: trained on the scaled latents.
        scale: factor that gives the latents unit variance; the `scaling_factor` of the autoencoder's configuration
            if not given, else 1.
        shift: subtracted before scaling; the configuration's `shift_factor` if not given, else 0.

    Raises:
        InputError: the autoencoder lacks a method, or the scale is not positive.

    Source: Rombach et al. (2021), arXiv 2112.10752.
    """

    def __init__(self, vae: Any, denoiser: Denoiser, scale: float | None = None, shift: float | None = None) -> None:
        for method in ("encode", "decode"):
            if not callable(getattr(vae, method, None)):
                raise InputError(f"vae must have encode and decode, as diffusers.AutoencoderKL has; got {vae!r}")
        config = getattr(vae, "config", None)
        self.vae, self.denoiser = vae, denoiser
        known = getattr(config, "scaling_factor", None) or 1.0
        self.scale = float(check.positive("scale", known if scale is None else scale))
        self.shift = float(
            check.real("shift", (getattr(config, "shift_factor", None) or 0.0) if shift is None else shift)
        )

    @torch.no_grad()
    def rescaled(self, images: Tensor, generator: torch.Generator | None = None) -> LatentDiffusion:
        """The same with the scale `1/std` of these images' latents, one number for all channels."""
        latents = self._latents(images, generator) - self.shift
        spread = float(latents.double().std())
        if not spread > 0.0:
            raise InputError(f"the latents of these {len(images)} images do not vary, so that they cannot be scaled")
        made = copy.copy(self)
        made.scale = 1.0 / spread
        return made

    def given(self, cond: Any) -> LatentDiffusion:
        """The same under a condition."""
        made = copy.copy(self)
        made.denoiser = self.denoiser.given(cond)
        return made

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents of images: drawn from the autoencoder's posterior with a generator, its mode without."""
        return (self._latents(images, generator) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images from scaled latents."""
        decoded = self.vae.decode((latents / self.scale + self.shift).to(self._dtype(latents)))
        return decoded if isinstance(decoded, Tensor) else decoded.sample

    def sample(
        self, shape: Sequence[int] | None = None, sampler: Any = "dpm-solver-3", *args: Any, **options: Any
    ) -> Tensor:
        """Decoded samples.

        Args:
            shape: of the batch of latents, (batch, channels, height, width), or `noise=` among the options.
            sampler, args, options: as of `hasten.diffusion.sample`.
        """
        return self.decode(sample(self.denoiser, shape, sampler, *args, **options))

    def _dtype(self, like: Tensor) -> torch.dtype:
        parameter = next(iter(self.vae.parameters()), None) if isinstance(self.vae, torch.nn.Module) else None
        return like.dtype if parameter is None else parameter.dtype

    def _latents(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        encoded = self.vae.encode(images.to(self._dtype(images)))
        if isinstance(encoded, Tensor):
            return encoded
        law = getattr(encoded, "latent_dist", None)
        if law is None:
            return encoded.latents
        return law.mode() if generator is None else law.mean + law.std * standard_normal(law.mean, generator)
