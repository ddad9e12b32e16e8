"""Step Rehash: what is reused and when, offline and online schedules, an idle cache, and bad inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.core.errors import InputError
from hasten.diffusion import Denoiser, FlowMatching, StepRehash, sample


def draw(net: nn.Module, cache: StepRehash | None, steps: int = 8, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    denoiser = Denoiser(net, FlowMatching(), "velocity")
    return sample(denoiser, noise=noise, sampler="ddim", steps=steps, grid="uniform", cache=cache)


def test_nothing_changes_above_likeness_one(dit: nn.Module) -> None:
    cache = StepRehash(threshold=1.01)
    assert torch.equal(draw(dit, cache), draw(dit, None))
    assert (cache.full, cache.forecasts) == (8, 0)


def test_schedule_is_followed(dit: nn.Module) -> None:
    cache = StepRehash(depth=2, schedule=(2, 3, 6))
    draw(dit, cache)
    assert (cache.full, cache.forecasts) == (5, 3)


def test_reused_step_equals_the_blocks_after_the_old_feature(dit: nn.Module) -> None:
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    kept: list[torch.Tensor] = []
    handle = dit.blocks[1].register_forward_hook(lambda module, args, output: kept.append(output))  # type: ignore[index]
    dit(x, torch.full((2,), 0.9))
    handle.remove()
    with StepRehash(depth=2, schedule=(1,)).attached(dit):
        dit(x, torch.full((2,), 0.9))
        ours = dit(x + 0.1, torch.full((2,), 0.5))
    handle = dit.blocks[1].register_forward_hook(lambda module, args, output: kept[0])  # type: ignore[index]
    expected = dit(x + 0.1, torch.full((2,), 0.5))
    handle.remove()
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_fit_takes_alike_steps_never_too_many_in_a_row(dit: nn.Module) -> None:
    for longest, expected in ((1, (1, 3, 5, 7)), (2, (1, 2, 4, 5, 7))):
        cache = StepRehash(threshold=-1.0, longest=longest)
        assert cache.fit(lambda cache=cache: draw(dit, cache)) == expected
        assert cache.full == 8
        assert len(cache.likeness) == 7
        draw(dit, cache, seed=1)
        assert cache.full == 8 - len(expected)
    full = StepRehash(threshold=1.01)
    draw(dit, full)
    middle = sorted(full.likeness)[3]
    cache = StepRehash(threshold=middle)
    chosen = cache.fit(lambda: draw(dit, cache))
    assert 0 < len(chosen) <= 4
    assert all(full.likeness[step - 1] >= middle for step in chosen)
    assert all(full.likeness[step - 1] < middle or step - 1 in chosen for step in range(1, 8) if step not in chosen)


def test_online_rule_needs_two_alike_full_passes(dit: nn.Module) -> None:
    cache = StepRehash(threshold=-1.0)
    draw(dit, cache, steps=7)
    assert (cache.full, cache.forecasts) == (4, 3), "full, full, reuse, full, reuse, full, reuse"


def test_calls_stay_within_the_allowed_passes() -> None:
    assert StepRehash().calls_for(5) == 5
    scheduled = StepRehash(schedule=(1, 3, 5))
    assert [scheduled.calls_for(passes) for passes in (1, 2, 3, 5)] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("threshold", lambda: StepRehash(threshold=-2.0)),
        ("longest", lambda: StepRehash(longest=0)),
        ("depth", lambda: StepRehash(depth=0)),
        ("schedule", lambda: StepRehash(schedule=(0, 2))),
    ],
)
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()


def test_depth_beyond_the_network_is_refused(dit: nn.Module) -> None:
    with pytest.raises(InputError, match="at most 3"):
        draw(dit, StepRehash(depth=4))
