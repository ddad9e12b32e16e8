"""Error against network evaluations, for every sampler on three problems: measured by `--measure`, shown as evidence.

python docs/nfe_table.py --measure     # a few minutes; measures only what is new or has changed
"""

from __future__ import annotations

import argparse
import html
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hasten
from hasten.core import fingerprint, registry, tuning, wording
from hasten.core.card import Card
from hasten.core.engine import Reference
from hasten.core.problem import Instance, Problem
from hasten.core.run import run
from hasten.diffusion import sample
from hasten.numerics.metrics import sliced_w2

DOCS = Path(__file__).resolve().parent
SUMMARY = DOCS / "races" / "sampler-nfe.json"
PICTURE = DOCS / "images" / "sampler-nfe.svg"
BASELINE = "diffusion.ddim"
PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "five Gaussians in the plane, VP, exact score": ("gaussian-mixture-score", {}),
    "five Gaussians in 16 dimensions, flow, exact score": ("gaussian-mixture-score", {"dim": 16, "schedule": "flow"}),
    "8x8 digits by class, flow, trained transformer": ("digits-diffusion", {"batch": 16}),
}
NFES = (5, 10, 20, 40)
SEEDS = (0, 1, 2)
TRIALS = 8
TUNED_AT = 10
NEEDS = {"few steps", "metric of laws"}
"""What a sampler may ask of a problem and still belong in the table; `metric of laws` marks those that add noise."""
COLOURS = ("#3f51b5", "#d84315", "#00838f", "#7b1fa2", "#558b2f", "#ad1457")
GREY = "#bdbdbd"
SHOWN = 5
"""Samplers that are drawn in colour beside the baseline."""
WORST = 10.0
"""Errors beyond this many times the median one with the fewest evaluations are drawn at the upper edge."""


def contenders() -> list[Card]:
    """Every sampler that draws from an unconditional model, or from one under its condition, without further help."""
    return [card for card in hasten.methods("diffusion") if "sample" in card.kinds and set(card.needs) <= NEEDS]


def measure(known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The table as plain data; rows of `known` whose code is the same are taken over."""
    problems = {}
    for title, (name, parameters) in PROBLEMS.items():
        problem = hasten.problem(name, **parameters)
        before = known["problems"].get(title, {}).get("rows", {}) if known else {}
        rows = {}
        for card in contenders():
            key = _key(problem, name, card)
            same = before.get(card.id, {}).get("key") == key
            rows[card.id] = before[card.id] if same else {**_row(problem, card), "key": key}
            print(f"{title}: {card.name} {rows[card.id]['errors']}", flush=True)
        references = [_reference(problem, seed) for seed in SEEDS]
        floor = statistics.median(sliced_w2(a, b) for a, b in pairwise(references))
        problems[title] = {"problem": problem.name, "floor": floor, "rows": rows}
    facts = {"nfe": list(NFES), "seeds": len(SEEDS), "trials": TRIALS, "tuned_at": TUNED_AT}
    return {**facts, "problems": problems, "machine": fingerprint.machine()}


def _key(problem: Problem, name: str, card: Card) -> str:
    """Changes with the code of the sampler and of the problem, and with what is measured."""
    code = fingerprint.sources(*registry.modules(card.id))
    return fingerprint.digest(Reference.to(name).key(problem), code, NFES, SEEDS, TRIALS, TUNED_AT)


def _row(problem: Problem, card: Card) -> dict[str, Any]:
    """A sampler's median error for each number of evaluations, None where it has none."""
    hypers = tuning.candidates(card, TRIALS, {}, 0)
    tried = [_error(problem, card, hyper, TUNED_AT, tuning.SEED_OFFSET) for hyper in hypers]
    hyper = hypers[min(range(len(hypers)), key=lambda place: (tried[place], place))]
    errors = [statistics.median(_error(problem, card, hyper, nfe, seed) for seed in SEEDS) for nfe in NFES]
    shown = [error if math.isfinite(error) else None for error in errors]
    return {"errors": shown, "hyper": hyper, "random": is_random(card)}


def _error(problem: Problem, card: Card, hyper: Mapping[str, Any], nfe: int, seed: int) -> float:
    """Error of one chain that may spend `nfe` evaluations; inf where it fails or has no such chain."""

    def build(seed: int) -> Instance:
        instance = problem.build(seed)
        instance.rungs, instance.offers = (nfe,), lambda: frozenset(NEEDS)
        return instance

    trace = run(card.make(**hyper), replace(problem, build=build), seed, budget=f"{nfe}calls", target=-math.inf)
    if trace.status in ("diverged", "error"):
        return math.inf
    return sliced_w2(trace.answer, _reference(problem, seed)) if is_random(card) else trace.final


@cache
def _references() -> dict[tuple[str, int], Tensor]:
    return {}


def _reference(problem: Problem, seed: int) -> Tensor:
    """Samples by a hundred evaluations of the third-order solver: the law that samplers with noise are compared to."""
    key = (f"{problem.name} {dict(problem.params)}", seed)
    if key not in _references():
        instance: Any = problem.build(seed)
        _references()[key] = sample(instance.denoiser, noise=instance.noise, sampler="dpm-solver-3", nfe=99).double()
    return _references()[key]


def is_random(card: Card) -> bool:
    """Whether a sampler adds noise on the way, so that its samples have no exact partners."""
    return "metric of laws" in card.needs


def order(summary: Mapping[str, Any], title: str) -> list[str]:
    """Samplers on a problem, least error at `TUNED_AT` evaluations first; those that add noise last."""
    rows, place = summary["problems"][title]["rows"], summary["nfe"].index(summary["tuned_at"])

    def key(method: str) -> tuple[bool, float, str]:
        error = rows[method]["errors"][place]
        return rows[method]["random"], math.inf if error is None else error, method

    return sorted(rows, key=key)


def section(summary: Mapping[str, Any]) -> str:
    """The part of the evidence page."""
    text = [
        "## Error against evaluations",
        f"Every sampler that needs nothing but the network, with {summary['nfe'][0]} to {summary['nfe'][-1]} network "
        "evaluations per sample: root mean square Euclidean distance to the exact solution of the probability-flow "
        f"ODE from the same noise, median over {summary['seeds']} seeds. Its own parameters (time grid, order) are the "
        f"best of {summary['trials']} at {summary['tuned_at']} evaluations on another seed, its defaults among them. "
        "Samplers that add noise on the way (in italics) have no exact partner; for them it is the sliced "
        "2-Wasserstein distance to exact samples, which is not comparable with the other rows. A dash: diverged, or "
        "not possible with so few evaluations.",
        f"![Error against network evaluations](images/{PICTURE.name})",
    ]
    for title, facts in summary["problems"].items():
        text += [f"### {title[:1].upper()}{title[1:]}", f"`{facts['problem']}`", _table(summary, title)]
        if any(row["random"] for row in facts["rows"].values()):
            text.append(f"*Two batches of exact samples are {wording.number(facts['floor'])} apart.*")
    facts = summary["machine"]
    text.append(
        f"Measured with torch {facts.get('torch', '?')} on {facts.get('processor', '?')} by "
        "`python docs/nfe_table.py --measure`."
    )
    return "\n\n".join(text)


def _table(summary: Mapping[str, Any], title: str) -> str:
    rows = summary["problems"][title]["rows"]
    heads = ["sampler", *(f"{nfe} evaluations" for nfe in summary["nfe"]), "parameters"]
    lines = [f"| {' | '.join(heads)} |", "| --- " + "| ---: " * len(summary["nfe"]) + "| --- |"]
    fixed = [row["errors"] for row in rows.values() if not row["random"]]
    best = [min((errors[i] for errors in fixed if errors[i] is not None), default=None) for i in range(len(heads) - 2)]
    for method in order(summary, title):
        row = rows[method]
        mark = "*" if row["random"] else ""
        cells = [_cell(error, least, row["random"]) for error, least in zip(row["errors"], best)]
        hyper = ", ".join(f"{key}={value}" for key, value in row["hyper"].items()) or "defaults"
        name = f"{mark}[{short(method)}](methods/diffusion/{short(method)}.md){mark}"
        lines.append(f"| {name} | {' | '.join(cells)} | {hyper} |")
    return "\n".join(lines)


def _cell(error: float | None, least: float | None, random: bool) -> str:
    if error is None:
        return "–"
    text = wording.number(error)
    return f"**{text}**" if error == least and not random else text


def short(method: str) -> str:
    """`diffusion.ddim` -> `ddim`."""
    return method.partition(".")[2]


def picture(summary: Mapping[str, Any]) -> str:
    """The error against evaluations as SVG, a panel per problem: the best and the baseline in colour, others grey."""
    width, height, gap, left, top, bottom = 400, 330, 24, 52, 34, 46
    titles = list(summary["problems"])
    whole, legend = len(titles) * (width + gap), height + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {legend + 14}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="Error against network evaluations">',
        f'<rect width="{whole}" height="{legend + 14}" fill="white"/>',
    ]
    bright = _bright(summary)
    colours = dict(zip([BASELINE, *bright], COLOURS))
    for place, title in enumerate(titles):
        parts.append(f'<g transform="translate({place * (width + gap)} 0)">')
        parts += _panel(summary, title, colours, (width, height, left, top, bottom))
        parts.append("</g>")
    for place, (name, colour) in enumerate([*((short(m), c) for m, c in colours.items()), ("all others", GREY)]):
        at = left + place * 150
        line = (
            f'<line x1="{at}" x2="{at + 20}" y1="{legend - 4}" y2="{legend - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        parts += [line, f'<text x="{at + 26}" y="{legend}">{html.escape(name)}</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bright(summary: Mapping[str, Any]) -> list[str]:
    """The samplers with the least mean rank over the problems."""
    orders = [order(summary, title) for title in summary["problems"]]
    random = {m for facts in summary["problems"].values() for m, row in facts["rows"].items() if row["random"]}
    every = [m for m in orders[0] if m != BASELINE and m not in random and all(m in one for one in orders)]
    return sorted(every, key=lambda method: (sum(one.index(method) for one in orders), method))[:SHOWN]


def _panel(summary: Mapping[str, Any], title: str, colours: Mapping[str, str], size: Sequence[int]) -> list[str]:
    width, height, left, top, bottom = size
    rows = {m: row["errors"] for m, row in summary["problems"][title]["rows"].items() if not row["random"]}
    nfes = summary["nfe"]
    found = [error for errors in rows.values() for error in errors if error is not None and error > 0]
    low = min(found)
    first = [errors[0] for errors in rows.values() if errors[0] is not None]
    high = min(max(found), WORST * statistics.median(first) if first else max(found))

    def x(nfe: float) -> float:
        return left + (width - left - 10) * math.log(nfe / nfes[0]) / math.log(nfes[-1] / nfes[0])

    def y(error: float) -> float:
        share = math.log(min(max(error, low), high) / low) / math.log(high / low)
        return height - bottom - (height - top - bottom) * share

    parts = [f'<text x="{left}" y="18" font-weight="bold">{html.escape(title)}</text>']
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for nfe in nfes:
        parts.append(f'<text x="{x(nfe):.1f}" y="{height - bottom + 18}" text-anchor="middle">{nfe}</text>')
    middle = (left + width - 10) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 10}" text-anchor="middle">network evaluations per sample</text>')
    for method in [*(m for m in rows if m not in colours), *(m for m in reversed(colours) if m in rows)]:
        points = [(x(nfe), y(error)) for nfe, error in zip(nfes, rows[method]) if error is not None]
        if not points:
            continue
        colour = colours.get(method, GREY)
        thick = 3 if method == BASELINE else 2 if method in colours else 1
        path = "M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
    return parts


def load() -> dict[str, Any] | None:
    """The summary that was measured last; None before the first time."""
    return json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.is_file() else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure, and write the summary and the picture")
    if parser.parse_args().measure:
        torch.set_num_threads(1)
        summary = measure(load())
        SUMMARY.parent.mkdir(exist_ok=True)
        SUMMARY.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        PICTURE.write_text(picture(summary), encoding="utf-8")
    shown = load()
    print(section(shown) if shown else "not measured yet")


if __name__ == "__main__":
    main()
