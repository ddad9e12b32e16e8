"""A network that predicts hidden tokens, as masked diffusion asks for it: probabilities that never name the mask."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import DivergedError, InputError

Network = Callable[..., Tensor]


class MaskedDenoiser:
    """A masked language model: from a sequence with masks to the law of each clean token.

    Args:
        fn: the network; `fn(tokens)` takes integers of shape (batch, length) and returns logits of shape
            (batch, length, tokens of the vocabulary).
        mask: the token that stands for "hidden". Its logit, if there is one, is ignored.
        timed: whether the network takes the time as well, `fn(tokens, t)` with t of shape (batch,). Samplers reuse the
            output of a network without time as long as the sequence does not change.

    Raises:
        InputError: the output has another shape.
        DivergedError: a logit is nan, or all logits of a token are minus infinity.
    """

    def __init__(self, fn: Network, mask: int, *, timed: bool = False) -> None:
        if not callable(fn):
            raise InputError(f"fn must be a network or function of tokens, got {fn!r}")
        self.fn = fn
        self.mask = check.integer("mask", mask, 0)
        self.timed = timed
        self._count: Callable[[int], object] | None = None

    def counted(self, count: Callable[[int], object]) -> MaskedDenoiser:
        """The same network, calling `count(1)` at each evaluation."""
        made = copy.copy(self)
        made._count = count
        return made

    def probabilities(self, tokens: Tensor, t: float) -> Tensor:
        """Law of each clean token, (batch, length, vocabulary), float64, zero at the mask. One evaluation."""
        with torch.no_grad():
            output = self.fn(tokens, torch.full((len(tokens),), t)) if self.timed else self.fn(tokens)
        if self._count is not None:
            self._count(1)
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != tokens.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the network must return logits of shape {(*tokens.shape, 'vocabulary')}, got {got}")
        logits = output.double()
        if self.mask < logits.shape[2]:
            logits = logits.index_fill(2, torch.tensor(self.mask, device=logits.device), -math.inf)
        law = logits.softmax(2)
        if not bool(law.isfinite().all()):
            raise DivergedError(f"the network returned logits without a law (nan or infinity) at t={t:.4g}")
        return law


def nucleus(law: Tensor, p: float) -> Tensor:
    """The law restricted to its likeliest entries, as many as have at most probability `p` together, at least one."""
    if p >= 1.0:
        return law
    ordered, order = law.sort(dim=-1, descending=True)
    kept = ordered.cumsum(-1) <= p
    kept[..., 0] = True
    ordered = ordered * kept
    return torch.zeros_like(law).scatter_(-1, order, ordered / ordered.sum(-1, keepdim=True))
