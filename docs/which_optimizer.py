"""The guide "which optimizer when": situations chosen by hand, figures from the evidence and from the grand race."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grand_race

import hasten
from hasten.core.claim import Claim

PAGE = Path(__file__).resolve().parent / "optimizers.md"
INTRODUCTION = """# Which optimizer when

Start with `torch.optim.AdamW` and a tuned learning rate: nothing below beats it everywhere, and tuning the rate is
worth more than most changes of the rule. Then find your situation, enter the methods of its table in a race on your own
problem, and believe the race.

Each table is made from the library's evidence: the paper's main claim as it was measured here, at this library's small
scale, whether it held or not."""

SITUATIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Memory is what runs out",
        "Adam keeps 8 bytes per parameter beside weights and gradients. Storing its state in 8 bits keeps the rule as "
        "it is; factored and subspace rules change it.",
        ("quantized-state", "adafactor", "came", "lion", "online-subspace", "frugal", "snsm"),
    ),
    (
        "Gradients are noisy, or spike",
        "Small batches, reinforcement learning, low-precision training.",
        ("adopt", "ano", "adamomentum", "spam", "coordinate-clip", "discover"),
    ),
    (
        "Batches are large",
        "There are several micro-batches or devices to average over, or the batch may grow.",
        ("gsnr", "adagrad-norm", "conda", "one-cycle"),
    ),
    (
        "There is no time to tune",
        "These find their step size, or need the loss value instead of a learning rate.",
        ("dog", "ldog", "dadapt-adam", "dadapt-sgd", "alr-mag", "alr-hb", "smb", "oasis"),
    ),
    (
        "The number of steps is fixed",
        "A schedule that ends at zero is the cheapest gain there is; averages of the weights give much of it without "
        "knowing the end.",
        ("linear-decay", "uba", "one-cycle", "lawa", "aswa"),
    ),
    (
        "Long pre-training",
        "Rules whose gain grows with the length of the run, or with the size of the matrices.",
        ("ademamix", "conda", "adabelief", "amsgrad"),
    ),
    (
        "Fine-tuning",
        "Short runs from good weights, often with little memory.",
        ("dog", "grades", "mezo", "zo-adamu", "slow-start-fast-decay"),
    ),
    (
        "Weights are scale invariant",
        "Networks full of normalisation layers, where the norm of the weights grows and the effective step shrinks.",
        ("adamp", "sgdp", "radial-free"),
    ),
    (
        "Several losses of unlike scale: PINNs, multi-task",
        "Each loss is normalised by itself, or each band or task gets a weight.",
        ("multiadam", "band-balancer"),
    ),
    (
        "Games and GANs",
        "Adversarial training needs optimism or steady steps, not only speed.",
        ("optimistic-amsgrad", "adabelief", "converge-smooth"),
    ),
    (
        "Grokking",
        "Generalisation comes long after the training data are fitted.",
        ("grokfast", "orthograd"),
    ),
    (
        "Generalisation over speed",
        "More work per step for flatter minima or other domains.",
        ("sam", "udim", "adam-cm", "adabound"),
    ),
    (
        "Only function values are at hand",
        "No backward pass, or no memory for it.",
        ("deepzero", "mezo", "zo-adamu"),
    ),
)


def page(claims: Sequence[Claim], summary: Mapping[str, Any] | None) -> str:
    """The whole page."""
    blocks = [INTRODUCTION]
    if summary is not None:
        blocks += ["## Where AdamW wins", grand_race.verdict(summary), "[The whole table](index.md#the-grand-race)"]
    for title, text, names in SITUATIONS:
        blocks += [f"## {title}", text, _table(names, claims, summary)]
    return "\n\n".join(blocks) + "\n"


def _table(names: Sequence[str], claims: Sequence[Claim], summary: Mapping[str, Any] | None) -> str:
    ordered = grand_race.order(summary) if summary is not None else []
    lines = ["| method | when to prefer it | its claim, measured here | grand race |", "| --- | --- | --- | --- |"]
    for name in names:
        card = hasten.get(f"optim.{name}")
        own = [made for made in claims if made.method == card.id and made.measured is not None]
        main = min(own, key=lambda made: made.function.__code__.co_firstlineno, default=None)
        place = f"{ordered.index(card.id) + 1} of {len(ordered)}" if card.id in ordered else ""
        lines.append(f"| {grand_race.link(card.id)} | {_cell(card.when)} | {_found(main)} | {place} |")
    return "\n".join(lines)


def _found(made: Claim | None) -> str:
    if made is None:
        return "none yet"
    verdict = made.verdict if made.verdict == "reproduced" else f"**{made.verdict}**"
    return f"{_cell(made.statement)} Measured {made.measured:.3g}, expected {_cell(made.expectation)}: {verdict}."


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("*", "\\*").split())
