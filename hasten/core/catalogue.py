"""Which problems there are: the ready ones by name, the user's own from a file or an object."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.core.errors import InputError, ProblemError, unknown
from hasten.core.problem import Problem
from hasten.core.registry import import_tree

Factory = Callable[..., Problem]


@dataclass(frozen=True)
class Ready:
    """A ready problem: its factory and what `hasten list problems` says of it."""

    name: str
    kind: str
    summary: str
    factory: Factory


_ready: dict[str, Ready] = {}
_state = {"loaded": False}


def ready(name: str, kind: str) -> Callable[[Factory], Factory]:
    """Decorator: enter a factory of problems under `name`; the first line of its docstring is the summary."""

    def enter(factory: Factory) -> Factory:
        summary = (inspect.getdoc(factory) or "").partition("\n")[0]
        _ready[name] = Ready(name, kind, summary, factory)
        return factory

    return enter


def problems() -> list[Ready]:
    """All ready problems, by name."""
    if not _state["loaded"]:
        import_tree("hasten.problems")
        _state["loaded"] = True
    return [_ready[name] for name in sorted(_ready)]


def problem(spec: str, **params: Any) -> Problem:
    """A ready problem by name, with parameters: `problem("quadratic", cond=1e4)` or `problem("quadratic:cond=1e4")`."""
    name, _, tail = spec.partition(":")
    known = {entry.name: entry for entry in problems()}
    if name not in known:
        raise unknown("problem", name, known, "`hasten list problems` shows all; your own: a .py file with problem().")
    factory = known[name].factory
    signature = inspect.signature(factory)
    for item in filter(None, tail.split(",")):
        key, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"problem parameter {item!r} must look like key=value, as in quadratic:dim=50,cond=1e3")
        params[key.strip()] = text.strip()
    for key, value in params.items():
        if key not in signature.parameters:
            raise unknown(f"parameter of problem {name!r}:", key, signature.parameters, f"It takes {signature}.")
        if isinstance(value, str):
            params[key] = _convert(name, key, value, signature.parameters[key].default)
    made = factory(**params)
    shown = ",".join(f"{key}={value}" for key, value in sorted(params.items()))
    return replace(made, name=f"{name}:{shown}" if shown else name, params=dict(params))


def literal(text: str) -> Any:
    """A value as typed on the command line: a number, true, false, none, or the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _convert(name: str, key: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            return int(text) if text.lstrip("-").isdigit() else _whole(float(text))
        return kind(text) if kind in (float, str) else text
    except (ValueError, KeyError, OverflowError):
        raise InputError(f"problem {name!r}: {key} must be of type {kind.__name__}, got {text!r}") from None


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(value)
    return int(value)


def load_module(path: str | Path) -> Any:
    """Import a user's Python file; an error inside it comes with the short traceback of that file alone."""
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise InputError(f"no such file: {path}")
    label = f"hasten_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(label, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(label, None)
        raise ProblemError(f"{path} could not be imported:\n{_short(error, file)}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def load_problem(path: str | Path) -> Problem:
    """The problem that a user's file describes in its function `problem()`."""
    module = load_module(path)
    make = getattr(module, "problem", None)
    if not callable(make):
        raise ProblemError(f"{path} has no function problem(); write `def problem(): return hasten.training(...)`.")
    try:
        made = make()
    except Exception as error:
        raise ProblemError(f"problem() in {path} failed:\n{_short(error, Path(path).resolve())}") from error
    if not isinstance(made, Problem):
        raise ProblemError(f"problem() in {path} must return a hasten.Problem, got {type(made).__name__}")
    return made


def _short(error: BaseException, file: Path) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == file] or frames[-1:]
    lines = [f"  line {frame.lineno}: {frame.line}" for frame in own[-4:]]
    last = traceback.format_exception_only(error)
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [f"  line {error.lineno}: {(error.text or '').strip()}"]
        last = last[-1:]
    return "\n".join([*lines, "  " + " ".join("".join(last).split())])
