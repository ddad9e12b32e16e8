"""Trajectories of samplers in the plane, drawn or animated."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Sampler, sample

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, RED = "#0072B2", "#D55E00"
CELLS = 90
"""Points of the density's grid in each direction."""
WIDTH = 340


def plot_trajectories(
    denoiser: Denoises,
    samplers: str | Sampler | Sequence[str | Sampler] | Mapping[str, str | Sampler] = ("ddim", "dpm-solver-2"),
    *,
    nfe: int | None = None,
    steps: int | None = None,
    noise: Tensor | None = None,
    count: int = 48,
    seed: int = 0,
    animate: bool = False,
    view: float | None = None,
    **options: Any,
) -> Figure:
    """Draw the paths of samples through the plane: several samplers side by side, from the same noise.

    Behind them stands the exact density of the data where the denoiser has one (`denoiser.log_prob`).

    Args:
        denoiser: of data in two dimensions.
        samplers: names or samplers, or a mapping from the titles to these; one panel each.
        nfe: network evaluations that each sampler may spend; 10 if neither this nor `steps` is given.
        steps: steps of each sampler, instead.
        noise: start noise of shape (batch, 2), standard deviation `sigma(T)`; drawn if not given.
        count: number of samples, if the noise is drawn.
        seed: of the drawn noise, and of each sampler's own randomness.
        animate: frames with a play button and a slider instead of whole paths. Samplers with fewer steps move less
            often, so that all of them start and end together.
        view: half the width of the axes; by default all that is seen of the paths up to twice the samples' own extent.
        options: further arguments of `sample`, e.g. `guidance`.

    Returns:
        A Plotly figure: `.show()`, `.write_html(path)`.

    Raises:
        InputError: the data are not two-dimensional, or a sampler is named twice.

    Example:
        >>> plot_trajectories(denoiser, ["ddim", "dpm-solver-3"], nfe=9, animate=True).write_html("paths.html")
    """
    chosen = _titled(samplers)
    drawn = torch.randn(check.integer("count", count, 1), 2, generator=torch.Generator().manual_seed(seed))
    start = denoiser.schedule.noise_scale * drawn if noise is None else noise
    if start.ndim != 2 or start.shape[1] != 2:
        raise InputError(f"noise must have shape (batch, 2) to be drawn in the plane, got {tuple(start.shape)}")
    if nfe is None and steps is None:
        nfe = 10
    paths: dict[str, np.ndarray] = {}
    titles = []
    for title, chosen_sampler in chosen.items():
        states, costs = [start], dict[str, int]()
        sample(
            denoiser,
            sampler=chosen_sampler,
            steps=steps,
            nfe=nfe,
            noise=start,
            generator=torch.Generator().manual_seed(seed),
            callback=lambda state, states=states: states.append(state.x.detach().clone()),
            costs=costs,
            **options,
        )
        paths[title] = torch.stack([state.cpu() for state in states]).double().numpy()
        plural = "" if costs["nfe"] == 1 else "s"
        titles.append(f"{html.escape(title, quote=False)} · {costs['nfe']} evaluation{plural}")
    half = float(check.positive("view", view)) if view is not None else _extent(list(paths.values()))
    figure = _panels(titles, half)
    _background(figure, denoiser, half, len(paths))
    if animate:
        _animated(figure, list(paths.values()))
    else:
        _still(figure, list(paths.values()))
    return figure


def _titled(samplers: Any) -> dict[str, str | Sampler]:
    if isinstance(samplers, Mapping):
        found = dict(samplers)
    else:
        several = [samplers] if isinstance(samplers, (str, Sampler)) else list(samplers)
        names = [one if isinstance(one, str) else one.card.name for one in several]
        if len(set(names)) < len(names):
            raise InputError(f"each sampler needs a title of its own, got {', '.join(names)}; give {{title: sampler}}")
        found = dict(zip(names, several))
    if not found:
        raise InputError("samplers is empty; name at least one, e.g. 'ddim'")
    return found


def _extent(paths: list[np.ndarray]) -> float:
    """Half the width that shows every state, but no more than twice what shows every sample."""
    ends = max(float(np.abs(path[-1]).max()) for path in paths)
    whole = max(float(np.abs(path).max()) for path in paths)
    return 1.1 * min(whole, 2.0 * ends) or 1.0


def _panels(titles: list[str], half: float) -> Figure:
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.02)
    figure.update_xaxes(range=[-half, half], showgrid=False, zeroline=False, constrain="domain")
    figure.update_yaxes(range=[-half, half], showgrid=False, zeroline=False, showticklabels=False)
    for column in range(1, len(titles) + 1):
        axis = "x" if column == 1 else f"x{column}"
        figure.update_yaxes(scaleanchor=axis, col=column)
    figure.update_yaxes(showticklabels=True, col=1)
    margin = {"l": 40, "r": 20, "t": 50, "b": 40}
    figure.update_layout(width=WIDTH * len(titles) + 60, height=WIDTH + 90, showlegend=False, margin=margin)
    figure.update_layout(plot_bgcolor="white", hovermode=False)
    return figure


def _background(figure: Figure, denoiser: Any, half: float, panels: int) -> None:
    """The density of the data in shades of grey; on a square-root scale, so that small modes are seen as well."""
    log_prob = getattr(denoiser, "log_prob", None)
    if log_prob is None:
        return
    from plotly.graph_objects import Contour

    line = torch.linspace(-half, half, CELLS, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    shade = (0.5 * log_prob(points)).exp().reshape(CELLS, CELLS).T.numpy()
    scale = [[0.0, "#ffffff"], [1.0, "#9aa3ad"]]
    for column in range(1, panels + 1):
        shown = {"x": _short(line.numpy()), "y": _short(line.numpy()), "z": _short(shade), "name": "density"}
        figure.add_trace(Contour(**shown, colorscale=scale, showscale=False, line_width=0, ncontours=16), 1, column)


def _still(figure: Figure, paths: list[np.ndarray]) -> None:
    for column, path in enumerate(paths, 1):
        for trace in _drawn(path, len(path) - 1):
            figure.add_trace(trace, 1, column)


def _animated(figure: Figure, paths: list[np.ndarray]) -> None:
    """Frames from the noise to the samples, as many as the longest path has states."""
    from plotly.graph_objects import Frame

    before = len(figure.data)  # type: ignore[arg-type]
    for column, path in enumerate(paths, 1):
        for trace in _drawn(path, 0):
            figure.add_trace(trace, 1, column)
    last = max(len(path) for path in paths) - 1
    moving = list(range(before, before + 2 * len(paths)))
    frames = []
    for number in range(last + 1):
        data = [trace for path in paths for trace in _drawn(path, number * (len(path) - 1) // max(last, 1))]
        frames.append(Frame(data=data, name=str(number), traces=moving))
    figure.frames = frames
    # Without a redraw Plotly drops the density at the first frame.
    pace = {"frame": {"duration": max(80, min(400, 4000 // (last + 1))), "redraw": True}, "fromcurrent": True}
    pace["transition"] = {"duration": 0}
    play = {"label": "Play", "method": "animate", "args": [None, pace]}
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    stop = {"label": "Pause", "method": "animate", "args": [[None], still]}
    steps = [{"label": frame.name, "method": "animate", "args": [[frame.name], still]} for frame in frames]
    buttons = {"type": "buttons", "direction": "left", "x": 0, "y": -0.12, "xanchor": "left", "yanchor": "top"}
    slider = {"x": 0.22, "len": 0.78, "y": -0.06, "yanchor": "top", "steps": steps, "currentvalue": {"prefix": "step "}}
    figure.update_layout(updatemenus=[{**buttons, "buttons": [play, stop]}], sliders=[slider])
    figure.update_layout(height=figure.layout.height + 90, margin_b=130)


def _drawn(path: np.ndarray, upto: int) -> list[Any]:
    """Lines from the noise to the state of this number, and the state itself."""
    from plotly.graph_objects import Scatter

    walked = path[: upto + 1]
    gaps = np.full((1, *walked.shape[1:]), np.nan)
    lines = np.concatenate((walked, gaps)).transpose(1, 0, 2).reshape(-1, 2)
    colour = RED if upto == len(path) - 1 else BLUE
    trail = {"mode": "lines", "line": {"color": BLUE, "width": 1}, "opacity": 0.45, "name": "path"}
    points = {"mode": "markers", "marker": {"color": colour, "size": 5}, "name": "state"}
    return [
        Scatter(x=_short(lines[:, 0]), y=_short(lines[:, 1]), **trail),
        Scatter(x=_short(walked[-1, :, 0]), y=_short(walked[-1, :, 1]), **points),
    ]


def _short(values: np.ndarray) -> Any:
    """Four digits, as lists, None for gaps: a small file."""
    if values.ndim > 1:
        return [_short(row) for row in values]
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
