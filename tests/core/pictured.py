"""A user's file: sampling images of one colour each, whose exact denoiser is known, with a picture of the samples."""

from __future__ import annotations

import torch

import hasten
from hasten.core.kinds.sample import sampling
from hasten.core.picture import tiles
from hasten.numerics.mixture import GaussianMixture
from hasten.numerics.noise import VPLinear


def problem() -> hasten.Problem:
    colours = torch.tensor([[0.9, -0.9, -0.9], [-0.9, 0.9, -0.9], [-0.9, -0.9, 0.9]])
    denoiser = GaussianMixture(colours, 0.01).denoiser(VPLinear())
    return sampling(
        "colours",
        denoiser,
        (12, 3),
        rungs=(4, 8),
        picture=lambda x: tiles(x.reshape(-1, 3, 1, 1).expand(-1, -1, 5, 5), columns=4),
    )
