"""Every error that hasten raises on purpose. Each message names what is wrong, its value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HastenError(Exception):
    """Base of all errors of this library."""


class InputError(HastenError, ValueError):
    """An argument is outside its allowed range."""


class UnknownNameError(InputError, LookupError):
    """No method, problem or family goes by this name."""


class MismatchError(InputError):
    """The method does not serve this kind of problem."""


class ProblemError(HastenError):
    """The problem itself is broken: no method could be blamed for the result."""


class DivergedError(HastenError, ArithmeticError):
    """The iteration left the finite numbers."""


class DataError(HastenError, FileNotFoundError):
    """A data set is neither on this machine nor downloadable."""


class StoreError(HastenError, OSError):
    """The results file cannot be read or written; nothing in it was changed."""


class EngineError(HastenError, RuntimeError):
    """The engine that should execute the runs is not available."""


def unknown(what: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a name that is not registered, with the nearest names that are."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    suggestion = f" Did you mean {' or '.join(near)}?" if near else ""
    return UnknownNameError(f"unknown {what} {name!r}.{suggestion}{' ' + hint if hint else ''}")
