"""Claims of adapter guidance distillation."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hasten.claims.diffusion.guidance.digits import UNIFORM, images, model
from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.diffusion.guidance.cfg import CFG
from hasten.diffusion.guidance.distillation import AGD
from hasten.diffusion.guidance.teacher import States

STEPS, CHAINS, ITERATIONS = 20, 1500, 500
SCALE = "digits 8x8, flow transformer of 0.47 million parameters, w from 1 to 5"
NOTE = (
    "The paper's own figures are FIDs of DiT and Stable Diffusion on one GPU. The network predicts the velocity, so "
    f"that is what the error is of; the adapters are trained in {ITERATIONS} steps of 128 states of {CHAINS} chains, "
    "a minute on one core. With 384 chains they learn those by heart: 0.40 of the error is left, and 0.37 after twice "
    "the steps."
)


def _untrained(seed: int) -> AGD:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AGD(model(), hidden=38, w_range=(1.0, 5.0), classes=10)


@cache
def _chains(seed: int, count: int) -> States:
    """States along guided chains."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return _untrained(0).record(noise, labels, steps=STEPS, sampler=UNIFORM, generator=generator)


def _diffused(seed: int) -> States:
    """As many states and times as along the chains, but of training images with noise."""
    generator = torch.Generator().manual_seed(seed)
    along = _chains(seed, CHAINS)
    x0, labels, _, _ = images()
    rows = torch.randint(len(x0), (len(along),), generator=generator)
    t = along.t.view(-1, 1, 1, 1)
    x = (1.0 - t) * x0[rows] + t * torch.randn(x0[rows].shape, generator=generator)
    teacher = _untrained(0).teacher
    parts = zip(*(values.split(2048) for values in (x, along.t, labels[rows], along.w)))
    taught = [teacher.at(*part) for part in parts]
    return States(x, along.t, labels[rows], along.w, torch.cat([part.output for part in taught]))


@cache
def _trained(seed: int, diffused: bool = False) -> AGD:
    states = _diffused(seed) if diffused else _chains(seed, CHAINS)
    generator = torch.Generator().manual_seed(seed)
    return _untrained(seed).fit(states, ITERATIONS, 128, 1e-2, generator=generator)


@cache
def _held_out(seed: int) -> States:
    return _chains(1000 + seed, 64)


def _error(seed: int, agd: AGD) -> float:
    """Mean square error of the guided prediction along held-out chains."""
    states = _held_out(seed)
    with torch.no_grad():
        return float((agd.predict(states) - states.output).square().mean())


@claim(
    method="diffusion.agd",
    baseline="diffusion.ddim",
    statement=f"Adapters leave at most a quarter of the conditional model's error of the guided prediction: {SCALE}.",
    quantity="mean square error along held-out guided chains, ratio to the model without adapters",
    threshold=0.25,
    paper_id=437,
    seeds=(0,),
    note=NOTE,
)
def guided_prediction(seed: int) -> float:
    return _error(seed, _trained(seed)) / _error(seed, _untrained(seed))


@claim(
    method="diffusion.agd",
    baseline="diffusion.cfg",
    statement=f"Guided samples cost half of the evaluations of classifier-free guidance: {SCALE}, 20 steps.",
    quantity="evaluations per sample, ratio to CFG",
    threshold=0.5,
    paper_id=437,
    seeds=(0,),
    note=NOTE,
)
def evaluations(seed: int) -> float:
    labels, noise = torch.arange(8), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    spent: list[dict[str, int]] = [{}, {}]
    sample(_untrained(seed).denoiser(3.0).given(labels), noise=noise, sampler=UNIFORM, steps=STEPS, costs=spent[0])
    sample(model().given(labels), noise=noise, sampler=UNIFORM, steps=STEPS, guidance=CFG(3.0), costs=spent[1])
    return spent[0]["nfe"] / spent[1]["nfe"]


@claim(
    method="diffusion.agd",
    baseline="diffusion.cfg",
    statement=f"Samples end nearer to those of guidance than the conditional model's: {SCALE}, w=3, 20 steps.",
    quantity="mean square distance to the samples of CFG from the same noise, ratio to conditional samples",
    threshold=0.5,
    paper_id=437,
    seeds=(0,),
    note=NOTE + " The threshold was set before the samples were seen.",
)
def samples(seed: int) -> float:
    generator = torch.Generator().manual_seed(2000 + seed)
    labels = torch.arange(100) % 10
    noise = torch.randn(100, 1, 8, 8, generator=generator)
    conditional = model().given(labels)

    def drawn(denoiser: object, **options: object) -> Tensor:
        return sample(denoiser, noise=noise, sampler=UNIFORM, steps=STEPS, **options)  # type: ignore[arg-type]

    goal = drawn(conditional, guidance=CFG(3.0))
    near = drawn(_trained(seed).denoiser(3.0).given(labels))
    return float((near - goal).square().mean() / (drawn(conditional) - goal).square().mean())


@claim(
    method="diffusion.agd",
    baseline="diffusion.ddim",
    statement=f"The adapters hold at most 8 % of the parameters: {SCALE}.",
    quantity="parameters of the adapters, share of the network's",
    threshold=0.08,
    paper_id=437,
    seeds=(0,),
    note="The paper's own figure is about 2 %, of networks a thousand times as large.",
)
def parameters(seed: int) -> float:
    network: torch.nn.Module = model().fn  # type: ignore[assignment]
    return sum(p.numel() for p in _untrained(seed).parameters()) / sum(p.numel() for p in network.parameters())


@claim(
    method="diffusion.agd",
    baseline="diffusion.ddim",
    statement=f"Training leaves the weights of the network as they were, bit for bit: {SCALE}.",
    quantity="largest change of a weight",
    threshold=0.0,
    paper_id=437,
    seeds=(0,),
)
def unchanged_weights(seed: int) -> float:
    network: torch.nn.Module = model().fn  # type: ignore[assignment]
    before = [weight.clone() for weight in network.parameters()]
    _untrained(seed).fit(_chains(seed, 8), 5, 32)
    return max(float((now - old).abs().max()) for now, old in zip(network.parameters(), before))


@claim(
    method="diffusion.agd",
    baseline="diffusion.agd",
    statement=f"Training on noised data instead of guided chains makes at least 1.1 times the error: {SCALE}.",
    quantity="mean square error along held-out guided chains, training on noised data over training on chains",
    relation=">=",
    threshold=1.1,
    paper_id=437,
    seeds=(0,),
    note=NOTE,
)
def trained_on_noised_data(seed: int) -> float:
    return _error(seed, _trained(seed, diffused=True)) / _error(seed, _trained(seed))
