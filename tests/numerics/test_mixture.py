"""Exact mixtures: density, score, divergence and posterior mean belong together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.errors import InputError
from hasten.numerics.mixture import Gaussian, GaussianMixture, circle, classes
from hasten.numerics.noise import VPLinear
from hasten.numerics.reference import rk4_lambda

levels = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 3.0))


def correlated() -> GaussianMixture:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    means = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, covs=root @ root.mT, weights=[1.0, 2.0, 3.0])


def points(dim: int, count: int = 6) -> Tensor:
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


MIXTURES = [circle(), circle(3, 5), classes(), correlated(), Gaussian([0.2, 1.0, 3.0], mean=[1.0, 0.0, -1.0])]


@pytest.mark.parametrize("mixture", MIXTURES)
@given(level=levels)
@settings(max_examples=15)
def test_score_and_divergence_are_derivatives_of_the_log_density(
    mixture: GaussianMixture, level: tuple[float, float]
) -> None:
    x = points(mixture.dim).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_prob(x, *level).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), *level), score)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: mixture.score(row[None], *level)[0]))(x.detach())
    torch.testing.assert_close(
        mixture.divergence(x.detach(), *level), jacobian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("mixture", MIXTURES)
@given(level=levels)
@settings(max_examples=15)
def test_posterior_mean_obeys_tweedie(mixture: GaussianMixture, level: tuple[float, float]) -> None:
    alpha, sigma = level
    x = points(mixture.dim)
    score = mixture.score(x, alpha, sigma)
    torch.testing.assert_close(alpha * mixture.x0(x, alpha, sigma), x + sigma**2 * score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.eps(x, alpha, sigma), -sigma * score)


def test_posterior_mean_in_one_dimension_is_the_integral() -> None:
    mixture = GaussianMixture([[-1.0], [2.0]], [0.3, 0.05], [0.4, 0.6])
    clean = torch.linspace(-12, 12, 40001, dtype=torch.float64)
    prior = mixture.log_prob(clean[:, None]).exp()
    assert float(torch.trapezoid(prior, clean)) == pytest.approx(1.0, abs=1e-6)
    for x in (-0.5, 0.3, 1.7):
        joint = prior * torch.exp(-0.5 * ((x - 0.8 * clean) / 0.6) ** 2)
        mean = float(torch.trapezoid(joint * clean, clean) / torch.trapezoid(joint, clean))
        assert float(mixture.x0(torch.tensor([[x]], dtype=torch.float64), 0.8, 0.6)) == pytest.approx(mean, rel=1e-6)


def test_variances_and_diagonal_covariances_agree() -> None:
    means = points(3, 2)
    variances = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 0.5]])
    plain = GaussianMixture(means, variances)
    full = GaussianMixture(means, covs=torch.diag_embed(variances))
    x = points(3)
    for quantity in ("x0", "score", "log_prob", "divergence"):
        torch.testing.assert_close(getattr(plain, quantity)(x, 0.7, 0.5), getattr(full, quantity)(x, 0.7, 0.5))


def test_labels_choose_the_component() -> None:
    mixture = classes(4, 3)
    x, labels = points(3, 4), torch.tensor([2, 0, -1, 3])
    known = mixture.x0(x, 0.6, 0.8, labels)
    for row, label in enumerate(labels.tolist()):
        alone = mixture if label < 0 else GaussianMixture(mixture.means[label][None], 0.3)
        torch.testing.assert_close(known[row], alone.x0(x[row][None], 0.6, 0.8)[0])
    density = mixture.log_prob(x[:1], 0.6, 0.8, labels[:1])
    torch.testing.assert_close(density, GaussianMixture(mixture.means[2][None], 0.3).log_prob(x[:1], 0.6, 0.8))
    conditional = mixture.denoiser(VPLinear(), "x0").given(labels)
    t = 0.4
    expected = mixture.x0(x, VPLinear().alpha(t), VPLinear().sigma(t), labels)
    torch.testing.assert_close(conditional.x0(x, t), expected)


def test_draws_have_the_mixture_s_moments() -> None:
    mixture = correlated()
    draws = mixture.sample(200_000, torch.Generator().manual_seed(0))
    mean = mixture.weights @ mixture.means
    torch.testing.assert_close(draws.mean(0), mean, atol=0.03, rtol=0)
    assert not torch.equal(draws, mixture.sample(200_000, torch.Generator().manual_seed(1)))
    covs = mixture._axes @ torch.diag_embed(mixture.variances) @ mixture._axes.mT  # type: ignore[operator]
    centred = mixture.means - mean
    spread = torch.einsum("k,kij->ij", mixture.weights, covs + centred[:, :, None] * centred[:, None])
    torch.testing.assert_close(draws.T.cov(), spread, atol=0.15, rtol=0.02)


def test_one_time_per_row() -> None:
    mixture, schedule = circle(), VPLinear()
    x, t = points(2), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    together = mixture.denoiser(schedule).eps(x, t)
    apart = torch.cat([mixture.denoiser(schedule).eps(row[None], float(s)) for row, s in zip(x, t)])
    torch.testing.assert_close(together, apart)


def test_standard_mixture() -> None:
    mixture = circle()
    torch.testing.assert_close(mixture.weights, torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10], dtype=torch.float64))
    torch.testing.assert_close(mixture.means.norm(dim=1), torch.full((5,), 2.0, dtype=torch.float64))
    assert bool((mixture.variances == 0.15).all())


def test_gaussian_flow_is_the_reference_solution() -> None:
    data = Gaussian([0.04, 1.0, 5.0], mean=[1.0, -2.0, 0.5])
    noise = points(3)
    exact = data.flow(noise, VPLinear())
    torch.testing.assert_close(rk4_lambda(data.denoiser(VPLinear()), noise, steps=400), exact, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianMixture([1.0, 2.0], 0.1),
        lambda: GaussianMixture([[1.0], [2.0]]),
        lambda: GaussianMixture([[1.0], [2.0]], 0.1, covs=torch.ones(2, 1, 1)),
        lambda: GaussianMixture([[1.0], [2.0]], -0.1),
        lambda: GaussianMixture([[1.0], [2.0]], 0.1, [1.0]),
        lambda: GaussianMixture([[1.0], [2.0]], 0.1, [1.0, 0.0]),
        lambda: GaussianMixture([[1.0, 0.0]], covs=[[[1.0, 0.5], [0.0, 1.0]]]),
        lambda: circle().x0(torch.zeros(3, 4), 0.5, 0.5),
        lambda: circle().denoiser(VPLinear(), "v"),
        lambda: circle(components=0),
    ],
)
def test_refuses_bad_input(make) -> None:
    with pytest.raises(InputError):
        make()
