"""Features and control of a U-Net of diffusers, whose blocks return tuples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.diffusion import ControlNeXt, Denoiser, DiscreteVP, LateConstraint, LightControl, fit_aligner, sample


class Wrapped(nn.Module):
    """The model with tensors for answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t).sample


@pytest.fixture(scope="module")
def unet() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install hasten[bench])")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
        )
    return Wrapped(model.requires_grad_(False).eval())


def noise() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_late_constraint(unet) -> None:
    denoiser, blocks = Denoiser(unet, DiscreteVP.linear()), ("model.down_blocks.0", "model.mid_block")
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    maps = F.avg_pool2d(images, 2)
    aligner = fit_aligner(denoiser, blocks, images, maps, steps=3, batch=8)
    free = sample(denoiser, noise=noise(), sampler="dpmpp-2m", steps=4)
    out = sample(
        denoiser, noise=noise(), sampler="dpmpp-2m", steps=4, guidance=LateConstraint(aligner, maps[:4], blocks)
    )
    assert out.shape == free.shape
    assert bool(out.isfinite().all())
    assert float((out - free).abs().max()) > 1e-3


def test_control(unet) -> None:
    controlled = ControlNeXt(unet, "model.down_blocks.0", LightControl(1, 8, out_channels=8))
    outs = [
        sample(Denoiser(net, DiscreteVP.linear()), noise=noise(), sampler="ddim", steps=3)
        for net in (unet, controlled.given(torch.rand(4, 1, 8, 8)), unet)
    ]
    assert float((outs[1] - outs[0]).abs().max()) > 1e-3
    assert torch.equal(outs[2], outs[0])
