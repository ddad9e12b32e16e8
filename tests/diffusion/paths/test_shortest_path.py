"""Shortest-path diffusion against published tables, its geodesic, its law in simulation and its bad inputs."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import Denoiser, ShortestPathSampler, ShortestPathSchedule, VPLinear, sample
from hasten.diffusion.paths.shortest_path import fisher_length, spectral_kl

PATH = ShortestPathSchedule.power_law(4)
SPECTRUM = torch.tensor(PATH.spectrum, dtype=torch.float64)

# mtkresearch/shortest-path-diffusion at 096f0545, nonunif_diffusion/script_util.py: the formulas of
# create_fourier_diffusion in float64 with image_size=4, c1=1.59, c2=0.0086, m=2 and six levels.
TIMES = [(1 + i * 0.8) / 6 for i in range(6)]
ALPHA_BAR_2 = [
    [0.013216634898447974, 0.5115148073551607, 0.6766971062152115],
    [0.5115148073551607, 0.596127974602359, 0.7010501795602484],
    [0.6766971062152115, 0.7010501795602484, 0.7490600285795083],
]
BETAS_5 = [
    [0.7743843108550961, 0.4610203774549049, 0.41019096894802043],
    [0.4610203774549049, 0.4355115403158776, 0.4021043181713919],
]


def test_tables_are_the_authors() -> None:
    golden = torch.tensor(ALPHA_BAR_2, dtype=torch.float64)
    torch.testing.assert_close(PATH.alpha_bar(TIMES[2])[:3, :3], golden, rtol=1e-6, atol=0)
    betas = PATH.betas([*reversed(TIMES), 0.0])
    assert betas.shape == (6, 4, 4)
    torch.testing.assert_close(betas[0, :2, :3], torch.tensor(BETAS_5, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(betas[-1], 1 - PATH.alpha_bar(TIMES[0]), rtol=1e-9, atol=0)


def test_power_of_noisy_images_is_the_geodesic() -> None:
    for t in (0.0, 0.3, 0.9, 1.0):
        left = PATH.alpha_bar(t)
        torch.testing.assert_close(left * SPECTRUM + 1 - left, SPECTRUM ** (1 - t), rtol=1e-9, atol=1e-12)
    white = ShortestPathSchedule([[1.0, 2.0], [2.0, 1.0 + 1e-12]])
    assert white.alpha_bar(0.3)[0, 0] == pytest.approx(0.7)
    assert white.alpha_bar(0.3)[1, 1] == pytest.approx(0.7)


def test_no_path_is_shorter() -> None:
    geodesic = math.sqrt(float(0.5 * SPECTRUM.log().square().sum()))
    assert fisher_length(PATH, SPECTRUM) == pytest.approx(geodesic, rel=1e-6)
    assert fisher_length(VPLinear(), SPECTRUM) > 1.005 * geodesic
    assert fisher_length(ShortestPathSchedule(SPECTRUM * 1.5 + 0.3), SPECTRUM) > geodesic


def coloured(count: int, seed: int) -> torch.Tensor:
    noise = torch.randn(count, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.fft.ifft2(torch.fft.fft2(noise, norm="ortho") * SPECTRUM.sqrt(), norm="ortho").real


def power(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(x, norm="ortho").abs().square().mean(0)


def test_noisy_images_have_the_power_of_the_path_and_fit_finds_it() -> None:
    images = coloured(20000, 0)
    eps = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(power(PATH.noisy(images, eps, 0.4)), SPECTRUM**0.6, rtol=0.05, atol=0)
    found = torch.tensor(ShortestPathSchedule.fit(images).spectrum, dtype=torch.float64)
    torch.testing.assert_close(found, SPECTRUM, rtol=0.05, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_power_of_the_recursion(eta: float) -> None:
    mild = ShortestPathSchedule(SPECTRUM.clamp(max=5.0))
    data = torch.tensor(mild.spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(16000, 1, 4, 4, dtype=torch.float64, generator=generator)
    model = Denoiser(mild.gaussian_eps, mild.clock)
    x = sample(model, noise=noise, sampler=ShortestPathSampler(mild, eta), steps=40, generator=generator)
    drawn = power(x[:, 0])
    expected = spectral_kl(mild.levels([i / 40 for i in range(40, -1, -1)]), data, eta)
    ratio = data / drawn
    assert float(0.5 * (ratio - 1 - ratio.log()).sum()) == pytest.approx(expected, rel=0.25, abs=5e-3)


def test_flat_spectrum_is_ordinary_diffusion() -> None:
    """All frequencies alike: one ancestral step in pixels, by the textbook formula."""
    flat = ShortestPathSchedule(torch.full((4, 4), 3.0))
    grid = (0.8, 0.5)
    now, then = (float(flat.alpha_bar(t)[0, 0]) for t in grid)
    x = coloured(2, 3)[:, None]
    model = Denoiser(lambda x, t: torch.tanh(x), flat.clock)
    out = sample(model, noise=x, sampler=ShortestPathSampler(flat, 0.0, grid=grid))
    clean = (x - math.sqrt(1 - now) * torch.tanh(x)) / math.sqrt(now)
    torch.testing.assert_close(out, math.sqrt(then) * clean + math.sqrt(1 - then) * torch.tanh(x))


def test_fewer_steps_than_one_schedule_for_all() -> None:
    grid = [i / 30 for i in range(30, -1, -1)]
    schedule = VPLinear()
    shared = torch.tensor([[[schedule.alpha(t) ** 2]] for t in grid], dtype=torch.float64)
    spectrum = SPECTRUM * (20 / SPECTRUM.max())
    assert spectral_kl(ShortestPathSchedule(spectrum).levels(grid), spectrum) < 0.55 * spectral_kl(shared, spectrum)


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("positive at every frequency", lambda: ShortestPathSchedule([[1.0, 0.0]])),
        ("shape", lambda: ShortestPathSchedule([])),
        ("images", lambda: ShortestPathSchedule.fit(torch.zeros(1, 4, 4))),
        ("positive at every frequency", lambda: ShortestPathSchedule.fit(torch.zeros(3, 4, 4))),
        ("c2", lambda: ShortestPathSchedule.power_law(4, c2=0.0)),
        ("t must", lambda: PATH.alpha_bar(1.5)),
        ("eta", lambda: ShortestPathSampler(PATH, 1.5)),
        ("path", lambda: ShortestPathSampler(SPECTRUM)),  # type: ignore[arg-type]
        ("pixels", lambda: sample(Denoiser(lambda x, t: x, PATH.clock), (2, 8, 8), ShortestPathSampler(PATH))),
    ],
)
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()
