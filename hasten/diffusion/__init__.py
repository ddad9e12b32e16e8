"""Sampling from trained diffusion and flow models in few network evaluations."""

from hasten.diffusion import presets
from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.caching.base import Cache
from hasten.diffusion.caching.feature_slicer import FeatureSlicer, Operator
from hasten.diffusion.caching.fora import FORA
from hasten.diffusion.caching.gated_taylor import ConfidenceGatedTaylor
from hasten.diffusion.caching.step_rehash import StepRehash
from hasten.diffusion.caching.taylorseer import TaylorSeer
from hasten.diffusion.caching.token_pruning import CachedTokenPruning
from hasten.diffusion.conditioning.control_branch import ControlNeXt, CrossNorm, LightControl, ZeroConv
from hasten.diffusion.conditioning.lacon import ConditionAligner, LateConstraint, fit_aligner
from hasten.diffusion.discrete.masked import MDLM, unmask
from hasten.diffusion.discrete.remdm import ForwardBackward, ReMDM
from hasten.diffusion.editing.drag import DragOptimizer
from hasten.diffusion.graphs.base import GraphDenoiser, Graphs, GraphSDE, graph_batch
from hasten.diffusion.graphs.gdss import PredictorCorrector, S4Solver, sample_graphs
from hasten.diffusion.guidance.adaptive import AdaptiveGuidance
from hasten.diffusion.guidance.apg import APG
from hasten.diffusion.guidance.base import Guidance, GuidedDenoiser
from hasten.diffusion.guidance.cfg import CFG, CFGPlusPlus
from hasten.diffusion.guidance.classifier import ClassifierGuidance
from hasten.diffusion.guidance.distillation import AGD
from hasten.diffusion.guidance.experts import MultiExpert
from hasten.diffusion.guidance.inversion import guided_invert
from hasten.diffusion.guidance.linear_ag import LinearAG, record_trajectories
from hasten.diffusion.inversion.base import Inverter, invert
from hasten.diffusion.inversion.bdia import BDIA, BDIAInversion
from hasten.diffusion.inversion.ddim import DDIMInversion
from hasten.diffusion.inversion.flowopt import FlowOpt, UniInv
from hasten.diffusion.inversion.newton import NewtonInversion
from hasten.diffusion.k_diffusion import k_diffusion
from hasten.diffusion.latent import LatentDiffusion
from hasten.diffusion.parallel.gs_jacobi import gs_jacobi_inverse, invert_flow, jacobi_inverse, plan_flow
from hasten.diffusion.parallel.paradigms import ParaDiGMS
from hasten.diffusion.parallel.parallel_optimizer import ParallelOptimizer
from hasten.diffusion.parallel.picard_consistency import PCM, PicardConsistency
from hasten.diffusion.paths.kinetic_optimal import KineticOptimalPath
from hasten.diffusion.paths.per_dimension import PerDimension
from hasten.diffusion.paths.shortest_path import ShortestPathSampler, ShortestPathSchedule
from hasten.diffusion.samplers.conjugate import ConjugateIntegrator
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.ddpm import DDPM
from hasten.diffusion.samplers.deis import DEIS
from hasten.diffusion.samplers.distilled_solver import DODE
from hasten.diffusion.samplers.dpm_solver import DPMSolver, DPMSolverFast
from hasten.diffusion.samplers.dpm_solver_adaptive import DPMSolverAdaptive
from hasten.diffusion.samplers.dualfast import DualFast, error_split
from hasten.diffusion.samplers.phase_space import SplittingIntegrator
from hasten.diffusion.samplers.score_samplers import AcceleratedDDIM, AcceleratedDDPM
from hasten.diffusion.schedulers import scheduler
from hasten.diffusion.search.autodiffusion import EvolutionSearch, search_grid
from hasten.diffusion.search.layer_skipping import LayerSkip, search_layers
from hasten.diffusion.search.noise_policy import FIND, NoisePolicy
from hasten.diffusion.steering.driftlite import DriftLite, steer
from hasten.diffusion.steering.repulsive import RSD, reconstruct
from hasten.diffusion.theory.exponential_sde import ExponentialIntegratorSDE, gaussian_sde_kl, kl_bound
from hasten.diffusion.theory.restoration import RestorationDegradation
from hasten.diffusion.theory.wasserstein import gaussian_pf_ode_w2, pf_ode_budget
from hasten.diffusion.trajectories import plot_trajectories
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.masked_denoiser import MaskedDenoiser
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear
from hasten.numerics.phase_space import PSLD, PhaseDenoiser, lift
from hasten.numerics.targets import Annealed, Product, Tilted

__all__ = [
    "AGD",
    "APG",
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "AdaptiveGuidance",
    "Annealed",
    "BDIA",
    "BDIAInversion",
    "CFG",
    "CFGPlusPlus",
    "Cache",
    "CachedTokenPruning",
    "ClassifierGuidance",
    "ConditionAligner",
    "ConfidenceGatedTaylor",
    "ConjugateIntegrator",
    "ControlNeXt",
    "CrossNorm",
    "DDIM",
    "DDIMInversion",
    "DDPM",
    "DEIS",
    "DODE",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverFast",
    "Denoiser",
    "DiscreteVP",
    "DragOptimizer",
    "DriftLite",
    "DualFast",
    "EDM",
    "EvolutionSearch",
    "ExponentialIntegratorSDE",
    "FIND",
    "FORA",
    "FeatureSlicer",
    "FlowMatching",
    "FlowOpt",
    "ForwardBackward",
    "GraphDenoiser",
    "GraphSDE",
    "Graphs",
    "Guidance",
    "GuidedDenoiser",
    "Inverter",
    "KineticOptimalPath",
    "LateConstraint",
    "LatentDiffusion",
    "LayerSkip",
    "LightControl",
    "LinearAG",
    "MDLM",
    "MaskedDenoiser",
    "MultiExpert",
    "NewtonInversion",
    "NoisePolicy",
    "Operator",
    "PCM",
    "PSLD",
    "ParaDiGMS",
    "ParallelOptimizer",
    "PerDimension",
    "PhaseDenoiser",
    "PicardConsistency",
    "PredictorCorrector",
    "Product",
    "RSD",
    "ReMDM",
    "RestorationDegradation",
    "S4Solver",
    "Sampler",
    "Schedule",
    "ShortestPathSampler",
    "ShortestPathSchedule",
    "SplittingIntegrator",
    "StepRehash",
    "TaylorSeer",
    "Tilted",
    "UniInv",
    "VE",
    "VPCosine",
    "VPLinear",
    "ZeroConv",
    "error_split",
    "fit_aligner",
    "gaussian_pf_ode_w2",
    "gaussian_sde_kl",
    "graph_batch",
    "gs_jacobi_inverse",
    "guided_invert",
    "invert",
    "invert_flow",
    "jacobi_inverse",
    "k_diffusion",
    "kl_bound",
    "lift",
    "pf_ode_budget",
    "plan_flow",
    "plot_trajectories",
    "presets",
    "reconstruct",
    "record_trajectories",
    "sample",
    "sample_graphs",
    "scheduler",
    "search_grid",
    "search_layers",
    "steer",
    "unmask",
]
