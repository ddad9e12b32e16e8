"""The figures of a result: metric against cost, and performance profiles. Names are text, never markup."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core import stats, wording
from hasten.core.stats import Floats

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hasten.core.result import Result, Scored

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8B8B2B")
"""Okabe and Ito's palette, without the colours that vanish on white or on black, and two more."""
NEUTRAL = "#808691"
_DASHES = ("solid", "dash", "dot", "dashdot")
_POINTS = 160
_SHOWN = 12
_LOG_SPAN = 20.0
LADDERS = ("sample", "invert")
"""Kinds whose runs try one number of evaluations after the other."""
AXES = {"steps": "steps", "seconds": "seconds in the method", "calls": "oracle calls", "bytes": "bytes sent"}


def looks(result: Result) -> dict[str, tuple[str, str]]:
    """Full name -> (colour, dash), the same wherever the method is shown; a baseline of every problem is grey."""
    common = set(result.baselines.values())
    grey = common.pop() if len(common) == 1 else None
    others = [method for method in result.methods if method != grey]
    found = {m: (COLOURS[i % len(COLOURS)], _DASHES[i // len(COLOURS) % len(_DASHES)]) for i, m in enumerate(others)}
    return {method: found.get(method, (NEUTRAL, "dash")) for method in result.methods}


def curves(result: Result, problem: str, by: str) -> Figure:
    """Metric against a cost: per method the median over its seeds and a band from the lowest to the highest.

    The band leaves out the outer tenths where there are ten seeds or more. A run keeps its last value after it has
    ended, and counts as inf after it has failed; a curve ends where half of its runs have ended, so a median that
    arrives ends on the target.
    """
    from plotly.graph_objects import Figure, Scatter

    style, figure, drawn = looks(result), Figure(), []
    target = result.problems[problem].get("target")
    for place, method in enumerate(result.ranking(problem, by)):
        x, middle, low, high = _spread(result.cell(problem, method), by)
        finite = np.isfinite(middle)
        if not finite.any():
            continue
        drawn.append(middle[finite])
        colour, dash = style[method]
        name = html.escape(result.labels[method], quote=False)
        shared: dict[str, Any] = {"legendgroup": method, "visible": True if place < _SHOWN else "legendonly"}
        banded = finite & np.isfinite(low) & np.isfinite(high)
        if banded.sum() > 1 and (high[banded] > low[banded]).any():
            around = [*_short(x[banded]), *_short(x[banded])[::-1]]
            edge = [*_short(high[banded]), *_short(low[banded])[::-1]]
            band = {"fill": "toself", "fillcolor": _faint(colour), "line": {"width": 0}, "hoverinfo": "skip"}
            figure.add_trace(Scatter(x=around, y=edge, mode="lines", showlegend=False, **band, **shared))
        line = {"color": colour, "width": 2.4, "dash": dash}
        mode = "lines+markers" if result.problems[problem].get("kind") in LADDERS else "lines"
        tip = f"{name}<br>%{{x:,.4~g}} {AXES[by]}<br>%{{y:.4~g}}<extra></extra>"
        values = [value if math.isfinite(value) else None for value in _short(middle)]
        figure.add_trace(Scatter(x=_short(x), y=values, name=name, mode=mode, line=line, hovertemplate=tip, **shared))
        end = {"color": colour, "size": 9, "symbol": "circle" if _arrived(result, problem, method) else "x"}
        if end["symbol"] == "circle" or not finite[-1]:
            last = int(np.flatnonzero(finite)[-1])
            mark = {"mode": "markers", "marker": end, "showlegend": False, "hoverinfo": "skip"}
            figure.add_trace(Scatter(x=_short(x[last : last + 1]), y=_short(middle[last : last + 1]), **mark, **shared))
    _layout(figure, result.problems[problem], drawn, target)
    title = AXES[by] + (" (NFE)" if by == "calls" and result.problems[problem].get("kind") in LADDERS else "")
    figure.update_xaxes(title_text=title, rangemode="tozero")
    if by == "bytes":
        figure.update_xaxes(tickformat="~s", ticksuffix="B")
    return figure


def profile(result: Result, by: str) -> Figure:
    """Dolan-More profile: share of (problem, seed) pairs solved within a factor of the best."""
    from plotly.graph_objects import Figure, Scatter

    style, figure, table = looks(result), Figure(), result.performance_profile(by)
    edge = max(2.0, *(1.3 * float(tau) for tau in table.index))
    for method in result.methods:
        colour, dash = style[method]
        name = html.escape(result.labels[method], quote=False)
        share = [*table[method], table[method].iloc[-1]]
        line = {"color": colour, "width": 2.4, "dash": dash, "shape": "hv"}
        tip = f"{name}<br>%{{y:.0%}} within %{{x:.2f}}×<extra></extra>"
        figure.add_trace(
            Scatter(
                x=_short([*table.index, edge]), y=_short(share), name=name, mode="lines", line=line, hovertemplate=tip
            )
        )
    figure.update_layout(template="none", legend={"tracegroupgap": 0})
    fine = (1, 1.25, 1.5, 2, 2.5, 3, 4)
    ticks = [value for value in (fine if edge <= 5 else _ticks(0.0, math.log10(edge))) if value <= edge]
    text = [f"{value:g}×" for value in ticks]
    title = f"{wording.UNITS[by]}, relative to the best method"
    figure.update_xaxes(title_text=title, type="log", tickvals=ticks, ticktext=text)
    figure.update_yaxes(title_text="share solved", range=[-0.02, 1.03], tickformat=".0%")
    return figure


def _arrived(result: Result, problem: str, method: str) -> bool:
    return math.isfinite(result.median(problem, method, "steps"))


def _spread(runs: Sequence[Scored], by: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Common costs of some runs, and the median, lowest and highest metric there."""
    from hasten.core.result import FAILURES

    runs = [run for run in runs if run.trace.metric]
    none = np.array([])
    if not runs:
        return none, none, none, none
    columns = [np.asarray(run.trace.column(by), dtype=float) for run in runs]
    grid = np.unique(np.concatenate(columns))
    end = sorted(column[-1] for column in columns)[len(columns) // 2]
    grid = grid[grid <= end]
    if len(grid) > _POINTS:
        grid = np.unique(grid[np.linspace(0, len(grid) - 1, _POINTS).round().astype(int)])
    rows = []
    for run, column in zip(runs, columns):
        values = np.asarray(run.trace.metric, dtype=float)
        values[~np.isfinite(values)] = np.inf
        with np.errstate(invalid="ignore"):
            row = np.interp(grid, column, values)
        row[np.isnan(row)] = np.inf
        if run.trace.status in FAILURES:
            row[grid > column[-1]] = np.inf
        row[grid < column[0]] = np.inf
        rows.append(row)
    ordered = np.sort(rows, axis=0)
    outer = len(rows) // 10
    return grid, stats.median(ordered.T), ordered[outer], ordered[len(rows) - 1 - outer]


def _layout(figure: Figure, description: dict[str, Any], drawn: list[Floats], target: float | None) -> None:
    figure.update_layout(template="none", hovermode="closest", legend={"tracegroupgap": 0})
    figure.update_yaxes(title_text=html.escape(description.get("measures") or "metric", quote=False))
    starts = [values[0] for values in drawn]
    lowest = [values.min() for values in drawn] + ([] if target is None else [target])
    if drawn:
        top, bottom = max(starts), min(lowest)
        if bottom > 0 and top > _LOG_SPAN * bottom:
            span = [math.log10(bottom) - 0.15, math.log10(top) + 0.15]
            figure.update_yaxes(
                type="log", range=span, tickvals=(ticks := _ticks(*span)), ticktext=[wording.number(v) for v in ticks]
            )
        else:
            pad = 0.06 * ((top - bottom) or abs(top) or 1.0)
            figure.update_yaxes(range=[bottom - pad, top + pad])
    if target is not None:
        label = {"text": f"target {wording.number(target)}", "textposition": "start", "font": {"size": 12}}
        line = {"color": NEUTRAL, "width": 1.2, "dash": "dot"}
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=target, y1=target, line=line, label=label)


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two powers of ten: 1, 2, 5, or the powers alone where there are many."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    every = 1 + len(decades) // 9
    values = [step * 10.0**decade for decade in decades if decade % every == 0 for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def _short(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.14)"
