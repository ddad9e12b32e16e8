"""Claims of ReMDM."""

from __future__ import annotations

from typing import Any

import torch

from hasten.core.claim import claim
from hasten.diffusion.discrete.masked import unmask
from hasten.numerics.markov_chain import MarkovChainPosterior
from hasten.problems.networks.masked_lm import CONTEXT, draw, halves
from hasten.problems.stdlib_masked import held_out, masked_denoiser

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


def excess(seed: int, sampler: str, steps: int, **hyper: Any) -> float:
    """Divergence of 64 generated windows from held-out text, beyond that of 64 windows of the text itself."""
    generator = torch.Generator().manual_seed(seed)
    tokens = unmask(masked_denoiser(), (64, CONTEXT), sampler, steps, generator=generator, **hyper)
    real = draw(halves()[1], 64, torch.Generator().manual_seed(seed))
    return held_out().divergence(tokens) - held_out().divergence(real)


@claim(
    method="diffusion.remdm-cap",
    baseline="diffusion.mdlm",
    statement="With half as many steps as bytes, remasking leaves at most 0.9 times the excess of MDLM's divergence "
    "from real text: Python source byte by byte, windows of 64, trained transformer of 3 blocks.",
    quantity="Jensen-Shannon divergence of 3-grams from held-out text beyond that of real windows, 32 steps, eta=0.04, "
    "nucleus 0.9, ratio to MDLM",
    threshold=0.9,
    paper_id=321,
    note="The paper measures MAUVE on OpenWebText (1024 tokens). Statement, threshold, strength and nucleus were fixed "
    "before the claim was first run. This network, trained for three minutes, errs more by itself than its independent "
    "draws do: MDLM without nucleus has 0.48 bits with 8 steps, 0.45 with 64, and real windows have 0.26.",
)
def real_text_at_32_steps(seed: int) -> float:
    ours, theirs = (excess(seed, name, 32, nucleus_p=0.9, **hyper) for name, hyper in PAIR)
    return ours / theirs


PAIR = (("remdm-cap", {"eta": 0.04}), ("mdlm", {}))
