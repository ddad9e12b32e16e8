"""AdaptiveDrag: content moves from handle to target points by optimising a latent, within super-pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.numerics.superpixels import centroids, slic

Features = Callable[[Tensor], Tensor]

CARD = Card(
    name="adaptive-drag",
    family="diffusion",
    title="AdaptiveDrag: Semantic-Driven Dragging on Diffusion-Based Image Editing",
    authors="Chen, Chen, Geng & Bo",
    year=2024,
    arxiv="2410.12696",
    paper_id=337,
    summary="Drags image content from points to points by gradients in a latent, in regions that it finds itself.",
    cost="One forward and backward pass of the feature network per iteration, 80 to 500 iterations.",
    when="To move or reshape parts of an image with nothing but pairs of points.",
    kinds=("invert",),
    needs=("features",),
    search_space={"lr": LogReal(0.003, 0.05), "lam": LogReal(0.01, 1.0), "steps": Choice(40, 80)},
    use=(
        "image = torch.zeros(1, 1, 32, 32)\n"
        "image[..., 10:16, 6:12] = 1.0\n"
        "blur = lambda x: torch.nn.functional.avg_pool2d(x, 5, 1, 2)  # in place of a network's features\n"
        "drag = hasten.diffusion.DragOptimizer({hyper})\n"
        "moved = drag(blur, image, handles=[(12, 9)], targets=[(12, 17)])\n"
        "print(moved.latent.shape, moved.distance)"
    ),
)


@dataclass
class Dragged:
    """What a drag has come to.

    Attributes:
        latent: the optimised latent, like the start.
        handles: where the handles are now, (points, 2) rows and columns.
        distance: largest distance of a handle to its target, in pixels of the features.
        mask: what may change, (height, width) of the features.
        iterations: made.
        budget: iterations allowed in the end.
        path: handles after every iteration, (iterations, points, 2).
    """

    latent: Tensor
    handles: Tensor
    distance: float
    mask: Tensor
    iterations: int
    budget: int
    path: Tensor


@register(CARD)
@dataclass(frozen=True)
class DragOptimizer:
    """Drags by point tracking and motion supervision on features of a latent.

    Every iteration computes features F of the latent. From the second on, each handle p moves to
    `argmin_q |F(q) - F_0(p_0)|_1` over a window of radius `2 d/5`, d the distance of the centre of p's super-pixel to
    the nearest other centre, within that super-pixel and the half-plane towards the target; where these leave fewer
    than `height width/(4 n)` pixels, n the number of super-pixels, within the circle of that radius and the half-plane.
    Then Adam lowers, over all handles farther than a pixel, with u the unit vector to the target and q in the same
    region within radius `r = d/7`, `(2r+1)^2 mean |F(q + u) - stopgrad F(q)|`, plus
    `lam |(keep(x) - keep(x_0)) (1 - mask)|_1`. The mask is the union of the super-pixels along the drags, grown by r.

    Args:
        lr: learning rate of Adam.
        lam: weight of what must stay.
        steps: iterations at first. An iteration in which a handle, not yet arrived, moves less than its way so far
            divided by the budget adds one to the budget.
        max_steps: most iterations; `steps` switches the extension off.
        superpixels: `slic`, or labels of the features' pixels, (height, width) integers.
        segments: super-pixels of `slic`; few, so that each is several times as wide as the pull of the motion loss.
        reach: distance in pixels at which a handle has arrived.

    Cost: one forward and backward pass of the features per iteration. Source: Chen et al. (2024), arXiv 2410.12696.

    Example:
        >>> noisy = invert(denoiser, image, method=DDIMInversion(grid=grid))   # grid from t down to t_min
        >>> moved = DragOptimizer()(features, noisy, [(12, 9)], [(12, 17)], image=image[0])
        >>> edited = sample(denoiser, noise=moved.latent, sampler=DDIM(grid=grid))
    """

    card: ClassVar[Card] = CARD
    lr: float = 0.01
    lam: float = 0.1
    steps: int = 80
    max_steps: int = 500
    superpixels: str | Tensor = field(default="slic", compare=False)
    segments: int = 9
    reach: float = 2.0

    def __post_init__(self) -> None:
        check.positive("lr", self.lr)
        check.nonnegative("lam", self.lam)
        check.integer("steps", self.steps, 1)
        check.integer("max_steps", self.max_steps, self.steps)
        check.integer("segments", self.segments, 2)
        check.positive("reach", self.reach)
        if isinstance(self.superpixels, str):
            check.one_of("superpixels", self.superpixels, ("slic",))

    def __call__(
        self,
        features: Features,
        latent: Tensor,
        handles: Sequence[Any] | Tensor,
        targets: Sequence[Any] | Tensor,
        *,
        image: Tensor | None = None,
        keep: Features | None = None,
        mask: Tensor | None = None,
    ) -> Dragged:
        """Optimise a latent.

        Args:
            features: differentiable features of a latent, (1, channels, height, width).
            latent: start, (1, ...), with the same layout of space.
            handles, targets: pairs of points, (row, column) in the features.
            image: what super-pixels are found in, (channels, height, width) of the features; the features themselves
                if not given.
            keep: what must not change outside the mask as a function of the latent, e.g. the latent one denoising step
                on; the latent itself if not given.
            mask: what may change, (height, width) of the features; found from the super-pixels if not given.

        Raises:
            InputError: a point lies outside, handles and targets are not equally many, or shapes do not fit.
        """
        x = latent.detach().clone().requires_grad_(True)
        kept = keep or (lambda value: value)
        with torch.no_grad():
            first, stays = features(x).clone(), kept(x).clone()
        if first.ndim != 4 or len(first) != 1 or len(latent) != 1:
            raise InputError(
                f"features must have shape (1, channels, height, width) for one latent, got {tuple(first.shape)}"
            )
        size = first.shape[2:]
        start, goal = (_points(name, points, size) for name, points in (("handles", handles), ("targets", targets)))
        if len(start) != len(goal):
            raise InputError(f"handles and targets must be pairs, got {len(start)} and {len(goal)} points")
        regions = Regions(self._labels(first[0] if image is None else image, size))
        mask = regions.along(start, goal) if mask is None else mask.bool().cpu()
        free = F.interpolate(mask[None, None].to(stays), stays.shape[-2:], mode="nearest")
        wanted = [first[0, :, int(r), int(c)] for r, c in start.tolist()]
        p, budget, path = start.clone(), self.steps, []
        optimizer = torch.optim.Adam([x], self.lr)
        iteration = 0
        while iteration < budget:
            with torch.enable_grad():
                now = features(x)
                if iteration > 0:
                    before = p
                    p = torch.stack([regions.track(now[0].detach(), *each) for each in zip(p, goal, wanted)])
                    slow = (p - before).norm(dim=1) < (p - start).norm(dim=1) / budget
                    if bool((slow & ~self._arrived(p, goal)).any()):
                        budget = min(budget + 1, self.max_steps)
                path.append(p)
                iteration += 1
                if bool(self._arrived(p, goal).all()):
                    break
                loss = self.lam * ((kept(x) - stays) * (1.0 - free)).abs().sum()
                for point, end in zip(p, goal):
                    if float((end - point).norm()) >= 1.0:
                        loss = loss + regions.motion(now[0], point, end)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        distance = float((p - goal).norm(dim=1).max())
        return Dragged(x.detach(), p, distance, mask, iteration, budget, torch.stack(path))

    def _arrived(self, p: Tensor, goal: Tensor) -> Tensor:
        return (p - goal).norm(dim=1) < self.reach

    def _labels(self, image: Tensor, size: torch.Size) -> Tensor:
        if isinstance(self.superpixels, Tensor):
            labels = self.superpixels.long().cpu()
        elif tuple(image.shape[1:]) != tuple(size):
            raise InputError(f"image must have the features' pixels {tuple(size)}, got {tuple(image.shape[1:])}")
        else:
            labels = slic(image.detach().float().cpu(), self.segments)
        if tuple(labels.shape) != tuple(size):
            raise InputError(f"superpixels must label the features' pixels {tuple(size)}, got {tuple(labels.shape)}")
        return labels


class Regions:
    """Super-pixels, and the regions around a handle that they make.

    Args:
        labels: (height, width) integers.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels.unique(return_inverse=True)[1].reshape(labels.shape)
        self.count = int(self.labels.max()) + 1
        if self.count < 2:
            raise InputError("there must be at least two super-pixels, got one; raise segments")
        height, width = labels.shape
        grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.points = torch.stack(grid, -1).double()
        self.least = height * width / (4 * self.count)
        centres = centroids(self.labels, self.points.reshape(-1, 2), self.count)
        gaps = torch.cdist(centres, centres).fill_diagonal_(math.inf)
        self.spacing = gaps.amin(1)

    def distance(self, p: Tensor) -> int:
        """From the centre of p's super-pixel to the nearest other centre, in whole pixels."""
        return int(self.spacing[self._label(p)])

    def near(self, p: Tensor, end: Tensor, radius: int) -> Tensor:
        """The super-pixel towards the target, or a half disc if it is too small there; within the square window."""
        offset = self.points - p
        ahead = offset @ (end - p) >= 0.0
        region = (self.labels == self._label(p)) & ahead
        if int(region.sum()) < self.least:
            region = (offset.norm(dim=-1) <= radius) & ahead
        return region & (offset.abs().amax(-1) <= radius)

    def track(self, now: Tensor, p: Tensor, end: Tensor, wanted: Tensor) -> Tensor:
        """Where the feature that began at the handle is now."""
        if float((end - p).norm()) == 0.0:
            return p
        region = self.near(p, end, 2 * self.distance(p) // 5)
        inside = self.points[region]
        away = (now[:, region.to(now.device)] - wanted[:, None]).abs().sum(0)
        return inside[int(away.argmin())]

    def motion(self, now: Tensor, p: Tensor, end: Tensor) -> Tensor:
        """Loss that pulls the region around p a pixel towards the target."""
        radius = self.distance(p) // 7
        places = self.points[self.near(p, end, radius)]
        ahead = places + (end - p) / (end - p).norm()
        gap = (_interpolated(now, ahead) - _interpolated(now, places).detach()).abs()
        return gap.sum() / len(now)

    def along(self, start: Tensor, goal: Tensor) -> Tensor:
        """Union of the super-pixels that the drags cross, grown by the radius of the motion loss."""
        mask = torch.zeros_like(self.labels, dtype=torch.bool)
        for p, end in zip(start, goal):
            for share in torch.linspace(0.0, 1.0, 2 * max(self.labels.shape)):
                mask |= self.labels == self._label(p + float(share) * (end - p))
            mask |= (self.points - end).norm(dim=-1) <= self.distance(p) / 2
        return mask

    def _label(self, p: Tensor) -> int:
        row, column = (round(float(value)) for value in p)
        return int(self.labels[row, column])


def _interpolated(values: Tensor, places: Tensor) -> Tensor:
    """Bilinear values (channels, places) at rows and columns; outside, those of the edge."""
    height, width = values.shape[1:]
    scale = torch.tensor([max(1, width - 1), max(1, height - 1)], dtype=torch.float64)
    grid = (places.flip(-1) / scale * 2.0 - 1.0).to(values)
    sampled = F.grid_sample(values[None], grid[None, None], padding_mode="border", align_corners=True)
    return sampled[0, :, 0]


def _points(name: str, points: Sequence[Any] | Tensor, size: torch.Size) -> Tensor:
    made = torch.as_tensor(points, dtype=torch.float64).cpu()
    if made.ndim != 2 or made.shape[1] != 2 or len(made) == 0:
        raise InputError(f"{name} must be points (row, column), shape (n, 2); got {tuple(made.shape)}")
    limit = torch.tensor(size, dtype=torch.float64) - 1.0
    outside = ((made < 0) | (made > limit)).any(1)
    if bool(outside.any()):
        bad = made[int(outside.int().argmax())].tolist()
        raise InputError(f"{name} must lie inside the features' {tuple(size)} pixels, got {tuple(bad)}")
    return made
