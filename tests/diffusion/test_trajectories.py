"""Trajectories in the plane: what the figure holds, still and animated."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from plotly.graph_objects import Figure

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, VE, Denoiser, VPLinear, plot_trajectories, sample
from hasten.numerics.mixture import circle

DENOISER = circle().denoiser(VPLinear())
NOISE = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def named(figure: Figure, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def walks(trace: Any) -> list[np.ndarray]:
    """The lines of a trace, which stand one after the other with gaps between."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(trace.x, trace.y):
        if x is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [np.array(walk) for walk in found if walk]


def test_each_panel_shows_the_walks_from_the_noise_to_the_samples() -> None:
    figure = plot_trajectories(DENOISER, ["ddim", "dpm-solver-2"], nfe=8, noise=NOISE)
    for panel, (name, steps) in enumerate((("ddim", 8), ("dpm-solver-2", 4))):
        lines = walks(named(figure, "path")[panel])
        samples = sample(DENOISER, sampler=name, nfe=8, noise=NOISE).numpy()
        assert len(lines) == 6
        assert {len(line) for line in lines} == {steps + 1}
        assert np.allclose([line[0] for line in lines], NOISE, rtol=1e-3)
        assert np.allclose([line[-1] for line in lines], samples, rtol=1e-3)
        points = named(figure, "state")[panel]
        assert np.allclose(np.stack([points.x, points.y], 1), samples, rtol=1e-3)
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["ddim · 8 evaluations", "dpm-solver-2 · 8 evaluations"]


def test_the_exact_density_stands_behind_and_only_where_it_is_known() -> None:
    figure = plot_trajectories(DENOISER, {"one": "ddim", "two": DDIM(eta=1.0)}, steps=3, noise=NOISE, view=3.0)
    shade = named(figure, "density")
    assert len(shade) == 2
    row, column = 20, 60
    point = torch.tensor([[shade[0].x[column], shade[0].y[row]]], dtype=torch.float64)
    assert shade[0].z[row][column] == pytest.approx(math.exp(0.5 * circle().log_prob(point)), rel=1e-2)
    unknown = Denoiser(lambda x, t: x, VPLinear())
    assert named(plot_trajectories(unknown, "ddim", steps=2, noise=NOISE), "density") == []


def test_an_animation_begins_at_the_noise_and_ends_with_the_still_picture() -> None:
    still = plot_trajectories(DENOISER, ["ddim", "dpm-solver-2"], nfe=8, noise=NOISE)
    moving = plot_trajectories(DENOISER, ["ddim", "dpm-solver-2"], nfe=8, noise=NOISE, animate=True)
    assert [frame.name for frame in moving.frames] == [str(number) for number in range(9)]
    first, last = moving.frames[0], moving.frames[-1]
    assert first.traces == (2, 3, 4, 5)
    for number in (1, 3):
        assert np.allclose(np.stack([first.data[number].x, first.data[number].y], 1), NOISE, rtol=1e-3)
    assert [trace.x for trace in last.data] == [trace.x for trace in still.data[2:]]
    walked = [len(walks(frame.data[2])[0]) for frame in moving.frames]
    assert walked == [1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert [button.label for button in moving.layout.updatemenus[0].buttons] == ["Play", "Pause"]
    assert len(moving.layout.sliders[0].steps) == 9
    json.loads(moving.to_json())


def test_equal_seeds_draw_equal_figures_and_randomness_is_the_samplers_own() -> None:
    first, again = (plot_trajectories(DENOISER, {"a": DDIM(eta=1.0)}, steps=4, count=5, seed=2) for _ in range(2))
    assert first == again
    assert first != plot_trajectories(DENOISER, {"a": DDIM(eta=1.0)}, steps=4, count=5, seed=3)


def test_far_noise_does_not_shrink_the_samples() -> None:
    figure = plot_trajectories(circle().denoiser(VE()), "ddim", nfe=12, count=20)
    ends = max(abs(value) for value in (*named(figure, "state")[0].x, *named(figure, "state")[0].y))
    low, high = figure.layout.xaxis.range
    assert high == -low
    assert ends < high <= 2.3 * ends


def test_titles_are_text() -> None:
    figure = plot_trajectories(DENOISER, {"<b>x</b>": "ddim"}, steps=1, count=2)
    assert figure.layout.annotations[0].text == "&lt;b&gt;x&lt;/b&gt; · 1 evaluation"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": torch.zeros(4, 3)}, r"shape \(batch, 2\)"),
        ({"samplers": ["ddim", "ddim"]}, "title of its own"),
        ({"samplers": []}, "samplers is empty"),
        ({"count": 0}, "count"),
        ({"view": -1.0}, "view"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plot_trajectories(DENOISER, **{"steps": 2, **arguments})
