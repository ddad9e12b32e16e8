"""Markov chains as data of sequences: the law of every token given any others is known in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.numerics.masked_denoiser import MaskedDenoiser


class MarkovChainPosterior:
    """A Markov chain over K states, as the law of clean sequences, and the posterior of its hidden tokens.

    Tokens are 0 to K - 1; K is the mask. The forward-backward algorithm gives the law of each hidden token given all
    visible ones, so a sampler that is driven by it errs only by itself.

    Args:
        transition: shape (K, K), row-stochastic: `transition[i, j]` is the probability that j follows i.
        initial: law of the first token, shape (K,); uniform if not given.
        noise: share of visible tokens that count as replaced by a uniformly drawn one. Above 0, sequences that the
            chain forbids have a posterior too, as a trained network's would be.
    """

    def __init__(self, transition: Any, initial: Any = None, *, noise: float = 0.0) -> None:
        self.transition = torch.as_tensor(transition, dtype=torch.float64)
        count = len(self.transition)
        if self.transition.shape != (count, count) or count < 2:
            raise InputError(f"transition must be a square matrix, got shape {tuple(self.transition.shape)}")
        first = torch.full((count,), 1.0 / count) if initial is None else torch.as_tensor(initial)
        self.initial = first.double()
        if self.initial.shape != (count,):
            raise InputError(f"initial must have shape ({count},), got {tuple(self.initial.shape)}")
        for name, rows in (("transition", self.transition), ("initial", self.initial)):
            total = rows.sum(-1)
            if bool((rows < 0).any()) or not torch.allclose(total, torch.ones_like(total)):
                raise InputError(f"{name} must hold probabilities that sum to 1 (in every row), got sums {total}")
        self.noise = check.fraction("noise", noise)
        seen = torch.eye(count, dtype=torch.float64) * (1.0 - noise) + noise / count
        self._evidence = torch.cat((seen, torch.ones(1, count, dtype=torch.float64)))

    @classmethod
    def ring(
        cls, states: int = 8, moves: dict[int, float] | None = None, *, noise: float = 0.02
    ) -> MarkovChainPosterior:
        """States on a ring that move on by a few fixed distances: by 1 with probability 0.6, by 3 with 0.4."""
        check.integer("states", states, 2)
        transition = torch.zeros(states, states, dtype=torch.float64)
        for distance, probability in (moves or {1: 0.6, 3: 0.4}).items():
            here = torch.arange(states)
            transition[here, (here + distance) % states] += probability
        return cls(transition, noise=noise)

    @property
    def states(self) -> int:
        """Number of states, which is also the token of the mask."""
        return len(self.transition)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Law of every clean token given the visible ones: (batch, length) -> (batch, length, K), float64."""
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError(f"tokens must be integers of shape (batch, length), got {tuple(tokens.shape)}")
        evidence = self._evidence[tokens.T]
        forward, backward = torch.empty_like(evidence), torch.ones_like(evidence)
        law, length = self.initial.expand(len(tokens), -1), len(evidence)
        for i in range(length):
            filtered = law * evidence[i]
            torch.div(filtered, filtered.sum(1, keepdim=True), out=forward[i])
            law = forward[i] @ self.transition
        for i in range(length - 1, 0, -1):
            message = (backward[i] * evidence[i]) @ self.transition.T
            torch.div(message, message.sum(1, keepdim=True), out=backward[i - 1])
        posterior = forward * backward
        posterior = (posterior / posterior.sum(-1, keepdim=True)).transpose(0, 1)
        if not bool(posterior.isfinite().all()):
            raise InputError("some visible tokens have probability 0 under the chain; give it noise above 0")
        return posterior

    def denoiser(self) -> MaskedDenoiser:
        """The exact network of a masked diffusion."""
        return MaskedDenoiser(lambda tokens: self(tokens).log(), mask=self.states)

    def impossible(self, tokens: Tensor) -> float:
        """Fraction of neighbouring tokens whose transition has probability 0."""
        return float((self.transition[tokens[:, :-1], tokens[:, 1:]] == 0).double().mean())

    def sample(self, count: int, length: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of clean sequences, shape (count, length)."""
        tokens = torch.empty(count, length, dtype=torch.long)
        law = self.initial.expand(count, -1)
        for i in range(length):
            tokens[:, i] = torch.multinomial(law, 1, generator=generator)[:, 0]
            law = self.transition[tokens[:, i]]
        return tokens
