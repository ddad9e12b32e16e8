"""Optimizers, learning-rate schedules, gradient filters and weight averages for PyTorch training."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Adam8bit": "memory.quantized",
    "AdamW8bit": "memory.quantized",
    "ADOPT": "adaptive.adopt",
    "AggressiveSWA": "averaging.aggressive",
    "AMSGrad": "adaptive.amsgrad",
    "AdaBelief": "adaptive.adabelief",
    "Adafactor": "memory.adafactor",
    "AdaBound": "adaptive.adabound",
    "AdaMomentum": "adaptive.adamomentum",
    "ALRHB": "step_size.alr",
    "ALRMAG": "step_size.alr",
    "AdaGradNorm": "schedules.adaptive_batch",
    "AdaptiveBatchSampler": "schedules.batch_sampler",
    "AdEMAMix": "adaptive.ademamix",
    "AdamCM": "adaptive.adam_cm",
    "AdamP": "adaptive.adamp",
    "Ano": "adaptive.ano",
    "Anolog": "adaptive.ano",
    "BandBalancer": "recipes.band_balance",
    "AugmentedInnerProductTest": "schedules.adaptive_batch",
    "BlockwiseAdam": "adaptive.blockwise_adam",
    "CAME": "memory.came",
    "CoRe": "adaptive.core",
    "Composition": "composition",
    "Conda": "memory.conda",
    "ConvergeSmooth": "recipes.fast_at",
    "CoordinateClip": "filters.coordinate_clip",
    "CoordinateNormTest": "schedules.adaptive_batch",
    "DAdaptAdaGrad": "step_size.dadapt",
    "DAdaptAdam": "step_size.dadapt",
    "DAdaptSGD": "step_size.dadapt",
    "DeepZero": "zeroth_order.deepzero",
    "dequantize_blockwise": "memory.blockwise",
    "DiffGrad": "adaptive.diffgrad",
    "DiffGradFriction": "adaptive.diffgrad",
    "Discover": "filters.discover",
    "DoG": "step_size.dog",
    "dynamic_map": "memory.blockwise",
    "Frugal": "memory.frugal",
    "FastAdversarialTraining": "recipes.fgsm_training",
    "FrequencyBandModel": "recipes.band_balance",
    "GradNormRecorder": "schedules.refined_schedule",
    "GradientEarlyStopping": "averaging.freezing",
    "GrokfastEMA": "filters.grokfast",
    "GrokfastMA": "filters.grokfast",
    "GSNRFilter": "filters.gsnr",
    "hidden_matrices": "parameter_groups",
    "InnerProductTest": "schedules.adaptive_batch",
    "LDoG": "step_size.dog",
    "LatestWeightAverage": "averaging.weights",
    "LinearDecay": "schedules.refined_schedule",
    "Lion": "adaptive.lion",
    "Lion8bit": "memory.quantized",
    "LionK": "adaptive.lion",
    "log_stablemax": "filters.stablemax",
    "MeZO": "zeroth_order.zo_adamu",
    "MicroBatches": "persample",
    "Momentum8bit": "memory.quantized",
    "MultiAdam": "recipes.multiadam",
    "LinearTeleport": "averaging.teleport",
    "NonFiniteGradientError": "base",
    "OnlineSubspace": "memory.subspace",
    "OrthoGrad": "filters.orthograd",
    "per_sample_gradients": "persample",
    "PolynomialAverager": "averaging.weights",
    "Projector": "memory.projector",
    "quantize_blockwise": "memory.blockwise",
    "QuantizedState": "memory.quantized",
    "RadialFree": "adaptive.radial_free",
    "RandomScaledSGDM": "filters.random_scaling",
    "RandomScaling": "filters.random_scaling",
    "NormTest": "schedules.adaptive_batch",
    "OASIS": "step_size.oasis",
    "RefinedSchedule": "schedules.refined_schedule",
    "RuleOptimizer": "base",
    "KernelGradient": "averaging.optex",
    "OneCycle": "schedules.one_cycle",
    "OptEx": "averaging.optex",
    "OptimisticAMSGrad": "adaptive.optimistic_amsgrad",
    "OptimizerWrapper": "wrapper",
    "seed_stability": "averaging.aggressive",
    "SNSM": "memory.subset_norm",
    "SPAM": "filters.spam",
    "SpikeClip": "filters.spam",
    "Rotated": "adaptive.geometry",
    "hessian_11_norm": "adaptive.geometry",
    "spectral_norm": "adaptive.geometry",
    "rmpe_predict": "adaptive.optimistic_amsgrad",
    "StableEmbedding": "memory.quantized",
    "stablemax": "filters.stablemax",
    "stablemax_cross_entropy": "filters.stablemax",
    "SAM": "recipes.sam",
    "SGDP": "adaptive.adamp",
    "SMB": "step_size.smb",
    "SlowStartFastDecay": "schedules.slow_start",
    "StepHook": "wrapper",
    "UDIM": "recipes.udim",
    "Teleporting": "averaging.teleport",
    "UBASchedule": "schedules.uba",
    "VRAdam": "filters.gsnr",
    "VRLAMB": "filters.gsnr",
    "VRSGD": "filters.gsnr",
    "ZOAdaMU": "zeroth_order.zo_adamu",
    "WeightCentralization": "recipes.fast_at",
    "adversarial_finetune": "recipes.fast_at",
    "cge": "zeroth_order.deepzero",
    "compose": "composition",
    "layerwise": "parameter_groups",
    "fgsm": "recipes.attacks",
    "fgsm_rs": "recipes.attacks",
    "lion_lyapunov": "adaptive.lion",
    "lr_range_test": "schedules.one_cycle",
    "optimal_lr_estimate": "schedules.one_cycle",
    "pgd": "recipes.attacks",
    "radial_projection": "adaptive.radial_free",
    "no_decay": "parameter_groups",
    "rge": "zeroth_order.deepzero",
    "refine_schedule": "schedules.refined_schedule",
    "zo_grasp_scores": "zeroth_order.deepzero",
    "teleport": "averaging.teleport",
}

__all__ = [*_WHERE, "make"]


def make(name: str, params: Any, **hyper: Any) -> Any:
    """An optimizer by its name in the registry: `make("adopt", model.parameters(), lr=1e-3)`.

    Raises:
        UnknownNameError: there is no optimizer of this name.
        InputError: the name is that of a schedule, a filter or an average, which are not built from parameters.
    """
    from torch.optim import Optimizer

    from hasten.core.errors import InputError
    from hasten.core.registry import get

    card = get(name if name.startswith("optim.") else f"optim.{name}")
    cls = card.load()
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise InputError(f"{card.id} is not an optimizer by itself; it is used as: {card.code()}")
    return cls(params, **hyper)


def __getattr__(name: str) -> Any:
    """Load a public name when it is first touched."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hasten.optim' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hasten.optim.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
