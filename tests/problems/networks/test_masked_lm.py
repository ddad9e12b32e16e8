"""The small masked language model, the law of n-grams, and the problem that writes Python with them."""

from __future__ import annotations

import math

import pytest
import torch

import hasten
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.numerics.ngrams import NGrams
from hasten.problems.networks.masked_lm import CONTEXT, MASK, MaskedLM, draw, halves, masked_loss, train_masked
from hasten.problems.stdlib_masked import held_out, masked_denoiser


@pytest.fixture
def small() -> MaskedLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskedLM(width=16, depth=2, context=12, heads=2)


def test_every_place_sees_both_sides(small: MaskedLM) -> None:
    tokens = torch.randint(0, 256, (1, 12))
    before = small(tokens)
    assert before.shape == (1, 12, 256)
    changed = tokens.clone()
    changed[0, 6] = MASK
    assert ((small(changed) - before).abs().amax(-1) > 1e-6).all()
    assert small(tokens[:, :5]).shape == (1, 5, 256)


def test_longer_windows_and_odd_widths_are_refused(small: MaskedLM) -> None:
    with pytest.raises(InputError, match="at most 12 bytes, got 13"):
        small(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(InputError, match="multiple of heads"):
        MaskedLM(width=18, heads=4)


def test_the_loss_of_a_network_that_knows_nothing_is_that_of_256_equal_bytes() -> None:
    def ignorant(tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 256)

    clean = torch.randint(0, 256, (512, 32), generator=torch.Generator().manual_seed(0))
    loss = masked_loss(ignorant, clean, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(math.log(256), rel=0.02)


def test_the_network_sees_no_byte_that_it_must_tell() -> None:
    clean = torch.randint(0, 256, (64, 32), generator=torch.Generator().manual_seed(0))

    def copies(tokens: torch.Tensor) -> torch.Tensor:
        hidden = (tokens == MASK).float().mean()
        assert 0.45 < hidden < 0.55
        return 20.0 * torch.nn.functional.one_hot(tokens.clamp(max=255), 256)

    assert float(masked_loss(copies, clean, torch.Generator().manual_seed(1))) > 10.0  # type: ignore[arg-type]


def test_training_lowers_the_loss(small: MaskedLM) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MaskedLM(width=16, depth=1)
    losses: list[float] = []
    train_masked(net, lambda step, steps, loss: losses.append(loss), steps=30, batch=8)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_windows_come_from_the_right_part_of_the_text() -> None:
    train, rest = halves()
    assert len(rest) == pytest.approx((len(train) + len(rest)) / 10, abs=1)
    windows = draw(rest, 3, torch.Generator().manual_seed(0))
    assert windows.shape == (3, CONTEXT)
    text = bytes(rest.tolist())
    assert all(bytes(window.tolist()) in text for window in windows)


class TestNGrams:
    TEXT = torch.tensor([0, 1, 2] * 40)

    def test_the_text_itself_and_foreign_runs_are_the_ends_of_the_scale(self) -> None:
        law = NGrams(self.TEXT, 2, 4)
        assert law.divergence(self.TEXT[None, :118]) == pytest.approx(0.0, abs=1e-3)
        assert law.divergence(torch.full((2, 10), 3)) == pytest.approx(1.0)
        assert law.divergence(torch.full((2, 10), 4)) == pytest.approx(1.0)

    def test_monotony_and_errors_both_cost(self) -> None:
        law = NGrams(self.TEXT, 2, 4)
        # Only the run (0, 1) with share 1: half of log2(1/(2/3)) and half of the text's own share.
        p = torch.tensor([1 / 3, 1 / 3, 1 / 3], dtype=torch.float64)
        q = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        m = (p + q) / 2
        expected = 0.5 * (torch.xlogy(p, p / m).sum() + torch.xlogy(q, q / m).sum()) / math.log(2)
        assert law.divergence(torch.tensor([[0, 1]])) == pytest.approx(float(expected), abs=5e-3)
        assert 0.0 < law.divergence(torch.tensor([[0, 1, 2, 0, 1, 3]])) < 1.0

    def test_runs_do_not_cross_windows(self) -> None:
        law = NGrams(torch.tensor([0, 0, 0, 0]), 2, 2)
        assert law.divergence(torch.tensor([[0, 0], [1, 1]])) == law.divergence(torch.tensor([[1, 1], [0, 0]]))

    def test_what_cannot_be_counted_is_refused(self) -> None:
        with pytest.raises(InputError, match="n=8"):
            NGrams(self.TEXT, 8)
        with pytest.raises(InputError, match="at least 3 tokens"):
            NGrams(torch.tensor([1, 2]))


def test_real_windows_beat_damaged_ones_and_spaces() -> None:
    windows = draw(halves()[1], 64, torch.Generator().manual_seed(0))
    real = held_out().divergence(windows)
    assert real == pytest.approx(0.26, abs=0.02)
    damaged = torch.where(torch.rand(windows.shape, generator=torch.Generator().manual_seed(1)) < 0.1, 120, windows)
    assert held_out().divergence(damaged) > real + 0.05
    assert held_out().divergence(torch.full_like(windows, 32)) > 0.6


def test_the_problem_runs_from_masks_to_bytes() -> None:
    problem = hasten.problem("stdlib-masked", batch=2, length=8)
    instance = problem.build(0)
    assert instance.metric(instance.start) == pytest.approx(1.0)
    trace = run(hasten.get("diffusion.mdlm").make(), problem, budget="8calls")
    assert trace.calls["nfe"][0] <= 8
    assert trace.answer.shape == (2, 8)
    assert int(trace.answer.max()) < MASK
    assert masked_denoiser().mask == MASK
    with pytest.raises(InputError, match="length"):
        hasten.problem("stdlib-masked", length=65)
