"""Where a cache takes hold of a network: finding its blocks, replacing their forward, and putting it back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.core.kinds.sample import BLOCKS

MODULES = ("attn", "attn1", "attn2", "mlp", "ff", "ff_context")
"""Usual names of a block's attention and feed-forward modules."""
TIMES = ("t", "timestep", "timesteps", "sigma", "time")
"""Usual names of a network's argument for the time; else it is the second one."""
MARK = "_hasten_cache"

Forward = Callable[..., Any]


def check_network(model: Any) -> nn.Module:
    """`model`, if its modules' forwards can be replaced."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a cache attaches to an nn.Module, got {type(model).__name__}; give the network inside, as model="
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError("a cache cannot attach to a scripted module, whose forward is fixed; give the eager module")
    compiled = (m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules())
    if any(compiled):
        raise InputError(
            "a cache cannot attach to a compiled module, which would go on without it; give the eager module "
            "(model._orig_mod of torch.compile(model))"
        )
    return model


def find_blocks(model: nn.Module, names: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """The network's blocks in order, by path.

    Args:
        model: the network.
        names: paths of its lists of blocks; the usual ones if not given.
    """
    if names is None:
        names = [name for name in BLOCKS if isinstance(getattr(model, name, None), nn.ModuleList)]
    wanted = [names] if isinstance(names, str) else names
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name in wanted:
        if name not in lists:
            raise InputError(f"blocks must name an nn.ModuleList of the network, {_some(lists)}; got {name!r}")
    found = {f"{name}.{path}": block for name in wanted for path, block in model.get_submodule(name).named_children()}
    if not found:
        raise InputError(
            f"{type(model).__name__} has no blocks of a usual name; name its list as blocks=, {_some(lists)}"
        )
    return found


def find_modules(blocks: Mapping[str, nn.Module], names: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Modules inside the blocks, by path.

    Args:
        blocks: the network's blocks.
        names: paths of the modules inside a block; the usual attention and feed-forward modules if not given.
    """
    wanted = MODULES if names is None else [names] if isinstance(names, str) else names
    found: dict[str, nn.Module] = {}
    for path, block in blocks.items():
        inside = dict(block.named_modules())
        found |= {f"{path}.{name}": inside[name] for name in wanted if name in inside}
    for name in wanted:
        if names is not None and not any(path.endswith(f".{name}") for path in found):
            raise InputError(f"modules must name modules inside the blocks, {_inside(blocks)}; got {name!r}")
    if not found:
        raise InputError(f"the blocks have no modules of usual names; name them as modules=, {_inside(blocks)}")
    return found


@contextmanager
def replaced(modules: Mapping[str, nn.Module], visit: Callable[[str, Forward, Any, Any], Any]) -> Iterator[None]:
    """Let calls of these modules go to `visit(path, forward, args, kwargs)`; afterwards they are as before.

    A module that goes by several paths is known by the first of them.

    Raises:
        InputError: a cache is attached already.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for path, module in modules.items():
            if any(module is known for known, _ in before):
                continue
            if getattr(module.forward, MARK, False):
                raise InputError("this network has a cache attached already; detach that one first")
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _visiting(path, module.forward, visit)
        yield
    finally:
        for module, forward in before:
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


def time_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The time that the network is called at."""
    time = next((kwargs[name] for name in TIMES if kwargs.get(name) is not None), None)
    if time is None and len(args) > 1:
        time = args[1]
    if isinstance(time, Tensor) and time.numel() > 0:
        low, high = torch.stack(time.detach().aminmax()).tolist()
        if low != high:
            raise InputError(
                f"the network was called at several times at once (from {low:g} to {high:g}), as parallel samplers do; "
                "a cache follows one chain, step after step: leave it out, or use another sampler"
            )
        return float(low)
    if isinstance(time, (int, float)):
        return float(time)
    raise InputError(
        f"a cache needs the time of each call of the network: its second argument, or one named {', '.join(TIMES)}"
    )


def state_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The batch that a network or block works on: its first tensor."""
    found = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1), None)
    if found is None:
        raise InputError("a cache needs a network and blocks whose first tensor is the batch, of shape (batch, ...)")
    return found


def _visiting(path: str, forward: Forward, visit: Callable[[str, Forward, Any, Any], Any]) -> Forward:
    @functools.wraps(forward)
    def visiting(*args: Any, **kwargs: Any) -> Any:
        return visit(path, forward, args, kwargs)

    setattr(visiting, MARK, True)
    return visiting


def _inside(blocks: Mapping[str, nn.Module]) -> str:
    return _some([name for name, _ in next(iter(blocks.values())).named_children()])


def _some(names: Sequence[str]) -> str:
    return f"one of {', '.join(names)}" if names else "but there is none"
