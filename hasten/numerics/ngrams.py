"""How close generated sequences are to a text, by the law of their n-grams."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError


class NGrams:
    """The law of the runs of n tokens in a text, to which that of generated sequences is compared.

    Args:
        text: the reference, a 1-d tensor of integers from 0.
        n: tokens per run.
        vocabulary: number of tokens; sequences may hold others from 0 to `vocabulary`, e.g. a mask.
    """

    def __init__(self, text: Tensor, n: int = 3, vocabulary: int = 256) -> None:
        check.integer("n", n, 1)
        check.integer("vocabulary", vocabulary, 1)
        if (vocabulary + 1) ** n >= 2**63:
            raise InputError(f"runs of n={n} out of {vocabulary} tokens cannot be told apart by 64-bit integers")
        if text.ndim != 1 or len(text) < n:
            raise InputError(f"text must be a tensor of at least {n} tokens, got shape {tuple(text.shape)}")
        self.n, self.base = n, vocabulary + 1
        self.keys, self.share = self._law(text)

    def divergence(self, tokens: Tensor) -> float:
        """Jensen-Shannon divergence of the runs in `tokens` (batch, length) from those of the text, in bits: 0 to 1.

        It counts runs that the text lacks and, as much, runs of the text that are missing, so that monotony is no way
        out. It depends on how many tokens there are: even windows of the text itself do not reach 0. Compare batches
        of one size.
        """
        keys, share = self._law(tokens)
        union = torch.cat((self.keys, keys)).unique()
        p, q = torch.zeros(2, len(union), dtype=torch.float64)
        p[torch.searchsorted(union, self.keys)] = self.share
        q[torch.searchsorted(union, keys)] = share
        middle = 0.5 * (p + q)
        return float(0.5 * sum(torch.special.xlogy(law, law / middle).sum() for law in (p, q)) / torch.log(_TWO))

    def _law(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        runs = tokens.long().unfold(-1, self.n, 1).reshape(-1, self.n)
        powers = self.base ** torch.arange(self.n)
        keys, counts = (runs * powers).sum(1).unique(return_counts=True)
        return keys, counts.double() / counts.sum()


_TWO = torch.tensor(2.0, dtype=torch.float64)
