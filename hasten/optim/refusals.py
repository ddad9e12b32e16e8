"""What optimizers turn down: options that only PyTorch's own have, and state dicts that are not theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hasten.core.errors import InputError
from hasten.optim import sharded, storage
from hasten.optim.layout import real

if TYPE_CHECKING:
    from hasten.optim.base import RuleOptimizer

ADDED = {"params", "param_names", "initial_lr", "swa_lr"}
"""What PyTorch itself adds to parameter groups."""


def refuse_torch_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise for options that PyTorch's optimizers have and these cannot have, with the reason."""
    for option, value in options.items():
        if option in ("foreach", "fused"):
            raise InputError(f"{name} has no {option}={value!r}; choose backend='eager', 'compile' or 'auto' instead")
        if option not in ("capturable", "differentiable"):
            raise TypeError(f"{name}.__init__() got an unexpected keyword argument {option!r}")
        if value:
            why = {
                "capturable": "its step count is a Python number and would be frozen in a CUDA graph",
                "differentiable": "it updates in place without a graph; differentiate a functional step instead",
            }[option]
            raise InputError(f"{name} does not support {option}=True: {why}")


def check_saved(optimizer: RuleOptimizer, saved: Mapping[str, Any]) -> None:
    """Raise `InputError` naming the keys in which a saved state differs from what this optimizer keeps."""
    name, absent = type(optimizer).__name__, sorted({"state", "param_groups"} - set(saved))
    if absent:
        raise InputError(f"state_dict is not of an optimizer: missing {absent}; it has {sorted(saved)[:8]}")
    counts = [[len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)]
    if counts[0] != counts[1]:
        raise InputError(f"state_dict has groups of {counts[0]} parameters, this {name} groups of {counts[1]}")
    for theirs, group in zip(saved["param_groups"], optimizer.param_groups):
        missing = sorted(set(optimizer.defaults) - set(theirs))
        foreign = sorted(set(theirs) - set(group) - set(optimizer.kept) - ADDED)
        if missing or foreign:
            raise InputError(f"state_dict is not of this {name}: missing options {missing}, not known {foreign}")
        for place, param in zip(theirs["params"], group["params"]):
            state = saved["state"].get(place)
            if not state:
                continue
            options = {key: theirs[key] for key in theirs if key != "params"}
            wanted = optimizer.shapes(options, real(param).shape)
            missing = sorted({"step", *wanted} - set(state))
            if missing:
                has = sorted(set(state) - {"step"})
                raise InputError(f"state_dict is not of this {name}: missing state {missing}, instead it has {has}")
            storage.check_saved(optimizer.storage, name, state, wanted)
            for key, shape in wanted.items():
                if tuple(state[key].shape) != tuple(shape) and not sharded.is_sharded(param):
                    found = tuple(state[key].shape)
                    raise InputError(f"state_dict has {key} shaped {found} for a parameter that needs {shape}")
