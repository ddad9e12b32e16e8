"""Sampling from trained diffusion and flow models in few network evaluations."""

from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.samplers.ddim import DDIM
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear

__all__ = [
    "DDIM",
    "DiscreteVP",
    "Denoiser",
    "EDM",
    "FlowMatching",
    "Sampler",
    "Schedule",
    "VE",
    "VPCosine",
    "VPLinear",
    "sample",
]
