"""Distances between laws and between batches of samples: how good are these samples?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core import check
from hasten.core.errors import InputError
from hasten.numerics.reference import rms

__all__ = [
    "frechet_distance",
    "gaussian_kl",
    "gaussian_w2",
    "mmd2",
    "mode_coverage",
    "random_features",
    "rms",
    "sliced_w2",
]


def gaussian_w2(mean: Any, cov: Any, other_mean: Any, other_cov: Any) -> float:
    """2-Wasserstein distance between two Gaussians, exact.

    `W2^2 = |m - n|^2 + tr(A) + tr(B) - 2 tr((A^{1/2} B A^{1/2})^{1/2})`. Between diagonal covariances, given as vectors
    of variances, this is `|m - n|^2 + sum_k (sqrt(a_k) - sqrt(b_k))^2`, which does not cancel.

    Args:
        mean, other_mean: shape (d,).
        cov, other_cov: both of shape (d, d), or both variances of shape (d,).
    """
    mean, cov, other_mean, other_cov = (_double(value) for value in (mean, cov, other_mean, other_cov))
    if cov.shape != other_cov.shape or cov.ndim not in (1, 2) or cov.shape[-1] != mean.shape[-1]:
        raise InputError(
            f"covariances must both have shape (d, d) or (d,) with d={mean.shape[-1]}, got {tuple(cov.shape)} and "
            f"{tuple(other_cov.shape)}"
        )
    shift = (mean - other_mean).square().sum()
    if cov.ndim == 1:
        return float((shift + (_root(cov) - _root(other_cov)).square().sum()).sqrt())
    values, vectors = torch.linalg.eigh(cov)
    half = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(half @ other_cov @ half).clamp(min=0).sqrt().sum()
    return float((shift + cov.trace() + other_cov.trace() - 2 * cross).clamp(min=0).sqrt())


def gaussian_kl(variances: Any, other_variances: Any, mean: Any = 0.0, other_mean: Any = 0.0) -> float:
    """Divergence `KL(N(mean, variances) | N(other_mean, other_variances))` of diagonal Gaussians.

    Shapes (d,), or of any shape that broadcasts; all entries are independent dimensions.
    """
    first, second = _double(variances), _double(other_variances)
    if not bool((first > 0).all()) or not bool((second > 0).all()):
        raise InputError("variances must be positive: the divergence to or from a point is infinite")
    excess = (first - second) / second
    shift = (_double(mean) - _double(other_mean)).square() / second
    return float(0.5 * (excess - torch.log1p(excess) + shift).sum())


def sliced_w2(x: Tensor, other: Tensor, projections: int = 128, generator: torch.Generator | None = None) -> float:
    """Root mean square, over random directions, of the 2-Wasserstein distance between the projected batches.

    In one dimension the optimal plan pairs the sorted samples, so this costs a sort per direction.

    Args:
        x, other: batches of equal size, shape (batch, ...).
        projections: number of directions.
        generator: source of the directions; a fixed one if not given, so that equal arguments give equal distances.
    """
    check.integer("projections", projections, 1)
    x, other = _batches(x, other)
    if len(x) != len(other):
        raise InputError(f"batches must be equally large, got {len(x)} and {len(other)} samples; draw equally many")
    generator = generator or torch.Generator().manual_seed(0)
    directions = torch.randn(x.shape[1], projections, dtype=torch.float64, generator=generator).to(x)
    directions = directions / directions.norm(dim=0)
    gap = (x @ directions).sort(0).values - (other @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


def mmd2(x: Tensor, other: Tensor, bandwidth: float | None = None) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy under the Gaussian kernel; can be below zero.

    The kernel is `exp(-|x - y|^2/(2 bandwidth^2))`. Costs (n + m)^2 distances.

    Args:
        x, other: batches of at least two samples, shape (batch, ...).
        bandwidth: of the kernel; the median distance in the joint batch if not given.
    """
    x, other = _batches(x, other)
    n, m = len(x), len(other)
    if min(n, m) < 2:
        raise InputError(f"an unbiased estimate needs two samples in each batch, got {n} and {m}")
    joint = torch.cat((x, other))
    squared = torch.cdist(joint, joint).square()
    if bandwidth is None:
        upper = torch.triu_indices(n + m, n + m, 1)
        bandwidth = max(math.sqrt(float(squared[upper[0], upper[1]].median())), 1e-12)
    kernel = torch.exp(squared / (-2.0 * check.positive("bandwidth", bandwidth) ** 2))
    within = (kernel[:n, :n].sum() - n) / (n * (n - 1)) + (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within - 2.0 * kernel[:n, n:].mean())


def mode_coverage(x: Tensor, modes: Any, radius: float, share: float = 0.0) -> float:
    """Fraction of modes that have samples: a sample counts for its nearest mode, if no farther than `radius`.

    Args:
        x: samples, shape (batch, ...).
        modes: centres, shape (modes, d).
        radius: how far a sample may be from its mode.
        share: fraction of all samples that a mode must exceed to be covered.
    """
    check.positive("radius", radius)
    check.fraction("share", share)
    x, modes = _batches(x, torch.as_tensor(modes))
    distance, nearest = torch.cdist(x, modes).min(1)
    counts = torch.bincount(nearest[distance <= radius], minlength=len(modes))
    return float((counts > share * len(x)).double().mean())


def random_features(images: Tensor, width: int = 8) -> Tensor:
    """Features of images from a fixed convolutional network with random weights, shape (batch, 8 width), float64.

    Two layers of 3x3 convolutions with weights of unit gain and leaky rectifiers, the second with stride 2; each
    channel gives its means over the four quarters of the image, after the first layer and after the second.

    Args:
        images: shape (batch, channels, height, width).
        width: channels of each layer.
    """
    if images.ndim != 4 or len(images) == 0:
        raise InputError(f"images must have shape (batch, channels, height, width), got {tuple(images.shape)}")
    check.integer("width", width, 1)
    generator = torch.Generator().manual_seed(0)
    found, h = [], images.double()
    for stride in (1, 2):
        weight = torch.randn(width, h.shape[1], 3, 3, generator=generator, dtype=torch.float64)
        bias = 0.5 * torch.randn(width, generator=generator, dtype=torch.float64)
        gain = math.sqrt(2.0 / (9 * h.shape[1]))
        h = F.leaky_relu(F.conv2d(h, gain * weight.to(h), bias.to(h), stride=stride, padding=1), 0.1)
        found.append(F.adaptive_avg_pool2d(h, 2).flatten(1))
    return torch.cat(found, dim=1)


def frechet_distance(x: Tensor, other: Tensor, features: Callable[[Tensor], Tensor] = random_features) -> float:
    """Squared 2-Wasserstein distance between Gaussians with the mean and covariance of the features (as FID).

    Few samples bias it upwards: compare only batches of equal size.

    Args:
        x, other: batches, by default of images (batch, channels, height, width).
        features: makes (batch, d) of a batch.

    Source: Heusel et al. (2017), arXiv 1706.08500; random features need no download and order models of small images.
    """
    laws: list[Tensor] = []
    for batch in (x, other):
        found = features(batch).double()
        if found.ndim != 2 or len(found) < 2:
            raise InputError(f"features must be (batch, d) of at least two samples, got {tuple(found.shape)}")
        laws += [found.mean(0), found.mT.cov().reshape(found.shape[1], -1)]
    return gaussian_w2(*laws) ** 2


def _double(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _root(variances: Tensor) -> Tensor:
    if bool((variances < 0).any()):
        raise InputError("variances must not be negative")
    return variances.sqrt()


def _batches(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    x, other = x.double().flatten(1), other.double().flatten(1)
    if x.shape[1] != other.shape[1] or 0 in (len(x), len(other)):
        raise InputError(
            f"both batches must hold samples of one dimension, got {tuple(x.shape)} and {tuple(other.shape)}"
        )
    return x, other
