"""The report of a race: one self-contained HTML file that works offline and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core import figures, leaderboard, wording
from hasten.core.errors import InputError, StoreError
from hasten.core.result import card
from hasten.core.stats import Comparison

if TYPE_CHECKING:
    from hasten.core.result import Result

_TICKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0, 16.0)
_STROKES = {"solid": "", "dash": "6 5", "dot": "0.5 5", "dashdot": "7 4 0.5 4"}


def write(result: Result, path: str | Path) -> Path:
    """Write the report; an existing file is replaced only when the new one is whole and on disk.

    Raises:
        InputError: the path is a folder.
        StoreError: the file cannot be written; what was there is untouched.
    """
    path = check_destination(path)
    text = render(result)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    finally:
        try:
            partial.unlink(missing_ok=True)
        except OSError:
            pass
    return path


def check_destination(path: str | Path) -> Path:
    """Refuse, before anything runs, a path at which no report could be written."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"report: {path} is a folder; name a file in it, e.g. {path / 'race.html'}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"report: {above} is a file, so {path} cannot be made inside it")
    if not os.access(path if path.exists() else above, os.W_OK):
        raise StoreError(f"the report cannot be written to {path}: no permission to write there")
    return path


def render(result: Result) -> str:
    """The report as HTML text."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = resources.files("hasten.core") / "templates"
    parts = {name: (templates / name).read_text(encoding="utf-8") for name in ("report.html.j2", "report.css", "report.js")}
    plotly, script = get_plotlyjs(), parts["report.js"]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_function"] = _dumps
    sections = [_section(result, name, number) for number, name in enumerate(result.problems)]
    overview = _overview(result) if len(result.problems) > 1 else None
    return environment.from_string(parts["report.html.j2"]).render(
        title=f"{', '.join(result.problems)} · hasten race",
        policy=_policy(plotly, script),
        style=Markup(parts["report.css"]),
        script=Markup(script),
        plotly=Markup(plotly),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        looks={m: {"colour": colour, "dashes": _STROKES[dash]} for m, (colour, dash) in figures.looks(result).items()},
        overview=overview,
        sections=sections,
        code=_code(result),
        tuned=_tuned(result),
        run_columns=("problem", "method", "seed", "status", "steps", "seconds", "calls", "bytes", "best", "memory", ""),
        runs=_runs(result),
        facts=_facts(result),
        charts=_charts(result, overview["measures"] if overview else ()),
    )


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, **options)


def _policy(*scripts: str) -> str:
    """Nothing may be loaded, and no script may run but these."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _charts(result: Result, profiled: tuple[str, ...]) -> dict[str, Any]:
    charts: dict[str, Any] = {}
    for number, problem in enumerate(result.problems):
        charts[str(number)] = {by: _plain(figures.curves(result, problem, by)) for by in result.measures(problem)}
    if profiled:
        charts["overview"] = {by: _plain(figures.profile(result, by)) for by in profiled}
    return charts


def _plain(figure: Any) -> dict[str, Any]:
    made = figure.to_plotly_json()
    layout = {key: value for key, value in made["layout"].items() if key != "template"}
    return json.loads(json.dumps({"data": made["data"], "layout": layout}))


def _section(result: Result, problem: str, number: int) -> dict[str, Any]:
    description = result.problems[problem]
    arrived, target = result.arrived(problem), description.get("target")
    metric = description.get("measures") or "metric"
    head, rest = _split(result.sentence(problem))
    facts = [f"{description['kind']} problem"] if description.get("kind") else []
    facts += [f"target {metric} {wording.number(target)}" if target is not None else f"lowest {metric} within the budget"]
    facts += [f"at most {description['budget']}"] if description.get("budget") else []
    baseline = result.labels.get(result.baselines.get(problem, ""), "")
    compared = f"Ratio to {baseline}" if baseline else "No baseline"
    of = "median cost to the target" if arrived else f"median best {metric} within the budget"
    return {
        "name": problem,
        "anchor": f"problem-{number}",
        "headline": head,
        "rest": rest,
        "facts": facts,
        "summary": description.get("summary", ""),
        "metric": metric,
        "target": target is not None,
        "won": result.winner(problem) is not None,
        "tiles": _tiles(result, problem),
        "measures": result.measures(problem),
        "chosen": result.measure(problem),
        "boards": [_board(result, problem, by) for by in result.measures(problem)],
        "note": f"{compared}: {of}, with the 90 % interval over paired seeds; left of the dashed line is better.",
    }


def _split(sentence: str) -> tuple[str, str]:
    """What happened, and how sure that is."""
    cut = min((place for place in (sentence.find(" ("), sentence.find("; ")) if place > 0), default=len(sentence))
    return sentence[:cut], sentence[cut:]


def _tiles(result: Result, problem: str) -> list[dict[str, str]]:
    """The winner in a few figures."""
    winner, baseline = result.winner(problem), result.baselines.get(problem, "")
    if winner is None:
        return []
    other = result.labels.get(baseline, "")
    tiles = []
    for by in (*(result.measures(problem) if result.arrived(problem) else ()), "best"):
        label = (result.problems[problem].get("measures") or "metric") if by == "best" else wording.UNITS[by]
        ours, theirs = result.median(problem, winner.method, by), result.median(problem, baseline, by)
        show = wording.number if by == "best" else lambda value, by=by: wording.amount(value, by)
        found = None if winner.method == baseline else result.compare(problem, winner.method, by)
        if by == "best" and result.arrived(problem):
            continue
        if found and found.neutral == 1.0 and 0 < found.value < math.inf:
            tiles.append({"label": label, "big": f"{wording.factor(found.value)}×", "small": f"{show(ours)}, {other} {show(theirs)}"})
        else:
            small = f"best of the median run{f', {other} {show(theirs)}' if found else ''}" if by == "best" else "to the target"
            tiles.append({"label": label, "big": show(ours), "small": small})
    if result.problems[problem].get("target") is not None:
        tiles.append({"label": "target reached", "big": f"{winner.reached}/{winner.seeds}", "small": "seeds"})
    peak = max(run.trace.peak_bytes for run in result.cell(problem, winner.method))
    theirs = max((run.trace.peak_bytes for run in result.cell(problem, baseline)), default=0)
    against = f"{other} {wording.size(theirs)}" if theirs and winner.method != baseline else "above the start"
    return [*tiles, {"label": "peak memory", "big": wording.size(peak), "small": against}]


def _board(result: Result, problem: str, by: str) -> dict[str, Any]:
    rows = leaderboard.rows(result, problem, by)
    difference = any(row.found and row.found.neutral == 0.0 for row in rows)
    scale = _Linear(rows) if difference else _Log(rows)
    made = []
    for row in rows:
        paper = card(row.method)
        shown = not row.baseline and row.ratio not in ("–", "not reached", "failed")
        found = row.found if shown else None
        made.append(
            {
                "method": row.method,
                "name": row.name,
                "title": f"{paper.title}. {paper.source}" if paper else row.method,
                "paper": f"https://arxiv.org/abs/{paper.arxiv}" if paper and paper.arxiv else "",
                "failures": row.failures,
                "reached": row.reached,
                "seeds": row.seeds,
                "cost": row.cost,
                "best": row.best,
                "ratio": row.ratio,
                "interval": row.interval,
                "tone": _tone(row),
                "point": scale.at(row.found.neutral if row.baseline and row.found else found.value) if found or (row.baseline and row.found) else None,
                "bar": scale.bar(found) if found else None,
                "memory": row.memory,
            }
        )
    header = {"seconds": "seconds", "bytes": "bytes"}.get(by, by)
    compares = "difference" if difference else "ratio"
    return {"by": by, "header": header, "compares": compares, "ticks": scale.ticks(), "neutral": scale.at(scale.neutral), "rows": made}


def _tone(row: leaderboard.Row) -> str:
    if row.ratio in ("not reached", "failed"):
        return "bad"
    if row.baseline or row.found is None or not row.found.decided:
        return "muted" if row.baseline else ""
    return "good" if row.found.high < row.found.neutral else "bad"
