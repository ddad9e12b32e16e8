"""BEAT: one small model per frequency band of a time series, with gradients balanced between the bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook
from hasten.optim.wrapper import StepHook

CARD = Card(
    name="band-balancer",
    family="optim",
    paper_id=262,
    title="BEAT: Balanced Frequency Adaptive Tuning for Long-Term Time-Series Forecasting",
    authors="Li et al.",
    year=2025,
    arxiv="2501.19065",
    summary="Scales the gradients of one model per frequency band: up where it learns slowly, down where it overfits.",
    cost="One small model per band instead of one; bookkeeping once per epoch.",
    when="Time series whose frequency bands are learnt at very different speeds.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "balancer = hasten.optim.BandBalancer(optimizer, groups=[model[0].parameters(), model[2].parameters()]{hyper})\n"
    "balancer.end_epoch(train_losses=[0.9, 0.5], val_losses=[1.0, 0.7])",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@hook(CARD)
class BandBalancer(StepHook):
    """Multiplies the gradients of each band's model by a factor that follows its learning curves.

    Call `end_epoch` once before training, with the losses of the start, and then after every epoch. Lines through the
    logarithms of the last `window` losses of a band give two slopes per epoch:

        overfitting    training falls, validation rises, each by more than `tolerance`:    factor * down
        converged      neither moves by more, validation is below half its first value:    factor * down
        underfitting   neither moves and validation is above that; or validation falls and is, relative to
                       its first value, above the mean of all bands:                       factor * up
        learning       else:                                                               factor

    The factors are then divided by their mean and kept within `bounds`. Works beside any optimizer; under rules that
    normalise gradients, such as Adam, a lasting factor has little effect, so prefer SGD.

    Args:
        optimizer: any `torch.optim.Optimizer` that takes gradients.
        groups: the parameters of each band; None for the optimizer's own parameter groups.
        window: epochs that a trend is taken over, at least 2; nothing happens before.
        up, down: factors, up >= 1 and 0 < down <= 1.
        bounds: smallest and largest factor, 0 < low <= 1 <= high.
        tolerance: slope of a logarithmic loss, per epoch, that counts as movement, > 0.

    Attributes:
        factors: one per band.
        status: of each band at the last epoch.

    Cost: one multiplication of the gradients. The paper's own thresholds and formula are not public; these rules are
    this library's. Source: Li et al. (2025), arXiv 2501.19065.
    """

    own = ("factors", "status", "first", "train", "val")

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        groups: Sequence[Iterable[Tensor]] | None = None,
        window: int = 5,
        up: float = 1.2,
        down: float = 0.8,
        bounds: tuple[float, float] = (0.1, 10.0),
        tolerance: float = 1e-3,
    ) -> None:
        self.window = check.integer("window", window, 2)
        self.up = check.real("up", up, 1.0)
        self.down = check.real("down", down, 0.0, 1.0, open_low=True)
        low, high = bounds
        self.bounds = (check.real("bounds[0]", low, 0.0, 1.0, open_low=True), check.real("bounds[1]", high, 1.0))
        self.tolerance = check.positive("tolerance", tolerance)
        self.groups = None if groups is None else [list(group) for group in groups]
        self.factors: list[float] = []
        self.status: list[str] = []
        self.first: list[float] = []
        self.train: list[list[float]] = []
        self.val: list[list[float]] = []
        super().__init__(optimizer)
        if self.groups is not None:
            self.factors = [1.0] * len(self.groups)

    def bands(self) -> list[list[Tensor]]:
        """The parameters of each band."""
        if self.groups is not None:
            return self.groups
        return [list(group["params"]) for group in self.optimizer.param_groups] if self.optimizer is not None else []

    def on_gradients(self, params: list[Tensor]) -> None:
        present = set(params)
        for factor, band in zip(self.factors, self.bands()):
            if factor != 1.0:
                for param in band:
                    if param in present:
                        param.grad.mul_(factor)  # type: ignore[union-attr]

    def end_epoch(self, train_losses: Sequence[float], val_losses: Sequence[float]) -> list[float]:
        """Take note of each band's losses over an epoch, and return the factors for the next one.

        Raises:
            InputError: there is not one positive, finite loss per band; nothing was changed.
        """
        count = len(self.bands())
        for name, losses in (("train_losses", train_losses), ("val_losses", val_losses)):
            if len(losses) != count or not all(math.isfinite(loss) and loss >= 0 for loss in map(float, losses)):
                raise InputError(f"{name} must be {count} finite numbers >= 0, one per band, got {list(losses)}")
        self.train = [*self.train, list(map(float, train_losses))][-self.window :]
        self.val = [*self.val, list(map(float, val_losses))][-self.window :]
        self.first = self.first or self.val[0]
        self.factors = self.factors or [1.0] * count
        if len(self.train) == self.window:
            self.status = self._judge()
            change = {"learning": 1.0, "underfitting": self.up, "converged": self.down, "overfitting": self.down}
            raw = [factor * change[status] for factor, status in zip(self.factors, self.status)]
            mean = sum(raw) / count
            self.factors = [min(max(factor / mean, self.bounds[0]), self.bounds[1]) for factor in raw]
        return list(self.factors)

    def _judge(self) -> list[str]:
        left = [now / max(start, 1e-300) for now, start in zip(self.val[-1], self.first)]
        mean, found = sum(left) / len(left), []
        for train, val, share in zip(_slopes(self.train), _slopes(self.val), left):
            if train < -self.tolerance and val > self.tolerance:
                found.append("overfitting")
            elif abs(train) <= self.tolerance and abs(val) <= self.tolerance:
                found.append("converged" if share < 0.5 else "underfitting")
            else:
                found.append("underfitting" if val < -self.tolerance and share > mean else "learning")
        return found


def _slopes(losses: Sequence[Sequence[float]]) -> list[float]:
    """Slope of a line through the logarithms, per epoch, for each band."""
    logs = torch.tensor(losses, dtype=torch.float64).clamp_min(1e-300).log()
    times = torch.arange(len(losses), dtype=torch.float64)
    times -= times.mean()
    return (times @ logs / times.square().sum()).tolist()


class FrequencyBandModel(nn.Module):
    """One model per frequency band of its input; the forecast is their sum.

    Args:
        make_model: makes the model of a band, (n, length) -> (n, horizon).
        bands: upper ends of the bands as a share of the Nyquist frequency, increasing, the last one 1; for `haar`, the
            number of levels.
        transform: `fft` (masks on the spectrum) or `haar` (detail of each level, and the rest).
        reference: windows (n, length) that tell which bands carry energy; those below 1e-10 of the total are dropped.

    Attributes:
        models: the models, lowest band first.
        kept: places of the bands that are not dropped.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        bands: Sequence[float] | int = (0.1, 0.3, 1.0),
        transform: str = "fft",
        reference: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.transform = check.one_of("transform", transform, ("fft", "haar"))
        if transform == "haar":
            self.bands: Any = check.integer("bands", bands, 1)
            count = self.bands + 1
        else:
            if not isinstance(bands, Sequence) or sorted(set(bands)) != list(bands) or not bands or bands[-1] != 1:
                raise InputError(f"bands must increase and end with 1, got {bands!r}")
            self.bands, count = tuple(bands), len(bands)
            check.positive("bands[0]", bands[0])
        self.kept = list(range(count))
        if reference is not None:
            energy = [float(band.double().square().sum()) for band in self.split(reference)]
            self.kept = [place for place in self.kept if energy[place] > 1e-10 * sum(energy)]
            if not self.kept:
                raise InputError("reference is zero in all bands")
        self.models = nn.ModuleList(make_model() for _ in self.kept)

    def split(self, x: Tensor) -> list[Tensor]:
        """The bands of series (n, length), lowest first; they add up to the kept part of the series."""
        parts = _fft_bands(x, self.bands) if self.transform == "fft" else _haar_bands(x, self.bands)
        return [parts[place] for place in self.kept]

    def outputs(self, x: Tensor) -> list[Tensor]:
        """The forecast of each band."""
        return [model(band) for model, band in zip(self.models, self.split(x))]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.outputs(x)).sum(0)


def _fft_bands(x: Tensor, ends: Sequence[float]) -> list[Tensor]:
    spectrum = torch.fft.rfft(x, dim=-1)
    place = torch.linspace(0, 1, spectrum.shape[-1], device=x.device)
    found, low = [], -1.0
    for high in ends:
        found.append(torch.fft.irfft(spectrum * ((place > low) & (place <= high)), n=x.shape[-1], dim=-1))
        low = high
    return found


def _haar_bands(x: Tensor, levels: int) -> list[Tensor]:
    length = x.shape[-1]
    if length % 2**levels:
        raise InputError(f"haar with {levels} levels needs a length that is a multiple of {2**levels}, got {length}")
    found, rest = [], x
    for level in range(1, levels + 1):
        smooth = x.unflatten(-1, (-1, 2**level)).mean(-1).repeat_interleave(2**level, dim=-1)
        found.append(rest - smooth)
        rest = smooth
    return [rest, *reversed(found)]
