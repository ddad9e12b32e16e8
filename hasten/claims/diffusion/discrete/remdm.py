"""Claims of ReMDM."""

from __future__ import annotations

from typing import Any

import torch

from hasten.core.claim import claim
from hasten.diffusion.discrete.masked import unmask
from hasten.numerics.markov_chain import MarkovChainPosterior

CHAIN = MarkovChainPosterior.ring()
SCALE = "Markov chain on a ring of 8 states, 256 sequences of 32 tokens, exact posterior with 2% noise"
NOTE = (
    "The paper's own figures are MAUVE scores of texts (OpenWebText, 1024 tokens); here the network is exact, so that "
    "only the sampler's independent draws of neighbouring tokens err."
)


def impossible(seed: int, sampler: str, steps: int, **hyper: Any) -> float:
    """Fraction of neighbours that the chain forbids."""
    generator = torch.Generator().manual_seed(seed)
    tokens = unmask(CHAIN.denoiser(), (256, 32), sampler, steps, generator=generator, **hyper)
    return CHAIN.impossible(tokens)


@claim(
    method="diffusion.remdm-cap",
    baseline="diffusion.mdlm",
    statement=f"With 64 steps, remasking makes at most 0.7 times MDLM's impossible neighbours: {SCALE}.",
    quantity="fraction of impossible neighbours at 64 steps, eta=0.04, ratio to MDLM",
    threshold=0.7,
    paper_id=321,
    note=NOTE,
)
def mistakes_at_64_steps(seed: int) -> float:
    return impossible(seed, "remdm-cap", 64, eta=0.04) / impossible(seed, "mdlm", 64)


@claim(
    method="diffusion.remdm-cap",
    baseline="diffusion.mdlm",
    statement=f"With 256 steps, remasking makes at most 0.7 times MDLM's impossible neighbours: {SCALE}.",
    quantity="fraction of impossible neighbours at 256 steps, eta=0.04, ratio to MDLM",
    threshold=0.7,
    paper_id=321,
    note=NOTE,
)
def mistakes_at_256_steps(seed: int) -> float:
    return impossible(seed, "remdm-cap", 256, eta=0.04) / impossible(seed, "mdlm", 256)


@claim(
    method="diffusion.remdm-conf",
    baseline="diffusion.mdlm",
    statement=f"With 8 steps, remasking by confidence makes at most 0.85 times MDLM's impossible neighbours: {SCALE}.",
    quantity="fraction of impossible neighbours at 8 steps, ratio to MDLM",
    threshold=0.85,
    paper_id=321,
    note=NOTE,
)
def mistakes_at_8_steps(seed: int) -> float:
    return impossible(seed, "remdm-conf", 8) / impossible(seed, "mdlm", 8)


@claim(
    method="diffusion.remdm-conf",
    baseline="diffusion.mdlm",
    statement=f"With 16 steps, remasking by confidence makes at most 0.85 times MDLM's impossible neighbours: {SCALE}.",
    quantity="fraction of impossible neighbours at 16 steps, ratio to MDLM",
    threshold=0.85,
    paper_id=321,
    note=NOTE,
)
def mistakes_at_16_steps(seed: int) -> float:
    return impossible(seed, "remdm-conf", 16) / impossible(seed, "mdlm", 16)


@claim(
    method="diffusion.remdm-loop",
    baseline="diffusion.mdlm",
    statement=f"With 8 steps, a quick draft with corrections is worse than MDLM: {SCALE}.",
    quantity="fraction of impossible neighbours at 8 steps, ratio to MDLM",
    relation=">=",
    threshold=1.0,
    paper_id=321,
    note="A limit of the method: the draft takes its few steps away from the tokens. " + NOTE,
)
def a_loop_needs_steps(seed: int) -> float:
    return impossible(seed, "remdm-loop", 8) / impossible(seed, "mdlm", 8)
