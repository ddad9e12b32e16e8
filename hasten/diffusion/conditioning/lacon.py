"""LaCon: a trained model follows a map of edges, masks or strokes by the gradient of a small net on its features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.diffusion.conditioning.features import Taps
from hasten.diffusion.guidance.base import Guidance, Look, Split
from hasten.diffusion.guidance.race import guidance
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.draws import standard_normal

CARD = Card(
    name="lacon",
    family="diffusion",
    title="LaCon: Late-Constraint Diffusion for Steerable Guided Image Synthesis",
    authors="Liu, Li, Zhang, Luo & Liu",
    year=2023,
    arxiv="2305.11520",
    paper_id=395,
    summary="Steers samples to a map that a small net reads from the denoiser's features, while there is much noise.",
    cost="One backward pass through the denoiser per constrained evaluation; a small net trained once per kind of map.",
    when="To make a trained model follow maps without training or copying it.",
    kinds=("sample",),
    needs=("map",),
    use="from hasten.diffusion import Denoiser, FlowMatching, LateConstraint, fit_aligner\n"
    "from hasten.problems.networks.dit import TinyDiT\n"
    'denoiser = Denoiser(TinyDiT(), FlowMatching(), "velocity")  # take a trained one\n'
    "images = torch.rand(64, 1, 8, 8)\n"
    "maps = torch.nn.functional.avg_pool2d(images, 2)\n"
    'blocks = ("blocks.1", "blocks.4")\n'
    "aligner = fit_aligner(denoiser, blocks, images, maps, steps=10)\n"
    "guidance = LateConstraint(aligner, maps[:4], blocks)\n"
    'samples = hasten.diffusion.sample(denoiser, (4, 1, 8, 8), "ddim", steps=5, guidance=guidance)',
)


class ConditionAligner(nn.Module):
    """Reads a map from a denoiser's features: seven convolutions (two 1x1, four 3x3, 1x1) that know the time.

    Each but the last is followed by a rectifier, batch normalisation and a shift from the time.

    Args:
        in_channels: of all features together.
        out_channels: of the map.
        time_channels: of the embedding of the time, even.
        width: channels before the last layer; the 3x3 layers have 8, 4, 2 and 1 times as many.

    Source: Liu et al. (2023), arXiv 2305.11520.
    """

    def __init__(self, in_channels: int, out_channels: int = 1, time_channels: int = 64, width: int = 64) -> None:
        super().__init__()
        check.integer("in_channels", in_channels, 4)
        check.integer("out_channels", out_channels, 1)
        check.integer("width", width, 1)
        if check.integer("time_channels", time_channels, 2) % 2:
            raise InputError(f"time_channels must be even, got {time_channels}")
        self.time_channels = time_channels
        channels = (in_channels, in_channels // 2, in_channels // 4, 8 * width, 4 * width, 2 * width, width)
        self.layers = nn.ModuleList(
            _Layer(channels[i], channels[i + 1], 1 if i < 2 else 3, time_channels) for i in range(6)
        )
        self.last = nn.Conv2d(width, out_channels, 1)

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        """Map (batch, out_channels, h, w) of features (batch, in_channels, h, w) at times (batch,) in [0, 1]."""
        half = self.time_channels // 2
        rates = 1000.0 * torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
        angles = t[:, None] * rates.to(t)
        embedded = torch.cat((angles.cos(), angles.sin()), dim=1).to(features)
        h = features
        for layer in self.layers:
            h = layer(h, embedded)
        return self.last(h)


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int, time_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, side, padding=side // 2), nn.ReLU(), nn.BatchNorm2d(outputs)
        )
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, outputs))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self.body(x) + self.time(embedded)[..., None, None]


@guidance(CARD)
@dataclass(frozen=True, eq=False)
class LateConstraint(Guidance):
    """Guidance by `L = |aligner(features(x_t), t) - target|^2` (mean over the map) at times above `truncation T`.

    With `g = grad_x L` through the denoiser, per sample: `eps + scale g |eps - x|/|g|`, which moves the clean data
    against g; below that time nothing is added. On a flow this is a velocity `scale` times as large as the model's.
    Adds to the condition of a conditional model, and with `w` to classifier-free guidance.

    Args:
        aligner: trained with `fit_aligner` for these blocks.
        target: the maps to follow, (batch, channels, h, w) or one for all samples.
        blocks: names of the denoiser's modules whose outputs the aligner reads, maps or tokens.
        scale: strength.
        truncation: share of T below which samples are free, in [0, 1].
        w: scale of classifier-free guidance; 1 leaves it out.
        rescale: False adds `scale g` itself, whose size depends on the aligner; for comparison.
        network: where the blocks are, if not in the denoiser's own function.

    Raises:
        InputError: the network has no such blocks, or the target is not of the aligner's shape.

    Cost: one evaluation (two with `w`), and a backward pass, counted as one more, where constrained.
    Source: Liu et al. (2023), arXiv 2305.11520.
    """

    aligner: nn.Module
    target: Tensor
    blocks: Sequence[str]
    scale: float = 1.0
    truncation: float = 0.5
    w: float = 1.0
    rescale: bool = True
    network: nn.Module | None = None

    def __post_init__(self) -> None:
        check.real("scale", self.scale)
        check.real("truncation", self.truncation, 0.0, 1.0)
        check.real("w", self.w)
        if not isinstance(self.target, Tensor) or self.target.ndim != 4 or not self.target.is_floating_point():
            raise InputError(
                f"target must be maps (batch, channels, h, w), got {getattr(self.target, 'shape', self.target)}"
            )

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """A forward and a backward pass, and one without the condition."""
        return 2 if self.w == 1.0 else 3

    @property
    def conditional(self) -> bool:  # type: ignore[override]
        """Only classifier-free guidance needs a condition."""
        return self.w != 1.0

    def guide(self, look: Look) -> Split:
        times = look.times() / look.denoiser.schedule.T
        constrained = times > self.truncation
        if not bool(constrained.any()):
            return self._classifier_free(look, look.conditional())
        with Taps(self.network or look.denoiser.fn, self.blocks) as taps:
            found, slope = look.slope(lambda _: self._loss(taps, times))
        strength = self.scale * constrained.to(slope)
        if self.rescale:
            strength = strength * _norm(found.eps - look.x) / _norm(slope).clamp(min=1e-30)
        free = self._classifier_free(look, found)
        return free.with_eps(look, free.eps + strength.reshape(-1, *(1,) * (slope.ndim - 1)) * slope)

    def _classifier_free(self, look: Look, found: Split) -> Split:
        if self.w == 1.0:
            return found
        return look.unconditional(torch.arange(len(look.x), device=look.x.device)).towards(found, self.w)

    def _loss(self, taps: Taps, times: Tensor) -> Tensor:
        """Sum over the samples of the mean square error of their maps."""
        answer = self.aligner(taps.maps(self.target.shape[-2:]), times)
        target = self.target.to(answer)
        if answer.shape[1:] != target.shape[1:] or len(answer) % len(target):
            raise InputError(
                f"target must hold maps of the aligner's shape {tuple(answer.shape)}, got {tuple(target.shape)}"
            )
        errors = (answer - target.repeat(len(answer) // len(target), 1, 1, 1)).square()
        return errors.flatten(1).mean(1).sum()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def fit_aligner(
    denoiser: Denoiser,
    blocks: Sequence[str],
    images: Tensor,
    maps: Tensor,
    *,
    conds: Tensor | None = None,
    steps: int = 300,
    batch: int = 64,
    lr: float = 1e-3,
    width: int = 16,
    generator: torch.Generator | None = None,
) -> ConditionAligner:
    """Train an aligner to read maps from the features of noisy images; the denoiser is left as it is.

    Mean square error of the maps at times uniform between t_min and T, Adam.

    Args:
        denoiser: with a network whose modules are `blocks`.
        images: data, (n, ...).
        maps: their maps, (n, channels, h, w).
        conds: conditions of the images, where the denoiser shall see them.
        steps, batch, lr: of the training.
        width: see `ConditionAligner`.
        generator: source of batches, times and noise. The first weights come from torch's global generator.

    Returns:
        The aligner, in evaluation mode, without gradients by its weights.
    """
    if len(images) != len(maps) or maps.ndim != 4:
        raise InputError(
            f"maps must have shape ({len(images)}, channels, h, w), one per image; got {tuple(maps.shape)}"
        )
    check.integer("steps", steps, 1)
    check.integer("batch", batch, 2)
    generator = generator or torch.default_generator
    schedule = denoiser.schedule

    def features(index: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.rand(len(index), generator=generator, dtype=images.dtype, device=generator.device).to(images.device)
        t = schedule.t_min + t * (schedule.T - schedule.t_min)
        column = (-1, *(1,) * (images.ndim - 1))
        clean = images[index]
        x = schedule.alpha(t).reshape(column) * clean
        x = x + schedule.sigma(t).reshape(column) * standard_normal(clean, generator)
        with torch.no_grad(), Taps(denoiser.fn, blocks) as taps:
            (denoiser if conds is None else denoiser.given(conds[index])).eps(x, t)
        return taps.maps(maps.shape[-2:]), t / schedule.T

    channels = features(torch.zeros(2, dtype=torch.int64))[0].shape[1]
    aligner = ConditionAligner(channels, maps.shape[1], width=width).to(images)
    optimizer = torch.optim.Adam(aligner.parameters(), lr=lr)
    for _ in range(steps):
        index = torch.randint(len(images), (batch,), generator=generator, device=generator.device).to(images.device)
        seen, t = features(index)
        loss = (aligner(seen, t) - maps[index]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return aligner.eval().requires_grad_(False)
