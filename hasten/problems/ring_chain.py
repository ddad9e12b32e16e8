"""Ready problem: sequences of a Markov chain on a ring whose masked model is exact, so that only the sampler errs."""

from __future__ import annotations

import torch

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.unmask import Unmasking
from hasten.core.problem import Problem
from hasten.numerics.markov_chain import MarkovChainPosterior

RUNGS = (8, 16, 32, 64, 128, 256)


@ready("ring-chain", "unmask")
def ring_chain(
    states: int = 8, length: int = 32, batch: int = 256, noise: float = 0.02, target: float = 0.005
) -> Problem:
    """Generate sequences of a Markov chain from masks: share of impossible neighbours against evaluations.

    Args:
        states: states on the ring; a token is followed by the next one or the third next.
        length: tokens per sequence.
        batch: sequences per run.
        noise: how little the exact model trusts the tokens that it sees.
        target: share of impossible neighbours that counts as arrived.
    """
    chain = MarkovChainPosterior.ring(states, noise=noise)
    start = torch.full((check.integer("batch", batch, 1), check.integer("length", length, 2)), states)

    def build(seed: int) -> Unmasking:
        return Unmasking(chain.denoiser(), start, chain.impossible, RUNGS)

    return Problem(
        name="ring-chain",
        kind=Unmasking.kind,
        build=build,
        measures="share of impossible neighbours",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.mdlm",
        summary="Sequences of a Markov chain, exact masked model",
    )
