"""Optimizers, learning-rate schedules, gradient filters and weight averages for PyTorch training."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "ADOPT": "adopt",
    "AdaBelief": "adabelief",
    "Adafactor": "adafactor",
    "AdEMAMix": "ademamix",
    "CAME": "came",
    "DoG": "dog",
    "GradNormRecorder": "refined_schedule",
    "GrokfastEMA": "grokfast",
    "GrokfastMA": "grokfast",
    "LDoG": "dog",
    "LatestWeightAverage": "averaging",
    "LinearDecay": "refined_schedule",
    "Lion": "lion",
    "LionK": "lion",
    "NonFiniteGradientError": "base",
    "PolynomialAverager": "averaging",
    "RefinedSchedule": "refined_schedule",
    "RuleOptimizer": "base",
    "lion_lyapunov": "lion",
    "refine_schedule": "refined_schedule",
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
