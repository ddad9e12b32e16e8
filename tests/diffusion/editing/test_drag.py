"""AdaptiveDrag: super-pixels, regions, the motion loss against plain loops, drags, a model's latent, bad inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, DDIMInversion, Denoiser, DragOptimizer, FlowMatching, invert, sample
from hasten.diffusion.editing.drag import Regions
from hasten.numerics.superpixels import slic


def blurred(x: Tensor) -> Tensor:
    parts = [x]
    for width in (3, 7, 11):
        parts.append(torch.nn.functional.avg_pool2d(x, width, 1, width // 2, count_include_pad=False))
    return torch.cat(parts, 1)


def blob(row: float = 12.0, column: float = 10.0, size: int = 28) -> Tensor:
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 12.5)[None, None]


QUARTERS = (torch.arange(12)[:, None] // 6) * 2 + torch.arange(12) // 6


def test_superpixels_follow_colours() -> None:
    image = torch.zeros(1, 16, 16)
    image[:, :, 7:] = 1.0
    labels = slic(image, 4, compactness=0.2)
    assert labels.max() == 3
    assert set(labels[:, :7].unique().tolist()).isdisjoint(labels[:, 7:].unique().tolist())
    assert torch.equal(slic(torch.zeros(1, 12, 12), 4), QUARTERS)


def test_regions_are_superpixels_towards_the_target() -> None:
    regions = Regions(QUARTERS)
    p, end = torch.tensor([2.0, 2.0]).double(), torch.tensor([2.0, 9.0]).double()
    assert regions.distance(p) == 6
    region = regions.near(p, end, 3)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[0:6, 2:6] = True
    assert torch.equal(region, expected)
    at_edge = torch.tensor([2.0, 5.0]).double()
    disc = regions.near(at_edge, end, 2)
    assert disc[2, 7]
    assert not disc[2, 4]
    assert int(disc.sum()) == 9, "a column of the super-pixel is left: half a disc of radius 2 instead"
    mask = regions.along(p[None], end[None])
    assert mask[:6].all()
    assert not mask[7:].any()


def test_tracking_finds_the_moved_feature() -> None:
    regions = Regions(torch.arange(28)[:, None] // 14 * 2 + torch.arange(28) // 14)
    before, after = blurred(blob(8.0, 6.0))[0], blurred(blob(8.0, 9.0))[0]
    p, end = torch.tensor([8.0, 6.0]).double(), torch.tensor([8.0, 13.0]).double()
    assert regions.track(after, p, end, before[:, 8, 6]).tolist() == [8.0, 9.0]


def test_motion_loss_is_the_published_sum() -> None:
    """Plain loops over the patch: bilinear value one unit towards the target against the present value."""
    labels = torch.arange(28)[:, None] // 14 * 2 + torch.arange(28) // 14
    regions = Regions(labels)
    features = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, end = torch.tensor([6.0, 7.0]).double(), torch.tensor([9.0, 11.0]).double()
    radius, total = 14 // 7, 0.0
    for row in range(6 - radius, 7 + radius):
        for column in range(7 - radius, 8 + radius):
            if (row - 6) * 3 + (column - 7) * 4 < 0 or labels[row, column] != labels[6, 7]:
                continue
            y, x = row + 0.6, column + 0.8
            top, left = math.floor(y), math.floor(x)
            v, u = y - top, x - left
            corner = features[:, top : top + 2, left : left + 2]
            value = (1 - v) * ((1 - u) * corner[:, 0, 0] + u * corner[:, 0, 1])
            value = value + v * ((1 - u) * corner[:, 1, 0] + u * corner[:, 1, 1])
            total += float((value - features[:, row, column]).abs().sum()) / 3
    patch = (2 * radius + 1) ** 2
    mean = total / patch
    assert float(regions.motion(features, p, end)) == pytest.approx(patch * mean)


@pytest.mark.parametrize("target", [(12.0, 17.0), (17.0, 15.0)])
def test_handle_arrives_and_the_rest_stays(target: tuple[float, float]) -> None:
    image = blob()
    before = image.clone()
    made = DragOptimizer(lam=1.0)(blurred, image, [(12.0, 10.0)], [target])
    assert made.distance < 2.0
    assert made.iterations <= made.budget <= 500
    assert made.path.shape == (made.iterations, 1, 2)
    assert float(((made.latent - image)[0, 0].abs() * ~made.mask).max()) < 0.02
    row, column = (round(value) for value in target)
    assert float(made.latent[0, 0, row, column]) > float(image[0, 0, row, column]) + 0.3
    assert torch.equal(image, before)


def test_budget_grows_only_where_allowed() -> None:
    far = ([(12.0, 8.0)], [(12.0, 20.0)])
    fixed = DragOptimizer(steps=20, max_steps=20)(blurred, blob(12.0, 8.0), *far)
    assert (fixed.iterations, fixed.budget) == (20, 20)
    longer = DragOptimizer(steps=20, max_steps=60)(blurred, blob(12.0, 8.0), *far)
    assert 20 < longer.iterations <= longer.budget <= 60
    assert longer.distance < fixed.distance


def test_two_handles_own_labels_and_mask() -> None:
    image = blob(8.0, 8.0) + blob(20.0, 20.0)
    labels = torch.arange(28)[:, None] // 10 * 3 + torch.arange(28) // 10
    mask = torch.ones(28, 28)
    made = DragOptimizer(superpixels=labels)(blurred, image, [(8, 8), (20, 20)], [(8, 8), (20, 15)], mask=mask)
    assert made.handles[0].tolist() == [8.0, 8.0], "a handle at its target stays"
    assert made.mask.all()
    assert made.handles.shape == (2, 2)


def test_drags_the_latent_of_a_model() -> None:
    """Gaussian data have an exact denoiser; the edit is optimised at t = 0.4 and denoised again."""
    denoiser = Denoiser(lambda x, t: x * (t / ((1 - t) ** 2 + t**2))[:, None, None, None], FlowMatching(), "epsilon")
    grid = tuple(0.4 - i * 0.039 for i in range(11))
    image = blob()
    noisy = invert(denoiser, image, method=DDIMInversion(grid=grid))
    back = sample(denoiser, noise=noisy, sampler=DDIM(grid=grid))
    assert float((back - image).abs().max()) < 0.05
    drag = DragOptimizer(lam=1.0)
    made = drag(blurred, noisy, [(12.0, 10.0)], [(12.0, 17.0)], image=image[0], keep=lambda x: denoiser.x0(x, 0.4))
    edited = sample(denoiser, noise=made.latent, sampler=DDIM(grid=grid))
    assert made.distance < 2.0
    assert float(edited[0, 0, 12, 17]) > float(image[0, 0, 12, 17]) + 0.3


DRAG = DragOptimizer()


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("handles must lie inside", lambda: DRAG(blurred, blob(), [(12, 28)], [(12, 12)])),
        ("targets must lie inside", lambda: DRAG(blurred, blob(), [(12, 12)], [(-1, 12)])),
        ("pairs", lambda: DRAG(blurred, blob(), [(12, 12)], [(3, 3), (4, 4)])),
        ("points", lambda: DRAG(blurred, blob(), [12, 12], [(3, 3)])),
        ("features must have shape", lambda: DRAG(lambda x: x[0], blob(), [(12, 12)], [(3, 3)])),
        ("superpixels must label", lambda: DragOptimizer(superpixels=QUARTERS)(blurred, blob(), [(1, 1)], [(3, 3)])),
        ("image must have", lambda: DRAG(blurred, blob(), [(1, 1)], [(3, 3)], image=torch.zeros(1, 8, 8))),
        ("two super-pixels", lambda: Regions(torch.zeros(4, 4, dtype=torch.long))),
        ("superpixels", lambda: DragOptimizer(superpixels="sam")),
        ("max_steps", lambda: DragOptimizer(steps=80, max_steps=40)),
        ("lr", lambda: DragOptimizer(lr=0.0)),
        ("segments", lambda: slic(torch.zeros(1, 4, 4), 17)),
        ("image must", lambda: slic(torch.zeros(4, 4), 2)),
    ],
)
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()
