"""The noise policy against closed forms: density, divergence, gradient of the expected reward, clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from hasten.core.errors import InputError
from hasten.diffusion import FIND, NoisePolicy
from hasten.diffusion.search.noise_policy import Baseline, Batch

SLOPE = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)


def policy_at(mean: Tensor, log_std: Tensor) -> NoisePolicy:
    policy = NoisePolicy(mean.shape, dtype=torch.float64)
    policy.mean = mean.clone().requires_grad_(True)
    policy.log_std = log_std.clone().requires_grad_(True)
    return policy


def shifted() -> NoisePolicy:
    mean = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    return policy_at(mean, torch.tensor([-0.2, 0.1, 0.0], dtype=torch.float64))


def test_density_and_divergence_are_those_of_a_normal() -> None:
    policy = shifted()
    normal = Normal(policy.mean.detach(), policy.log_std.detach().exp())
    z = policy.sample(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.log_prob(z).detach(), normal.log_prob(z).mean(1))
    assert policy.kl() == pytest.approx(float(kl_divergence(normal, Normal(0.0, 1.0)).sum()))
    many = policy.sample(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.mean(0), normal.mean, atol=0.04, rtol=0)
    torch.testing.assert_close(many.std(0), normal.stddev, atol=0.04, rtol=0)


def test_gradient_is_that_of_the_expected_reward() -> None:
    """For the reward `a.z` the expectation is `a.mean`: its gradient is a, over the number of dimensions, and 0."""
    policy = shifted()
    z = policy.sample(400_000, torch.Generator().manual_seed(0))
    FIND().loss(policy, z, z @ SLOPE, policy.log_prob(z).detach()).backward()
    assert policy.mean.grad is not None
    assert policy.log_std.grad is not None
    torch.testing.assert_close(-3.0 * policy.mean.grad, SLOPE, atol=0.02, rtol=0)
    torch.testing.assert_close(policy.log_std.grad, torch.zeros(3, dtype=torch.float64), atol=0.02, rtol=0)


def test_clipping_stops_the_pull_of_samples_that_have_moved_far() -> None:
    """Gains are clipped at 1 + c where the advantage is positive, at 1 - c where it is negative, and only there."""
    policy, z = shifted(), torch.zeros(1, 3, dtype=torch.float64)
    now = policy.log_prob(z).detach()
    for log_ratio, advantage, pulled in ((0.5, 1.0, False), (-0.5, 1.0, True), (0.5, -1.0, True), (-0.5, -1.0, False)):
        for clip in (0.2, None):
            policy.mean.grad = None
            loss = FIND(clip=clip).loss(policy, z, torch.tensor([advantage]), now - log_ratio)
            loss.backward()
            assert policy.mean.grad is not None
            assert bool(policy.mean.grad.any()) == (pulled or clip is None)
            bound = 1.0 + math.copysign(0.2, log_ratio)
            gain = advantage * (math.exp(log_ratio) if pulled or clip is None else bound)
            assert float(loss.detach()) == pytest.approx(-gain)


def test_baseline_learns_what_policies_earn() -> None:
    generator = torch.Generator().manual_seed(0)
    policies = torch.randn(8, 4, generator=generator)
    kept = [Batch(torch.empty(2, 2), p.sum().expand(2), torch.empty(2), p) for p in policies]
    net = Baseline(4, generator)
    for _ in range(30):
        net.learn(kept, torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(net(policies).detach(), policies.sum(1), atol=0.3, rtol=0)


@pytest.mark.parametrize("baseline", ["network", "mean"])
def test_reward_grows_and_runs_are_counted(baseline: str) -> None:
    seen, rounds = [], []

    def sampler(z: Tensor) -> Tensor:
        assert not z.requires_grad
        seen.append(len(z))
        return z

    policy = FIND(lr=0.05, baseline=baseline).fit(
        sampler,
        lambda x: x @ SLOPE,
        (3,),
        205,
        generator=torch.Generator().manual_seed(0),
        callback=rounds.append,
        dtype=torch.float64,
    )
    assert sum(seen) == 200
    assert len(rounds) == 20
    assert float(policy.mean @ SLOPE) > 0.5
    assert not policy.mean.requires_grad
    assert policy.best is not None
    best, reward = policy.best
    assert reward == pytest.approx(float(best @ SLOPE))
    assert reward > 2.0


def test_equal_generators_give_equal_policies() -> None:
    def once(seed: int) -> Tensor:
        return (
            FIND()
            .fit(lambda z: z, lambda x: x[:, 0, 0], (2, 2), 40, generator=torch.Generator().manual_seed(seed))
            .mean
        )

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("lr", lambda: FIND(lr=0.0)),
        ("clip", lambda: FIND(clip=1.0)),
        ("batch", lambda: FIND(batch=1)),
        ("history", lambda: FIND(history=0)),
        ("epochs", lambda: FIND(epochs=0)),
        ("baseline", lambda: FIND(baseline="best")),
        ("runs", lambda: FIND(batch=10).fit(lambda z: z, lambda x: x[:, 0], (2,), 9)),
        ("shape", lambda: FIND().fit(lambda z: z, lambda x: x[:, 0], (0,))),
        ("reward must return 10", lambda: FIND().fit(lambda z: z, lambda x: x, (2,))),
        ("reward must return 10", lambda: FIND().fit(lambda z: z, lambda x: x[:, 0] * math.nan, (2,))),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()
