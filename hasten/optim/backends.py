"""How a rule is run over its tiles: plain PyTorch in pieces that fit the cache, or one compiled loop."""

from __future__ import annotations

import shutil
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hasten.optim.layout import Tile, work_dtype

CHUNK = 2**18
"""Elements that an eager elementwise rule handles at once: a few vectors of this length stay in the cache."""

PAYS_AFTER = 2 * 10**10
"""Elements x steps after which `auto` compiles: eager steps have then cost about what compiling costs."""

BACKENDS = ("auto", "eager", "compile")

Update = Callable[..., None]

_steps: dict[Any, Callable[..., Any] | None] = {}


def advance(
    update: Update, param: Tensor, grad: Tensor, buffers: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """One step of a rule on one tile: sign, precision and weight decay here, the rest in `update`."""
    values = dict(values)
    keep, l2, maximize = values.pop("keep", None), values.pop("l2", None), values.pop("maximize", False)
    dtype = work_dtype(param.dtype)
    p = param if param.dtype == dtype else param.to(dtype)
    g = grad if grad.dtype == dtype else grad.to(dtype)
    if maximize:
        g = -g
    if l2 is not None:
        g = g + l2 * p if isinstance(l2, Tensor) else g.add(p, alpha=l2)
    if keep is not None:
        p.mul_(keep)
    update(p, g, **buffers, **values)
    if param.dtype != dtype:
        param.copy_(p)


def run_eager(update: Update, tile: Tile, param: Tensor, grad: Tensor, values: Mapping[str, Any]) -> None:
    """Plain PyTorch; long vectors in chunks."""
    if tile.stacked or param.numel() <= CHUNK:
        advance(update, param, grad, tile.buffers, values)
        return
    pieces = [tensor.split(CHUNK) for tensor in (param, grad, *tile.buffers.values())]
    for p, g, *buffers in zip(*pieces):
        advance(update, p, g, dict(zip(tile.buffers, buffers)), values)


def split(values: Mapping[str, Any], static: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that vary from step to step (numbers), and those that a compiled step is made for (all others)."""
    varying: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for name, value in values.items():
        number = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool) and name not in static
        (varying if number else fixed)[name] = value
    return varying, fixed


def numbers(varying: Mapping[str, Any], device: torch.device) -> Tensor:
    """The varying values as one vector, in double precision."""
    if any(isinstance(value, Tensor) for value in varying.values()):
        return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in varying.values()])
    return torch.tensor(list(varying.values()), dtype=torch.float64, device=device)


def run_compiled(
    update: Update,
    tile: Tile,
    param: Tensor,
    grad: Tensor,
    varying: Mapping[str, Any],
    fixed: Mapping[str, Any],
    packed: Tensor,
) -> bool:
    """The compiled step of a rule for these fixed values, made when first used; False if that is not possible."""
    sort = (param.dtype, param.device.type, param.ndim, tile.stacked and param.shape[0] > 1)
    key = (update, *tile.buffers, "", *varying, "", *fixed.items(), sort)
    names, buffers = tuple(tile.buffers), list(tile.buffers.values())
    known = key in _steps
    if not known:
        _steps[key] = _compile(update, names, tuple(varying), dict(fixed), pure=sort[-1])
    step = _steps[key]
    if step is None:
        return False
    try:
        results = step(param, grad, buffers, packed)
    except Exception as error:
        if known:
            raise
        results = _second_try(key, error, update, names, tuple(varying), dict(fixed), (param, grad, buffers, packed))
        if results is None:
            return False
    for tensor, result in zip((param, *buffers), results or ()):
        tensor.copy_(result)
    return True


def _second_try(key: Any, error: Exception, *made: Any) -> Any:
    *arguments, inputs = made
    try:
        step = _compile(*arguments, pure=True)
        results = step(*inputs)
    except Exception:
        _steps[key] = None
        text = f"an optimizer step could not be compiled and runs eagerly instead: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None
    _steps[key] = step
    return results


def _compile(
    update: Update, names: tuple[str, ...], changing: tuple[str, ...], constant: dict[str, Any], *, pure: bool
) -> Callable[..., Any]:
    def step(param: Tensor, grad: Tensor, buffers: list[Tensor], numbers: Tensor) -> tuple[Tensor, ...] | None:
        if pure:
            param, buffers = param.clone(), [buffer.clone() for buffer in buffers]
        values = {**constant, **dict(zip(changing, numbers.unbind()))}
        advance(update, param, grad, dict(zip(names, buffers)), values)
        return (param, *buffers) if pure else None

    # The compiler keeps only a few versions per code object, so each step gets a code object of its own. `pure` steps
    # return what they computed: torch 2.13 fails on reductions over stacks that are then changed in place.
    code = step.__code__.replace(co_name=f"step_{len(_steps)}")
    own = types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


@cache
def compiler_missing(device: str) -> str:
    """Why steps cannot be compiled for this kind of device; empty if they can."""
    if device == "cpu":
        try:
            from torch._inductor.cpp_builder import get_cpp_compiler

            found = shutil.which(get_cpp_compiler())
        except Exception:
            found = None
        return "" if found else "no C++ compiler was found; install g++ or clang, or choose backend='eager'"
    if device == "cuda":
        try:
            import triton  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            return "Triton is not installed; install it, or choose backend='eager'"
        return ""
    return f"steps are not compiled for device type {device!r}; choose backend='eager'"
