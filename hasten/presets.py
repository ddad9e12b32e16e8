"""The races that come with the library."""

from __future__ import annotations

from torch.optim import Optimizer

from hasten.core.preset import preset
from hasten.core.registry import methods
from hasten.optim.wrapper import OptimizerWrapper


@preset(
    "optim-grand",
    "every stand-alone optimizer, equally tuned, on four problems",
    ("digits-cnn", "stdlib-lm", "cifar10:width=16", "breast-cancer-logreg"),
    trials=6,
    seeds=3,
    baseline="optim.adamw",
    cost="calls",
)
def optim_grand() -> list[str]:
    """All optimizer classes of the registry, PyTorch's own included, except those that wrap another one.

    Ranked by oracle calls, because some of them evaluate the loss several times in a step.
    """
    found = [(card.id, card.load()) for card in methods("optim")]
    rules = [(name, target) for name, target in found if isinstance(target, type) and issubclass(target, Optimizer)]
    return [name for name, target in rules if not issubclass(target, OptimizerWrapper)]
