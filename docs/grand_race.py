"""The grand race of the optimizers: measured by `--measure`, shown on the front page and in the guide to optimizers.

python docs/grand_race.py --measure     # an hour on two cores; goes on where it was stopped
"""

from __future__ import annotations

import argparse
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.core import leaderboard, stats
from hasten.core.fingerprint import machine
from hasten.core.preset import get
from hasten.core.result import Result

DOCS = Path(__file__).resolve().parent
SUMMARY = DOCS / "races" / "optim-grand.json"
PICTURE = DOCS / "images" / "optim-grand.svg"
BASELINE = "optim.adamw"
COLOURS = ("#3f51b5", "#d84315", "#00838f", "#7b1fa2", "#558b2f", "#ad1457")
SHOWN = 5
"""Methods that are drawn in colour beside the baseline."""
FURTHEST = 8.0
"""Largest factor over the best method that the profile shows."""


def summarise(result: Result, by: str) -> dict[str, Any]:
    """What the pages show of a race: plain data."""
    problems = {}
    for name, facts in result.problems.items():
        rows = []
        for place, row in enumerate(leaderboard.rows(result, name, by), 1):
            cost, best = result.median(name, row.method, by), result.median(name, row.method, "best")
            rows.append(
                {
                    "method": row.method,
                    "place": place,
                    "reached": row.reached,
                    "cost": cost if math.isfinite(cost) else None,
                    "best": best if math.isfinite(best) else None,
                    "ratio": row.ratio,
                    "interval": row.interval,
                    "failures": list(row.failures),
                    "hyper": dict(result.hyper(name, row.method)),
                }
            )
        problems[name] = {"target": facts["target"], "measures": facts["measures"], "rows": rows}
    pairs, costs = _costs(result, by)
    tau, share = stats.performance_profile(costs)
    profile = {method: [float(x) for x in column] for method, column in zip(result.methods, zip(*share))}
    return {
        "preset": "optim-grand",
        "by": by,
        "seeds": result.settings["seeds"],
        "trials": result.settings["tuning trials"],
        "pairs": pairs,
        "problems": problems,
        "profile": {"tau": [float(x) for x in tau], "share": profile},
        "machine": machine(),
    }


def _costs(result: Result, by: str) -> tuple[int, list[list[float]]]:
    """Cost of every method in every pair of a problem and a seed."""
    cells = {(run.problem, run.method, run.seed): result.cost(run, by) for run in result.runs}
    pairs = sorted({(problem, seed) for problem, _, seed in cells})
    return len(pairs), [[cells.get((p, method, seed), math.inf) for method in result.methods] for p, seed in pairs]


def area(summary: Mapping[str, Any], method: str) -> float:
    """Mean height of a method's profile over log tau up to `FURTHEST`: what the table is ordered by."""
    tau, share = summary["profile"]["tau"], summary["profile"]["share"][method]
    edges = [*(math.log(min(t, FURTHEST)) for t in tau), math.log(FURTHEST)]
    return sum(s * (b - a) for s, a, b in zip(share, edges, edges[1:])) / math.log(FURTHEST)


def order(summary: Mapping[str, Any]) -> list[str]:
    """Methods, best profile first."""
    return sorted(summary["profile"]["share"], key=lambda method: (-area(summary, method), method))


def places(summary: Mapping[str, Any], method: str) -> dict[str, Mapping[str, Any]]:
    """The rows of a method, by problem."""
    problems = summary["problems"].items()
    return {name: row for name, facts in problems for row in facts["rows"] if row["method"] == method}


def ahead(summary: Mapping[str, Any], problem: str) -> tuple[list[str], list[str]]:
    """Methods that came in before the baseline on a problem, and those that came in after it."""
    rows = summary["problems"][problem]["rows"]
    place = next(row["place"] for row in rows if row["method"] == BASELINE)
    return (
        [row["method"] for row in rows if row["place"] < place],
        [row["method"] for row in rows if row["place"] > place],
    )


def short(method: str) -> str:
    """`optim.adopt` -> `adopt`."""
    return method.partition(".")[2]


def link(method: str) -> str:
    """A link to the page of a method."""
    return f"[{short(method)}](methods/optim/{short(method)}.md)"


def section(summary: Mapping[str, Any]) -> str:
    """The part of the front page."""
    problems = list(summary["problems"])
    ordered = order(summary)
    heads = [f"`{name}`" for name in problems]
    lines = [f"| | {' | '.join(['profile', *heads])} |", "| --- " * (len(heads) + 2) + "|"]
    for rank, method in enumerate(ordered, 1):
        rows = places(summary, method)
        name = f"**{link(method)}**" if method == BASELINE else link(method)
        cells = [_cell(rows.get(problem), summary["seeds"]) for problem in problems]
        lines.append(f"| {rank}. {name} | {area(summary, method):.2f} | {' | '.join(cells)} |")
    text = [
        f"All {len(ordered)} stand-alone optimizers of the library on four problems, each with {summary['trials']} "
        f"tuning trials and {summary['seeds']} seeds, ranked by evaluations to the target. *Profile* is "
        f"the mean share of the {summary['pairs']} runs that a method solved within a factor of 1 to {FURTHEST:g} of "
        "the best method there (on a log scale); the other columns are median evaluations to the target and the ratio "
        "to tuned AdamW.",
        f"![Performance profile of the grand race](images/{PICTURE.name})",
        verdict(summary),
        "\n".join(lines),
        f"Measured on {_machine(summary['machine'])}. `hasten race --preset optim-grand` runs it again; finished runs "
        "are kept, so that it can be stopped at any time. A few trials and four small problems say who is quick here, "
        "not who is best at scale.",
    ]
    return "\n\n".join(text)


def verdict(summary: Mapping[str, Any]) -> str:
    """Where AdamW wins, in words."""
    ordered = order(summary)
    place = ordered.index(BASELINE) + 1
    parts = [
        f"Tuned AdamW comes in as number {place} of {len(ordered)} by its profile."
        if place > 1
        else f"Tuned AdamW has the best profile of all {len(ordered)}."
    ]
    for problem in summary["problems"]:
        before, after = ahead(summary, problem)
        parts.append(f"On `{problem}` {len(before)} methods arrive before it and {len(after)} after it.")
    losers = [m for m in ordered if m != BASELINE and all(m in ahead(summary, p)[1] for p in summary["problems"])]
    if losers:
        parts.append(f"Behind it on all {len(summary['problems'])} problems: {', '.join(map(link, losers))}.")
    return " ".join(parts)


def _cell(row: Mapping[str, Any] | None, seeds: int) -> str:
    if row is None:
        return "does not fit"
    if row["cost"] is None:
        return f"{row['reached']} of {seeds} seeds" if row["reached"] else "not reached"
    ratio = f" ({row['ratio']})" if row["ratio"] != "baseline" else ""
    return f"{row['cost']:.0f}{ratio}"


def _machine(facts: Mapping[str, str]) -> str:
    return f"{facts.get('processor', '')}, {facts.get('cores', '?')} cores, torch {facts.get('torch', '?')}"


def picture(summary: Mapping[str, Any]) -> str:
    """The performance profile as SVG: the best methods and the baseline in colour, all others in grey."""
    width, height, left, bottom, top, right = 860, 420, 56, 48, 16, 170
    ordered = order(summary)
    bright = [method for method in ordered if method != BASELINE][:SHOWN]

    def x(tau: float) -> float:
        return left + (width - left - right) * math.log(min(tau, FURTHEST)) / math.log(FURTHEST)

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share)

    def path(method: str) -> str:
        points: list[tuple[float, float]] = []
        for tau, share in zip(summary["profile"]["tau"], summary["profile"]["share"][method]):
            if tau <= FURTHEST:
                points += [(x(tau), points[-1][1] if points else y(share)), (x(tau), y(share))]
        points.append((x(FURTHEST), points[-1][1]))
        return "M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in points)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13" role="img" aria-label="Share of runs solved within a factor of the best method">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#e0e0e0"/>'
        )
        parts.append(f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for tau in (1, 1.5, 2, 3, 4, 6, 8):
        parts.append(f'<text x="{x(tau):.1f}" y="{height - bottom + 20}" text-anchor="middle">{tau:g}x</text>')
    label = "evaluations, relative to the best method of the run"
    parts.append(f'<text x="{(left + width - right) / 2:.0f}" y="{height - 8}" text-anchor="middle">{label}</text>')
    for method in ordered:
        if method not in bright and method != BASELINE:
            parts.append(f'<path d="{path(method)}" fill="none" stroke="#bdbdbd" stroke-width="1"/>')
    for place, (method, colour) in enumerate(zip([BASELINE, *bright], COLOURS)):
        thick = 3.5 if method == BASELINE else 2.2
        parts.append(f'<path d="{path(method)}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
        line = top + 14 + 20 * place
        parts.append(
            f'<line x1="{width - right + 14}" x2="{width - right + 40}" y1="{line - 4}" y2="{line - 4}" '
            f'stroke="{colour}" stroke-width="{thick}"/>'
        )
        parts.append(f'<text x="{width - right + 46}" y="{line}">{html.escape(short(method))}</text>')
    grey = top + 14 + 20 * (len(bright) + 1)
    others = f"grey: the other {len(ordered) - 1 - len(bright)}"
    parts.append(f'<text x="{width - right + 14}" y="{grey}" fill="#757575">{others}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def load() -> dict[str, Any] | None:
    """The summary that was measured last; None before the first time."""
    return json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.is_file() else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run the race and write its summary")
    parser.add_argument("--store", default=".hasten/results.db", help="results file; what it holds is not run again")
    options = parser.parse_args()
    if options.measure:
        preset = get("optim-grand")
        summary = summarise(preset.race(store=options.store), preset.options["cost"])
        SUMMARY.parent.mkdir(exist_ok=True)
        SUMMARY.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        PICTURE.write_text(picture(summary), encoding="utf-8")
    shown = load()
    print(verdict(shown) if shown else "not measured yet")


if __name__ == "__main__":
    main()
