"""Claims of BEAT (Li et al. 2025): linear heads on the frequency bands of a sum of sines."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from hasten.core.claim import claim
from hasten.optim.recipes.band_balance import BandBalancer, FrequencyBandModel

NOTE = (
    "The thresholds and the formula of the factors are this library's: the paper's own are not public. Its claim is "
    "about forecasts of seven data sets over long horizons."
)
LENGTH, HORIZON, BATCH, WINDOWS, LR = 128, 32, 128, 1024, 0.1
PERIODS, AMPLITUDES, SCALES = (8, 32, 128), (1.0, 0.5, 1.0), (1.0, 0.3, 0.1)
BANDS = (0.035, 0.15, 1.0)
"""Upper ends, as shares of the Nyquist frequency, that part the three sines."""

Bands = list[tuple[Tensor, Tensor]]


def windows(count: int, generator: torch.Generator, noise: float = 0.3) -> Bands:
    """Input and target of each band, shortest period first, for windows of the series at random phases."""
    time, total, targets = torch.arange(LENGTH + HORIZON), torch.zeros(count, LENGTH), []
    for period, amplitude in zip(PERIODS, AMPLITUDES):
        phase = torch.rand(count, 1, generator=generator)
        sine = amplitude * torch.sin(2 * math.pi * (time / period + phase))
        sine = sine + noise * torch.randn(sine.shape, generator=generator)
        total, targets = total + sine[:, :LENGTH], [*targets, sine[:, LENGTH:]]
    parts = FrequencyBandModel(nn.Identity, BANDS).split(total)[::-1]
    return [(scale * part, target) for scale, part, target in zip(SCALES, parts, targets)]


def error(head: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return (head(data[0]) - data[1]).square().mean()


def optimum(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
    """Least validation error of a ridge regression, over nine strengths."""
    (x, y), found = train, []
    for power in range(-6, 3):
        ridge = 10.0**power * torch.eye(LENGTH)
        weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
        found.append(float((val[0] @ weight - val[1]).square().mean()))
    return min(found)


def losses(heads: nn.ModuleList, *parts: Bands) -> list[list[float]]:
    """The error of every band on each of these parts."""
    with torch.no_grad():
        return [[float(error(head, data)) for head, data in zip(heads, part)] for part in parts]


def epochs_to_optimum(seed: int, balanced: bool, most: int = 600) -> float:
    """Epochs of SGD until the validation error of every band is within 5 % of its optimum."""
    generator = torch.Generator().manual_seed(seed)
    train, val = windows(WINDOWS, generator), windows(WINDOWS, generator)
    targets = [1.05 * optimum(*pair) for pair in zip(train, val)]
    heads = nn.ModuleList(nn.Linear(LENGTH, HORIZON, bias=False) for _ in BANDS)
    for weight in heads.parameters():
        nn.init.zeros_(weight)
    optimizer = torch.optim.SGD(heads.parameters(), lr=LR)
    balancer = BandBalancer(optimizer, [list(head.parameters()) for head in heads]) if balanced else None
    for epoch in range(most):
        errors = losses(heads, train, val)
        if all(found <= target for found, target in zip(errors[1], targets)):
            return epoch
        if balancer is not None:
            balancer.end_epoch(*errors)
        for batch in torch.randperm(WINDOWS, generator=generator).split(BATCH):
            optimizer.zero_grad()
            sum(error(head, (x[batch], y[batch])) for head, (x, y) in zip(heads, train)).backward()  # type: ignore[union-attr]
            optimizer.step()
    return math.inf


@claim(
    method="optim.band-balancer",
    paper_id=262,
    baseline="SGD with the same factor for every band",
    statement="All bands are within 5 % of their optimum in at most 0.6 times the epochs.",
    quantity="epochs until every band is within 5 % of its optimum, ratio to uniform factors",
    threshold=0.6,
    note=NOTE,
)
def epochs(seed: int) -> float:
    """Sines of periods 8, 32, 128 at input scales 1, 0.3, 0.1, linear heads, 1024 windows."""
    ours, theirs = epochs_to_optimum(seed, True), epochs_to_optimum(seed, False)
    return ours / theirs if math.isfinite(ours) else math.inf


@cache
def overfitted(seed: int, balanced: bool, epochs: int = 300) -> float:
    """Validation error of a band with 24 windows and a wide head, beside two bands with 512 windows."""
    generator = torch.Generator().manual_seed(seed)
    train, val = windows(512, generator, 0.5), windows(512, generator, 0.5)
    train[0] = (train[0][0][:24], train[0][1][:24])
    torch.manual_seed(seed)
    wide = nn.Sequential(nn.Linear(LENGTH, 256), nn.Tanh(), nn.Linear(256, HORIZON))
    heads = nn.ModuleList([wide, *(nn.Linear(LENGTH, HORIZON) for _ in BANDS[1:])])
    optimizer = torch.optim.SGD(heads.parameters(), lr=LR)
    balancer = BandBalancer(optimizer, [list(head.parameters()) for head in heads]) if balanced else None
    for _ in range(epochs):
        if balancer is not None:
            balancer.end_epoch(*losses(heads, train, val))
        for batch in torch.randperm(512, generator=generator).split(BATCH):
            optimizer.zero_grad()
            parts = [(x[batch % len(x)], y[batch % len(y)]) for x, y in train]
            sum(error(head, part) for head, part in zip(heads, parts)).backward()  # type: ignore[union-attr]
            optimizer.step()
    return float(error(wide, val[0]).detach())


@claim(
    method="optim.band-balancer",
    paper_id=262,
    baseline="SGD with the same factor for every band",
    statement="A band that overfits ends with at most 0.9 times the validation error.",
    quantity="validation error of the band that overfits, ratio to uniform factors",
    threshold=0.9,
    note=NOTE,
)
def overfitting_band(seed: int) -> float:
    """24 windows and a head of width 256 for period 8, noise 0.5, 300 epochs."""
    return overfitted(seed, True) / overfitted(seed, False)
