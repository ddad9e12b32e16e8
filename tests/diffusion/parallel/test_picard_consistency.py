"""Switched Picard iteration: plain rounds bit for bit, exact results, gradients, both ways of mixing; bad inputs."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import PCM, Denoiser, ParaDiGMS, PicardConsistency, VPLinear, sample
from hasten.diffusion.parallel.picard_consistency import Switched
from hasten.numerics.lora import LoRA

STEPS = 12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        shift = 0.0 if cond is None else 0.1 * cond[:, None]
        return 0.5 * x + self.last(torch.tanh(self.first(torch.cat((2 * x, 3 * t[:, None]), 1)))) + shift


def denoiser() -> Denoiser:
    return Denoiser(Net().double(), VPLinear())


def noise(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(base: Denoiser, iterations: int = 60, **options) -> PicardConsistency:
    options.setdefault("generator", torch.Generator().manual_seed(0))
    model = PicardConsistency(base, STEPS, lr=5e-3, ema_decay=0.5, **options)
    model.fit(noise(32, 1), iterations, batch=16)
    return model


def sequential(base: Denoiser, start: Tensor) -> Tensor:
    return sample(base, noise=start, sampler="ddim", steps=STEPS, grid="uniform")


@pytest.mark.parametrize("tol", [0.1, 1e-3])
def test_without_switch_it_is_paradigms_bit_for_bit(tol: float) -> None:
    base = denoiser()
    plain, costs = {}, {}
    expected = sample(base, noise=noise(), sampler=ParaDiGMS(window=STEPS, tol=tol), steps=STEPS, costs=plain)
    for model in (None, trained(base, 3), trained(base, 3, rank=None)):
        found = sample(base, noise=noise(), sampler=PCM(model=model, switch=0, tol=tol), steps=STEPS, costs=costs)
        assert torch.equal(found, expected)
        assert costs == plain


@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize(("switch", "decay"), [(1, "step"), (3, "step"), (4, "linear")])
def test_switched_samples_are_the_sequential_ones(rank: int | None, switch: int, decay: str) -> None:
    base = denoiser()
    made = PCM(model=trained(base, rank=rank), switch=switch, decay=decay, tol=1e-14)
    costs: dict[str, int] = {}
    found = sample(base, noise=noise(), sampler=made, steps=STEPS, costs=costs)
    torch.testing.assert_close(found, sequential(base, noise()), atol=1e-12, rtol=0)
    mixed = switch - 1 if decay == "linear" and rank is None else 0
    assert costs["rounds"] <= STEPS + switch + mixed


def test_without_end_it_is_the_other_networks_own_result() -> None:
    base = denoiser()
    found = sample(base, noise=noise(), sampler=PCM(model=trained(base), switch=None, tol=1e-10), steps=STEPS)
    gap = float((found - sequential(base, noise())).abs().max())
    assert gap > 1e-4
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("rank", [4, None])
def test_training_brings_the_first_round_nearer(rank: int | None) -> None:
    base = denoiser()
    goal = sequential(base, noise(64, 5))

    def first_error(model: PicardConsistency | None) -> float:
        ends = []
        made = PCM(model=model, switch=0 if model is None else 1, tol=1e-14)
        sample(base, noise=noise(64, 5), sampler=made, steps=STEPS, callback=lambda state: ends.append(state.slots[-1]))
        return float((ends[0] - goal).square().mean())

    assert first_error(trained(base, 150, rank=rank)) < 0.6 * first_error(None)


def test_loss_is_the_distance_of_one_iteration_to_the_fixed_point() -> None:
    base = denoiser()
    model = PicardConsistency(base, STEPS, iterates=1, last_weight=3.0, generator=torch.Generator().manual_seed(0))
    data = model.record(noise(1))
    torch.testing.assert_close(data.fixed[-1], sequential(base, noise(1)))
    assert data.iterates[0].shape == (STEPS + 1, 1, 2)
    x, rows = noise(1), []
    schedule = base.schedule
    times = torch.linspace(1.0, 1e-3, STEPS + 1, dtype=torch.float64).tolist()
    total = x
    for s, t in pairwise(times):
        eps = base.eps(noise(1), s).detach()
        stretch = schedule.alpha(t) / schedule.alpha(s)
        step = stretch * noise(1) + (schedule.sigma(t) - stretch * schedule.sigma(s)) * eps
        total = total + step - noise(1)
        rows.append(total)
    errors = (torch.stack(rows) - data.fixed[1:]).square().flatten(1).mean(1)
    expected = float((errors.sum() + 2.0 * errors[-1]) / (STEPS + 2))
    assert model.train_step(data) == pytest.approx(expected)


def test_network_stays_as_it_was() -> None:
    base = denoiser()
    assert isinstance(base.fn, nn.Module)
    before = copy.deepcopy(base.fn.state_dict())
    expected = base.eps(noise(), 0.5).detach()
    model = trained(base, 5)
    assert torch.equal(base.eps(noise(), 0.5), expected)
    assert not any(parameter.requires_grad for parameter in base.fn.parameters())
    model.detach()
    assert all(parameter.requires_grad for parameter in base.fn.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.fn.state_dict().items())


@pytest.mark.parametrize("rank", [4, None])
def test_shares_mix_weights_or_outputs(rank: int | None) -> None:
    base = denoiser()
    model = trained(base, 20, rank=rank)
    zero, half, one = (Switched(base, model.average, share).eps(noise(), 0.5).detach() for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(zero, base.eps(noise(), 0.5))
    assert float((one - zero).abs().max()) > 1e-3
    if rank is None:
        torch.testing.assert_close(half, 0.5 * (zero + one))
    else:
        assert isinstance(model.average, LoRA)
        assert model.average.scale == 0.0


def test_conditions_follow_their_trajectories() -> None:
    """Each trajectory keeps its own condition in the batches of training."""
    labels = torch.arange(32, dtype=torch.float64) % 3
    base = denoiser().given(labels)
    model = PicardConsistency(base, STEPS, generator=torch.Generator().manual_seed(0))
    assert all(loss < 10.0 for loss in model.fit(noise(32, 1), 3, batch=8))
    some = base.given(labels[:16])
    found = sample(some, noise=noise(), sampler=PCM(model=model, switch=1, tol=1e-14), steps=STEPS)
    torch.testing.assert_close(found, sequential(some, noise()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("nfe", [3, 10, 24, 60])
def test_spends_no_more_than_it_may(nfe: int) -> None:
    base = denoiser()
    costs: dict[str, int] = {}
    made = PCM(model=trained(base, 2), switch=2, tol=1e-14)
    assert sample(base, noise=noise(), sampler=made, nfe=nfe, costs=costs).shape == (16, 2)
    assert costs["nfe"] <= nfe


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("torch.nn.Module", lambda: PicardConsistency(Denoiser(lambda x, t: x, VPLinear()), STEPS)),
        ("steps", lambda: PicardConsistency(denoiser(), 0)),
        ("rank", lambda: PicardConsistency(denoiser(), STEPS, rank=0)),
        ("iterates", lambda: PicardConsistency(denoiser(), STEPS, iterates=0)),
        ("ema_decay", lambda: PicardConsistency(denoiser(), STEPS, ema_decay=1.0)),
        ("deterministic", lambda: PicardConsistency(denoiser(), STEPS, sampler=ParaDiGMS("ddpm"))),
        ("decay", lambda: PCM(decay="cosine")),
        ("switch", lambda: PCM(switch=-1)),
        ("trained by its fit", lambda: sample(denoiser(), (4, 2), "pcm", 5)),
        (
            "not the one that model was made for",
            lambda: sample(denoiser(), noise=noise(), sampler=PCM(model=PicardConsistency(denoiser(), 5)), steps=5),
        ),
        ("iterations", lambda: PicardConsistency(denoiser(), STEPS).fit(noise(), 0)),
        ("batch", lambda: PicardConsistency(denoiser(), STEPS).fit(noise(), 1, batch=0)),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()
