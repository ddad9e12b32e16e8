"""Noise from one generator, or from one per sample: the same whatever else is drawn, and drawn again after a rewind."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.numerics import draws


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_one_generator_draws_as_torch_does() -> None:
    found = draws.normal((3, 2), generators(0)[0], torch.float32, "cpu")
    assert torch.equal(found, torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))


def test_every_sample_has_its_own_noise() -> None:
    like = torch.empty(3, 2, 2, dtype=torch.float64)
    whole = draws.standard_normal(like, generators(0, 1, 2))
    assert torch.equal(draws.standard_normal(like[:2], generators(0, 2)), whole[[0, 2]])
    assert torch.equal(whole[1], torch.randn(2, 2, dtype=torch.float64, generator=generators(1)[0]))
    assert whole.dtype == torch.float64


@pytest.mark.parametrize("count", [1, 3])
def test_rewound_generators_draw_again(count: int) -> None:
    made = draws.checked(generators(*range(count)) if count > 1 else generators(0)[0])
    like = torch.empty(count, 4)
    stand = draws.positions(made)
    first, second = draws.standard_normal(like, made), draws.standard_normal(like, made)
    draws.rewind(made, stand)
    assert torch.equal(draws.standard_normal(like, made), first)
    assert not torch.equal(first, second)


def test_refuses_what_is_no_source_of_noise() -> None:
    assert draws.checked(None) is torch.default_generator
    one = generators(0)[0]
    for bad in ([], [one, one], [one, None], 3, "seed"):
        with pytest.raises(InputError, match="generator"):
            draws.checked(bad)
    with pytest.raises(InputError, match="got 2 for 3 samples"):
        draws.normal((3, 1), generators(0, 1), torch.float32, "cpu")
