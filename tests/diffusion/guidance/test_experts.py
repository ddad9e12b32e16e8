"""Experts for noisy inputs: who answers when, training without data, the untouched network, refusals."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.diffusion import ClassifierGuidance, FlowMatching, MultiExpert, VPLinear, sample
from hasten.numerics.lora import LoRA
from hasten.numerics.mixture import classes


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))


def drawn(experts: MultiExpert) -> MultiExpert:
    """Experts that differ."""
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        for n, expert in enumerate(experts.experts):
            cast(LoRA, expert).scale = float(n + 1)
    return experts


def test_ranges_are_those_of_the_published_code(net: nn.Module) -> None:
    """A thousand steps, five experts: the first whose closed range holds the step (riiid/PPAP, multi_expert_helper)."""
    experts = MultiExpert(net, VPLinear(T=1000.0), experts=5)
    steps = torch.tensor([0, 1, 199, 200, 201, 399, 400, 401, 600, 601, 800, 801, 999, 1000])
    assert experts.index(steps).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert [experts.range(n) for n in range(5)] == [(200.0 * n, 200.0 * (n + 1)) for n in range(5)]
    assert MultiExpert(net, FlowMatching(), experts=1).index(torch.tensor([0.0, 0.999])).tolist() == [0, 0]


def test_each_row_is_answered_by_its_expert(net: nn.Module) -> None:
    experts, x = drawn(MultiExpert(net, VPLinear(), experts=4)), torch.randn(7, 4)
    t = torch.tensor([0.9, 0.1, 0.6, 0.95, 0.3, 0.05, 0.6])
    together = experts(x, t)
    for row in range(7):
        torch.testing.assert_close(experts(x[row : row + 1], t[row : row + 1]), together[row : row + 1])
    same = experts(x, torch.full((7,), 0.6))
    torch.testing.assert_close(same[[2, 6]], together[[2, 6]])
    assert not torch.allclose(same[0], together[0])


def test_begins_with_the_network_and_leaves_it_alone(net: nn.Module) -> None:
    x, t = torch.randn(5, 4), torch.full((5,), 0.4)
    weights = copy.deepcopy(net.state_dict())
    experts = MultiExpert(net, VPLinear(), experts=3, rank=2)
    assert torch.equal(experts(x, t), net(x))
    experts.fit_datafree(torch.randn(20, 4), iterations=9, batch=8, lr=0.1)
    assert not torch.equal(experts(x, t), net(x))
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())
    assert sum(parameter.numel() for parameter in experts.parameters()) == 3 * 2 * (4 + 16 + 16 + 3)


def test_learns_noisy_inputs_from_samples_of_the_model() -> None:
    """A classifier of clean data, trained on two coordinates of which noise ruins one, learns to weigh them anew."""
    torch.manual_seed(0)
    mixture = classes(3, 4, seed=1)
    data = mixture.sample(600, torch.Generator().manual_seed(0)).float()
    labels = torch.cdist(data, mixture.means.float()).argmin(1)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(data), labels).backward()
        optimizer.step()
    schedule = VPLinear()
    clean = sample(mixture.denoiser(schedule), noise=torch.randn(500, 4).double(), steps=10).float()
    experts = MultiExpert(net, schedule, experts=3, rank=4)

    def loss(logits: Any) -> float:
        generator = torch.Generator().manual_seed(1)
        t = 0.6 * torch.rand(600, generator=generator)
        noise = torch.randn(600, 4, generator=generator)
        x = schedule.alpha(t)[:, None] * data + schedule.sigma(t)[:, None] * noise
        with torch.no_grad():
            return float(F.cross_entropy(logits(x, t), labels))

    experts.fit_datafree(clean, iterations=300, batch=64, lr=1e-2, tau=1.0, generator=torch.Generator().manual_seed(0))
    assert loss(experts) < 0.7 * loss(lambda x, t: net(x))
    wanted = torch.arange(60) % 3
    guidance = ClassifierGuidance(experts, wanted, scale=2.0)
    out = sample(mixture.denoiser(schedule), (60, 4), steps=10, guidance=guidance)
    assert float((torch.cdist(out, mixture.means.float()).argmin(1) == wanted).float().mean()) > 0.75


def test_features_are_learnt_by_least_squares(net: nn.Module) -> None:
    """Where hardly anything is noise, the experts keep to the network's own features."""
    clean = torch.randn(50, 4)
    experts = MultiExpert(net, FlowMatching(T=0.02), experts=2, rank=2)
    experts.fit_datafree(clean, iterations=20, batch=16, loss="mse")
    torch.testing.assert_close(experts(clean, torch.full((50,), 0.01)), net(clean), rtol=0.1, atol=0.1)


def test_refusals(net: nn.Module) -> None:
    experts, x = MultiExpert(net, VPLinear(), experts=3), torch.randn(8, 4)
    images = MultiExpert(nn.Conv2d(1, 1, 3), VPLinear(), rank=1)
    for match, make in {
        "experts must be an integer": lambda: MultiExpert(net, VPLinear(), experts=0),
        "schedule must be": lambda: MultiExpert(net, 1000),  # type: ignore[arg-type]
        "no Linear": lambda: MultiExpert(nn.ReLU(), VPLinear()),
        "iterations must be an integer of at least 3": lambda: experts.fit_datafree(x, iterations=2),
        "tau": lambda: experts.fit_datafree(x, tau=0.0),
        "loss must be one of": lambda: experts.fit_datafree(x, loss="ssi"),
        "logits": lambda: images.fit_datafree(torch.randn(4, 1, 8, 8)),
    }.items():
        with pytest.raises(InputError, match=match):
            make()


def test_divergence_is_named(net: nn.Module) -> None:
    bad: Tensor = torch.randn(8, 4) * 1e30
    with pytest.raises(ArithmeticError, match=r"expert 0 diverged at step 1; lower lr"):
        MultiExpert(net, VPLinear(), experts=2).fit_datafree(bad, iterations=4, loss="mse")
