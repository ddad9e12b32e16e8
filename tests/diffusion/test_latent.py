"""A denoiser in the latents of an autoencoder, diffusers' own among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import Denoiser, LatentDiffusion, VPLinear, sample

DENOISER = Denoiser(lambda x, t: 0.5 * x, VPLinear())


class Halves:
    """An autoencoder that halves the pixels: latents are three times the means of 2x2 squares, plus one."""

    def encode(self, images: Tensor) -> Tensor:
        return 3.0 * nn.functional.avg_pool2d(images, 2) + 1.0

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate((latents - 1.0) / 3.0, scale_factor=2.0)


@pytest.fixture(scope="module")
def kl() -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install hasten[bench])")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            norm_num_groups=4,
            scaling_factor=0.7,
        ).eval()


def images(batch: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def test_samples_are_decoded_from_the_scale_of_the_denoiser(kl) -> None:
    latent = LatentDiffusion(kl, DENOISER)
    assert (latent.scale, latent.shift) == (0.7, 0.0)
    options: dict[str, Any] = {"sampler": "ddim", "steps": 3}
    noise = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = latent.sample(noise=noise, **options)
    assert found.shape == (2, 3, 16, 16)
    assert not found.requires_grad
    with torch.no_grad():
        expected = kl.decode(sample(DENOISER, noise=noise, **options) / 0.7).sample
    torch.testing.assert_close(found, expected)
    drawn = latent.sample((2, 2, 8, 8), generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(drawn, found)


def test_encoding_is_the_posterior_of_diffusers(kl) -> None:
    latent = LatentDiffusion(kl, DENOISER, scale=2.0, shift=0.25)
    with torch.no_grad():
        law = kl.encode(images()).latent_dist
    torch.testing.assert_close(latent.encode(images()), (law.mode() - 0.25) * 2.0)
    drawn = latent.encode(images(), torch.Generator().manual_seed(3))
    noise = torch.randn(law.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, (law.mean + law.std * noise - 0.25) * 2.0)
    assert not drawn.requires_grad


def test_scale_is_one_over_the_spread(kl) -> None:
    for vae, batch in ((kl, images(8)), (Halves(), images(8, 1))):
        latent = LatentDiffusion(vae, DENOISER).rescaled(batch)
        assert float(latent.encode(batch).std()) == pytest.approx(1.0, rel=1e-5)
    assert LatentDiffusion(kl, DENOISER).scale == 0.7


def test_any_autoencoder_of_tensors_will_do() -> None:
    flat = nn.functional.interpolate(torch.randn(2, 1, 4, 4, dtype=torch.float64), scale_factor=2.0)
    latent = LatentDiffusion(Halves(), DENOISER, shift=1.0).rescaled(flat)
    torch.testing.assert_close(latent.decode(latent.encode(flat)), flat)
    assert latent.sample((2, 1, 4, 4), "ddim", 3, dtype=torch.float64).shape == (2, 1, 8, 8)


def test_autoencoder_of_another_precision(kl) -> None:
    latent = LatentDiffusion(kl, DENOISER)
    assert latent.sample((1, 2, 8, 8), "ddim", 2, dtype=torch.float64).dtype == torch.float32


def test_condition_reaches_the_denoiser() -> None:
    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return x * cond.reshape(-1, 1, 1, 1)

    latent = LatentDiffusion(Halves(), Denoiser(network, VPLinear()))
    noise = torch.ones(2, 1, 2, 2)
    out = latent.given(torch.tensor([0.0, 1.0])).sample(noise=noise, sampler="ddim", steps=3)
    assert float((out[0] - out[1]).abs().max()) > 0.1
    assert latent.denoiser.cond is None


def test_refusals() -> None:
    with pytest.raises(InputError, match="encode and decode"):
        LatentDiffusion(nn.Linear(2, 2), DENOISER)
    with pytest.raises(InputError, match="scale"):
        LatentDiffusion(Halves(), DENOISER, scale=0.0)
    with pytest.raises(InputError, match="do not vary"):
        LatentDiffusion(Halves(), DENOISER).rescaled(torch.zeros(2, 1, 4, 4))
