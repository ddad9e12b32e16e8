"""The chain's posterior against enumeration of all sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hasten.core.errors import InputError
from hasten.numerics.markov_chain import MarkovChainPosterior

MATRIX = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.4, 0.6], [0.7, 0.3, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_posterior_is_that_of_all_sequences(noise: float) -> None:
    chain = MarkovChainPosterior(MATRIX, torch.tensor([0.5, 0.2, 0.3]), noise=noise)
    tokens = torch.tensor([[3, 1, 3, 3, 0], [3, 3, 3, 3, 3], [2, 3, 3, 2, 3]])
    for row, found in zip(tokens.tolist(), chain(tokens)):
        exact = torch.zeros(5, 3, dtype=torch.float64)
        for states in itertools.product(range(3), repeat=5):
            weight = float(chain.initial[states[0]]) * math.prod(
                float(MATRIX[a, b]) for a, b in itertools.pairwise(states)
            )
            for state, seen in zip(states, row):
                weight *= 1.0 if seen == 3 else (1 - noise) * (state == seen) + noise / 3
            for position, state in enumerate(states):
                exact[position, state] += weight
        torch.testing.assert_close(found, exact / exact.sum(1, keepdim=True))


def test_draws_are_possible_and_counted() -> None:
    chain = MarkovChainPosterior.ring()
    tokens = chain.sample(50, 20, torch.Generator().manual_seed(0))
    assert chain.impossible(tokens) == 0.0
    assert chain.impossible(torch.tensor([[0, 1, 3, 6]])) == pytest.approx(1 / 3)


def test_refuses_what_is_no_chain() -> None:
    with pytest.raises(InputError, match="square"):
        MarkovChainPosterior([[0.5, 0.5]])
    with pytest.raises(InputError, match="transition must hold"):
        MarkovChainPosterior([[0.5, 0.6], [0.5, 0.5]])
    with pytest.raises(InputError, match="initial"):
        MarkovChainPosterior(MATRIX, [1.0, 1.0, 0.0])
    with pytest.raises(InputError, match="noise"):
        MarkovChainPosterior(MATRIX)(torch.tensor([[1, 0]]))
    with pytest.raises(InputError, match="integers"):
        MarkovChainPosterior(MATRIX)(torch.zeros(2, 2))
