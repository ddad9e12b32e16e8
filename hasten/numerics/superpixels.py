"""Super-pixels: an image in compact regions of similar colour."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError


def slic(image: Tensor, segments: int = 16, compactness: float = 0.5, iterations: int = 10) -> Tensor:
    """Labels from 0 of about `segments` super-pixels, shape (height, width).

    k-means over colours and positions, from a regular grid of centres: the squared distance is that of colours plus
    `compactness^2` times that of positions in units of the grid's spacing.

    Args:
        image: (channels, height, width).
        segments: super-pixels wanted.
        compactness: weight of positions; larger regions follow colours less.
        iterations: of k-means.

    Source: Achanta et al. (2012), SLIC superpixels.
    """
    if image.ndim != 3:
        raise InputError(f"image must have shape (channels, height, width), got {tuple(image.shape)}")
    _, height, width = image.shape
    check.integer("segments", segments, 1, height * width)
    check.positive("compactness", compactness)
    check.integer("iterations", iterations, 1)
    spacing = math.sqrt(height * width / segments)
    rows, columns = max(1, round(height / spacing)), max(1, round(width / spacing))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack((y, x), -1).reshape(-1, 2).to(image) * (compactness / spacing)
    points = torch.cat((image.flatten(1).mT, position), 1)
    start = (y * rows // height) * columns + x * columns // width
    labels = start.flatten().to(image.device)
    count = rows * columns
    for _ in range(iterations):
        centres = centroids(labels, points, count)
        labels = torch.cdist(points, centres).argmin(1)
    return labels.unique(return_inverse=True)[1].reshape(height, width)


def centroids(labels: Tensor, points: Tensor, count: int) -> Tensor:
    """Mean point of every label, (count, dimensions); infinite where a label has none."""
    sums = points.new_zeros(count, points.shape[1]).index_add_(0, labels.flatten(), points)
    return sums / torch.bincount(labels.flatten(), minlength=count)[:, None]
