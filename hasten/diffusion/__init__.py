"""Sampling from trained diffusion and flow models in few network evaluations."""

from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.parallel.paradigms import ParaDiGMS
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.deis import DEIS
from hasten.diffusion.samplers.dpm_solver import DPMSolver, DPMSolverFast
from hasten.diffusion.samplers.dpm_solver_adaptive import DPMSolverAdaptive
from hasten.diffusion.samplers.score_samplers import AcceleratedDDIM, AcceleratedDDPM
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear

__all__ = [
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "DDIM",
    "DEIS",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverFast",
    "Denoiser",
    "DiscreteVP",
    "EDM",
    "FlowMatching",
    "ParaDiGMS",
    "Sampler",
    "Schedule",
    "VE",
    "VPCosine",
    "VPLinear",
    "sample",
]
