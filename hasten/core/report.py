"""The report of a race: one self-contained HTML file that works offline and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import suppress
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core import figures, sections
from hasten.core.errors import InputError, StoreError
from hasten.core.picture import gallery

if TYPE_CHECKING:
    from hasten.core.result import Result

_STROKES = {"solid": "", "dash": "6 5", "dot": "0.5 5", "dashdot": "7 4 0.5 4"}


def write(result: Result, path: str | Path) -> Path:
    """Write the report; an existing file is replaced only when the new one is whole and on disk.

    Raises:
        InputError: the path is a folder.
        StoreError: the file cannot be written; what was there is untouched.
    """
    path = check_destination(path)
    text = render(result)
    real = path.resolve()
    partial = real.with_name(f".{real.name}.{os.getpid()}.part")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(real)
    except OSError as error:
        raise StoreError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def check_destination(path: str | Path) -> Path:
    """Refuse, before anything runs, a path at which no report could be written."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"report: {path} is a folder; name a file in it, e.g. {path / 'race.html'}")
    if path.exists() and not path.is_file():
        raise InputError(f"report: {path} is a device or a pipe; name an ordinary file, e.g. race.html")
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
    parts = {
        name: (templates / name).read_text(encoding="utf-8") for name in ("report.html.j2", "report.css", "report.js")
    }
    plotly, script = get_plotlyjs(), parts["report.js"]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_function"] = _dumps
    overview = sections.overview(result) if len(result.problems) > 1 else None
    return environment.from_string(parts["report.html.j2"]).render(
        title=f"{', '.join(result.problems)} · hasten race",
        policy=_policy(plotly, script),
        style=Markup(parts["report.css"]),
        script=Markup(script),
        plotly=Markup(plotly),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        looks={m: {"colour": colour, "dashes": _STROKES[dash]} for m, (colour, dash) in figures.looks(result).items()},
        overview=overview,
        sections=[
            {**sections.section(result, name, number), "pictures": gallery(result, name)}
            for number, name in enumerate(result.problems)
        ],
        code=sections.code(result),
        tuned=sections.tuned(result),
        run_columns=sections.RUN_COLUMNS,
        runs=sections.runs(result),
        facts=sections.facts(result),
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
