"""Sampling from trained diffusion and flow models in few network evaluations."""

from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.discrete.masked import MDLM, unmask
from hasten.diffusion.discrete.remdm import ForwardBackward, ReMDM
from hasten.diffusion.inversion.base import Inverter, invert
from hasten.diffusion.inversion.bdia import BDIA, BDIAInversion
from hasten.diffusion.inversion.ddim import DDIMInversion
from hasten.diffusion.parallel.paradigms import ParaDiGMS
from hasten.diffusion.paths.kinetic_optimal import KineticOptimalPath
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.deis import DEIS
from hasten.diffusion.samplers.distilled_solver import DODE
from hasten.diffusion.samplers.dpm_solver import DPMSolver, DPMSolverFast
from hasten.diffusion.samplers.dpm_solver_adaptive import DPMSolverAdaptive
from hasten.diffusion.samplers.score_samplers import AcceleratedDDIM, AcceleratedDDPM
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.masked_denoiser import MaskedDenoiser
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear

__all__ = [
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "BDIA",
    "BDIAInversion",
    "DDIM",
    "DDIMInversion",
    "DEIS",
    "DODE",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverFast",
    "Denoiser",
    "DiscreteVP",
    "EDM",
    "FlowMatching",
    "ForwardBackward",
    "Inverter",
    "KineticOptimalPath",
    "MDLM",
    "MaskedDenoiser",
    "ParaDiGMS",
    "ReMDM",
    "Sampler",
    "Schedule",
    "VE",
    "VPCosine",
    "VPLinear",
    "invert",
    "sample",
    "unmask",
]
