"""The search: what it breeds, that it scores nothing twice, finds a planted optimum, and makes valid grids."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

import hasten
from hasten.core.errors import InputError
from hasten.core.kinds.choose import Choosing, even
from hasten.core.run import run
from hasten.diffusion import Denoiser, EvolutionSearch, VPLinear, sample, search_grid
from hasten.diffusion.search.autodiffusion import SearchState
from hasten.numerics.reference import rms

HIDDEN = (3, 11, 29, 40)


def distance(choice: tuple[int, ...]) -> float:
    return sum(abs(a - b) for a, b in zip(choice, HIDDEN))


def search(method: EvolutionSearch, problem: Choosing, seed: int = 0, scores: int = 10000) -> SearchState:
    state = method.init(problem, torch.Generator().manual_seed(seed))
    while not method.done(state) and problem.calls["score"] < scores:
        state = method.step(problem, state)
    return state


def test_finds_what_random_search_does_not() -> None:
    found = search(EvolutionSearch(), Choosing(distance, 4, 50))
    lost = search(hasten.get("random-choice").make(), Choosing(distance, 4, 50), scores=550)
    assert distance(found.x) <= 4
    assert distance(found.x) < distance(lost.x)
    assert len(found.scores) <= 550
    assert min(found.scores, key=found.scores.__getitem__) == found.x


def test_every_choice_is_valid_and_scored_once() -> None:
    seen: Counter[tuple[int, ...]] = Counter()

    def score(choice: tuple[int, ...]) -> float:
        seen[choice] += 1
        return distance(choice)

    search(EvolutionSearch(p_mut=0.5, epochs=4), Choosing(score, 4, 50))
    assert max(seen.values()) == 1
    assert len(seen) == 250
    assert all(len(set(x)) == 4 and list(x) == sorted(x) and x[0] >= 0 and x[-1] < 50 for x in seen)


def test_first_generation_is_the_even_choice_random_ones_and_its_mutations() -> None:
    problem = Choosing(distance, 8, 98)
    method = EvolutionSearch()
    queue = method.init(problem, torch.Generator().manual_seed(0)).queue
    assert queue[0] == problem.x0
    assert len(queue) == 50
    kept = [len(set(choice) & set(problem.x0)) for choice in queue]
    assert max(kept[1:26]) <= 4
    assert min(kept[26:]) >= 4


def test_children_resemble_their_parents() -> None:
    problem, method = Choosing(distance, 20, 200), EvolutionSearch(p_mut=0.1)
    state = method.init(problem, torch.Generator().manual_seed(0))
    one, two = even(20, 200), tuple(range(20))
    changed = [20 - len(set(one) & set(method.mutated(one, problem, state))) for _ in range(300)]
    assert sum(changed) / 300 == pytest.approx(2.0, abs=0.3)
    children = [method.crossed(one, two, state) for _ in range(50)]
    assert all(child is None or set(child) <= set(one) | set(two) for child in children)
    assert method.crossed((1, 2), (2, 3), SearchState((1, 2), [], torch.Generator().manual_seed(1))) in {
        None,
        (1, 2),
        (1, 3),
        (2, 3),
    }


def test_ends_when_every_choice_was_scored() -> None:
    state = search(EvolutionSearch(epochs=None), Choosing(lambda x: -x[0], 1, 5))
    assert state.x == (4,)
    assert len(state.scores) == 5


def test_searched_grid_is_better_on_fresh_points(bench) -> None:
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(0)
    grid = search_grid(bench.denoiser, 4, noise=noise, scores=60, generator=generator, population=20, top_k=5)
    assert len(grid) == 5
    assert (grid[0], grid[-1]) == (1.0, 1e-3)
    found, uniform = (
        rms(sample(bench.denoiser, noise=bench.noise, sampler="ddim", steps=4, grid=times), bench.exact)
        for times in (grid, "uniform")
    )
    assert found < 0.85 * uniform


def test_grids_on_which_the_model_diverges_lose() -> None:
    def network(x, t):
        return torch.where((t[:, None] > 0.4) & (t[:, None] < 0.6), math.nan, 0.5 * x)

    noise = torch.ones(4, 2)
    grid = search_grid(
        Denoiser(network, VPLinear()),
        3,
        noise=noise,
        score=lambda x: float(x.norm()),
        scores=40,
        generator=torch.Generator().manual_seed(0),
    )
    assert all(not 0.4 < t < 0.6 for t in grid)


def test_races_on_the_ready_problem() -> None:
    problem = hasten.problem("ddim-grid:steps=4,batch=16,candidates=20")
    trace = run(hasten.get("autodiffusion").make(), problem, budget=40)
    assert trace.metric[-1] < trace.metric[0]
    assert trace.calls["score"][-1] == 40


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("population", lambda: EvolutionSearch(population=1)),
        ("top_k", lambda: EvolutionSearch(top_k=0)),
        ("p_mut", lambda: EvolutionSearch(p_mut=0.0)),
        ("epochs", lambda: EvolutionSearch(epochs=-1)),
        ("size", lambda: Choosing(distance, 5, 5)),
        ("steps", lambda: search_grid(None, 1, noise=torch.ones(2, 2))),
        ("candidates", lambda: search_grid(None, 4, noise=torch.ones(2, 2), candidates=5)),
        ("scores", lambda: search_grid(None, 4, noise=torch.ones(2, 2), scores=0)),
        ("give noise", lambda: search_grid(None, 4)),
        ("no search", lambda: search_grid(None, 4, noise=torch.ones(2, 2), method="ddim")),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()
