"""Three samplers spend the same evaluations on the same noise; their paths are animated in a page that works offline.

python examples/trajectories.py [paths.html]
"""

import math
import sys

import torch

from hasten.diffusion import VPLinear, plot_trajectories, sample
from hasten.numerics.mixture import GaussianMixture

angles = 2 * math.pi * torch.arange(8) / 8
ring = GaussianMixture(2.0 * torch.stack((angles.cos(), angles.sin()), 1), 0.04)
denoiser = ring.denoiser(VPLinear())

figure = plot_trajectories(denoiser, ["ddim", "dpm-solver-2", "dpm-solver-3"], nfe=12, animate=True)
path = sys.argv[1] if len(sys.argv) > 1 else "trajectories.html"
figure.write_html(path)

noise = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))
exact = denoiser.solve(noise)
for name in ("ddim", "dpm-solver-2", "dpm-solver-3"):
    samples = sample(denoiser, sampler=name, nfe=12, noise=noise)
    print(f"{name}: largest distance to the exact samples {(samples - exact).norm(dim=1).max():.3f}")
print(f"written to {path}")
