"""Distances between laws and samples against closed forms and independent computations."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import sqrtm

from hasten.core.errors import InputError
from hasten.numerics.metrics import (
    frechet_distance,
    gaussian_kl,
    gaussian_w2,
    mmd2,
    mode_coverage,
    random_features,
    sliced_w2,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_w2_of_gaussians_is_the_textbook_formula() -> None:
    a, b = draw(3, 3), draw(3, 3, seed=1)
    a, b = a @ a.mT, b @ b.mT + torch.eye(3)
    m, n = draw(3, seed=2), draw(3, seed=3)
    root = sqrtm(a.numpy())
    cross = sqrtm(root @ b.numpy() @ root).real
    expected = math.sqrt(float((m - n).square().sum() + a.trace() + b.trace()) - 2 * cross.trace())
    assert gaussian_w2(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    assert gaussian_w2(m, a, n, b) == pytest.approx(gaussian_w2(n, b, m, a), rel=1e-9)


def test_w2_of_variances_is_that_of_diagonal_matrices() -> None:
    v, w, m = torch.tensor([0.3, 2.0]), torch.tensor([1.0, 0.5]), torch.tensor([0.1, -0.2])
    assert gaussian_w2(m, v, 0 * m, w) == pytest.approx(gaussian_w2(m, v.diag(), 0 * m, w.diag()), rel=1e-6)
    assert gaussian_w2([0.0], [1.0], [0.0], [(1 + 1e-9) ** 2]) == pytest.approx(1e-9, rel=1e-6)


def test_kl_of_gaussians_is_torchs() -> None:
    normal = torch.distributions.Normal
    first, second = normal(torch.tensor([0.1, 0.5]), 1.3), normal(torch.tensor([0.0, 1.0]), 0.7)
    expected = float(torch.distributions.kl_divergence(first, second).sum())
    assert gaussian_kl([1.69, 1.69], [0.49, 0.49], [0.1, 0.5], [0.0, 1.0]) == pytest.approx(expected, rel=1e-6)
    assert gaussian_kl([1 + 1e-8], [1.0]) == pytest.approx(0.25e-16, rel=1e-3)


def test_sliced_w2_of_a_shift() -> None:
    """A shift by v moves each projection by its part along the direction, whose mean square is |v|^2/d."""
    x = draw(200, 2)
    moved = x + torch.tensor([3.0, 4.0])
    assert sliced_w2(x, moved, 4000) == pytest.approx(5 / math.sqrt(2), rel=0.05)
    assert sliced_w2(x, x[torch.randperm(200)]) == pytest.approx(0.0, abs=1e-12)


def test_mmd_is_zero_in_the_mean_for_equal_laws_and_the_double_sum_otherwise() -> None:
    same = [mmd2(draw(60, 2, seed=2 * k), draw(60, 2, seed=2 * k + 1)) for k in range(30)]
    assert abs(sum(same) / 30) < 0.003
    assert min(same) < 0 < max(same)
    x, y = draw(3, 1), draw(4, 1, seed=1) + 1

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * 0.49))

    within_x = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 6
    within_y = sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 12
    across = sum(kernel(a, b) for a in x for b in y) / 12
    assert mmd2(x, y, bandwidth=0.7) == pytest.approx(within_x + within_y - 2 * across, rel=1e-9)


def test_mode_coverage_counts_modes_with_samples() -> None:
    modes = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    x = torch.tensor([[0.1, 0.0], [5.0, 0.2], [5.1, 0.0], [0.0, 2.4], [0.0, -0.1]])
    assert mode_coverage(x, modes, radius=0.5) == 0.5
    assert mode_coverage(x, modes, radius=3.0) == 0.5
    assert mode_coverage(x, modes, radius=0.5, share=0.4) == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="covariances"):
        gaussian_w2([0.0, 0.0], [1.0, 1.0], [0.0, 0.0], torch.eye(2))
    with pytest.raises(InputError, match="variances"):
        gaussian_kl([0.0], [1.0])
    with pytest.raises(InputError, match="equally large"):
        sliced_w2(draw(4, 2), draw(5, 2))
    with pytest.raises(InputError, match="one dimension"):
        mmd2(draw(4, 2), draw(4, 3))
    with pytest.raises(InputError, match="radius"):
        mode_coverage(draw(4, 2), draw(2, 2), radius=0.0)


def test_frechet_distance_is_that_of_the_fitted_gaussians() -> None:
    x, y = draw(300, 4), 1.5 * draw(300, 4, seed=1) + 0.2
    expected = gaussian_w2(x.mean(0), x.mT.cov(), y.mean(0), y.mT.cov()) ** 2
    assert frechet_distance(x, y, features=lambda batch: batch) == pytest.approx(expected)
    assert frechet_distance(x, x, features=lambda batch: batch) == pytest.approx(0.0, abs=1e-9)


def test_random_features_order_images_by_their_likeness() -> None:
    """A spot in noise: the more noise, and the farther the spot moves, the larger the distance."""
    clean = 0.1 * draw(400, 1, 8, 8)
    clean[:, :, 2:4, 2:4] += 1.0
    other = 0.1 * draw(400, 1, 8, 8, seed=1)
    other[:, :, 2:4, 2:4] += 1.0
    levels = [frechet_distance(clean, other + s * draw(400, 1, 8, 8, seed=2)) for s in (0.0, 0.2, 0.5)]
    assert levels[0] < 0.2 * levels[1] < 0.1 * levels[2]
    assert frechet_distance(clean, other.flip(-1)) > 10 * levels[0]
    assert random_features(clean).shape == (400, 64)
    assert torch.equal(random_features(clean), random_features(clean))


def test_features_at_the_door() -> None:
    with pytest.raises(InputError, match="images must have shape"):
        random_features(draw(4, 64))
    with pytest.raises(InputError, match="at least two"):
        frechet_distance(draw(1, 1, 8, 8), draw(5, 1, 8, 8))
