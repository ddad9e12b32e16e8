"""Ready problem: writing Python source with a small trained masked diffusion model."""

from __future__ import annotations

from functools import cache

import torch

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.unmask import Unmasking
from hasten.core.problem import Problem
from hasten.numerics.masked_denoiser import MaskedDenoiser
from hasten.numerics.ngrams import NGrams
from hasten.problems.networks import network
from hasten.problems.networks.masked_lm import CONTEXT, MASK, halves

RUNGS = (8, 16, 32, 64, 128)


def masked_denoiser() -> MaskedDenoiser:
    """Masked diffusion over the source text of the Python standard library, windows of up to 64 bytes; 256 is the mask.

    The network is trained at the first call on a machine, in a few minutes.
    """
    return MaskedDenoiser(network("stdlib-masked"), mask=MASK)


@cache
def held_out() -> NGrams:
    """Law of the three-byte runs in the last tenth of the text, on which the network was not trained."""
    return NGrams(halves()[1])


@ready("stdlib-masked", "unmask")
def stdlib_masked(batch: int = 64, length: int = CONTEXT, target: float = 0.38) -> Problem:
    """Write windows of Python source from masks: divergence of their three-byte runs from held-out text.

    The measure needs no second network, and neither typing errors nor monotony lower it. Windows of the held-out text
    itself have 0.26 at the default batch and length.

    Args:
        batch: windows per run.
        length: bytes per window, at most 64.
        target: divergence in bits that counts as arrived.
    """
    check.integer("batch", batch, 1)
    check.integer("length", length, 3, CONTEXT)

    def build(seed: int) -> Unmasking:
        start = torch.full((batch, length), MASK)
        return Unmasking(masked_denoiser(), start, held_out().divergence, RUNGS)

    return Problem(
        name="stdlib-masked",
        kind=Unmasking.kind,
        build=build,
        measures="divergence of 3-grams from held-out text, bits",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.mdlm",
        summary="Python source byte by byte, masked transformer of 3 blocks",
    )
