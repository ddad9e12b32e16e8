"""How a rule is run over its tiles: plain PyTorch in pieces that fit the cache, or one compiled loop."""

from __future__ import annotations

import itertools
import re
import shutil
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as shape_config

from hasten.optim.layout import work_dtype

CHUNK = 2**18
"""Elements per thread that an eager elementwise rule handles at once: few enough that a few vectors of them stay in the
cache, many enough that starting an operation does not count."""

PAYS_AFTER = 2 * 10**10
"""Elements x steps after which `auto` compiles: eager steps have then cost about what compiling costs."""

BACKENDS = ("auto", "eager", "compile")

Update = Callable[..., None]


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


def run_eager(update: Update, tile: Any, param: Tensor, grad: Tensor, values: Mapping[str, Any]) -> None:
    """Plain PyTorch; long vectors in chunks."""
    chunk = CHUNK * torch.get_num_threads()
    if tile.stacked or param.numel() <= chunk or param.device.type != "cpu":
        advance(update, param, grad, tile.buffers, values)
        return
    pieces = [tensor.split(chunk) for tensor in (param, grad, *tile.buffers.values())]
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


def numbers(varying: Mapping[str, Any], like: Tensor) -> Tensor:
    """The varying values as one vector, in the precision of the arithmetic on a parameter."""
    dtype, device = work_dtype(like.dtype), like.device
    if any(isinstance(value, Tensor) for value in varying.values()):
        return torch.stack([torch.as_tensor(value, dtype=dtype, device=device) for value in varying.values()])
    return torch.tensor(list(varying.values()), dtype=dtype, device=device)


class Step:
    """A compiled step `(param, grad, buffers, numbers)`, called past the compiler's guards.

    `Program` keeps one for every combination of what the guards would check.
    """

    def __init__(self, function: Callable[..., Any], constant: bool = False) -> None:
        self._constant = constant
        self._guarded = torch.compile(function, dynamic=True, fullgraph=True, backend=self._inductor)
        self._direct: Callable[..., Any] | None = None

    def __call__(self, param: Tensor, grad: Tensor, buffers: list[Tensor], numbers: Tensor) -> Any:
        if self._direct is None or param.numel() < 2:
            # Lengths that happen to be equal must not be taken for one: what would tell them apart later is skipped.
            known = {"specialize_int": True} | ({"specialize_float": True} if self._constant else {})
            with shape_config.patch(use_duck_shape=False), torch._dynamo.config.patch(known):  # type: ignore[attr-defined]
                return self._guarded(param, grad, buffers, numbers)
        return self._direct(param, grad, buffers, numbers)

    def _inductor(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        patches: dict[str, Any] = {"size_asserts": False}
        if self._constant:
            # Nothing in between is written to memory, whatever the number of operations.
            patches |= {"realize_opcount_threshold": 10**6, "cpp.enable_floating_point_contract_flag": "fast"}
        made = torch._dynamo.lookup_backend("inductor")(graph, inputs, config_patches=patches)  # type: ignore[call-arg]
        with suppress(AttributeError, KeyError, SyntaxError):
            places = [node.meta["grapharg"].source.name for node in graph.graph.nodes if node.op == "placeholder"]
            # Dynamo writes its inputs as expressions of the arguments: L['param'], L['grad'].size()[0], ...
            names = [re.sub(r"L\['(\w+)'\]", r"\1", str(place() if callable(place) else place)) for place in places]
            self._direct = eval(f"lambda param, grad, buffers, numbers: made({', '.join(names)})", {"made": made})
        return made


class Program:
    """The compiled steps of one rule, for given fixed values and names of what varies."""

    def __init__(
        self,
        update: Update,
        names: tuple[str, ...],
        varying: tuple[str, ...],
        fixed: dict[str, Any],
        constant: bool = False,
    ) -> None:
        self._parts = (update, names, varying, fixed)
        self._constant = constant
        self._steps: dict[Any, Step | None] = {}

    def run(self, tile: Any, param: Tensor, grad: Tensor, numbers: Tensor) -> bool:
        """Take the step on this tile; False if it cannot be compiled."""
        step = self._steps.get(tile.sort)
        if step is not None:
            results = step(param, grad, tile.state, numbers)
        elif tile.sort in self._steps:
            return False
        else:
            results = self._first(tile, param, grad, numbers)
            if self._steps[tile.sort] is None:
                return False
        if results:
            for tensor, result in zip((param, *tile.state), results):
                tensor.copy_(result)
        return True

    def _first(self, tile: Any, param: Tensor, grad: Tensor, numbers: Tensor) -> Any:
        # Torch 2.13 fails on reductions over stacks that are then changed in place, so where that is likely or has
        # happened, the step returns what it computed ("pure").
        failure = None
        for pure in (True,) if tile.sort[-1] else (False, True):
            step = self._compile(pure)
            try:
                results = step(param, grad, tile.state, numbers)
            except Exception as error:
                failure = failure or error
            else:
                self._steps[tile.sort] = step
                return results
        self._steps[tile.sort] = None
        text = f"an optimizer step could not be compiled and runs eagerly instead: {failure}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None

    def _compile(self, pure: bool) -> Step:
        update, names, varying, fixed = self._parts

        def step(param: Tensor, grad: Tensor, buffers: list[Tensor], numbers: Tensor) -> tuple[Tensor, ...] | None:
            if pure:
                param, buffers = param.clone(), [buffer.clone() for buffer in buffers]
            values = {**fixed, **dict(zip(varying, numbers.unbind()))}
            advance(update, param, grad, dict(zip(names, buffers)), values)
            return (param, *buffers) if pure else None

        # The compiler keeps only a few versions per code object, so each step gets a code object of its own.
        code = step.__code__.replace(co_name=f"step_{next(_count)}")
        return Step(types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__), self._constant)


_programs: dict[Any, Program] = {}
_count = itertools.count()


def program(
    update: Update,
    names: tuple[str, ...],
    varying: Mapping[str, Any],
    fixed: Mapping[str, Any],
    constant: bool = False,
) -> Program:
    """The compiled form of a rule, made when first used; `constant`: numbers in its code and closures never change."""
    key = (update, names, tuple(varying), tuple(fixed.items()))
    if key not in _programs:
        _programs[key] = Program(update, names, tuple(varying), dict(fixed), constant)
    return _programs[key]


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
