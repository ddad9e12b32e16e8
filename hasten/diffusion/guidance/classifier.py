"""Classifier guidance: an unconditional model follows the gradient of a classifier's log probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.diffusion.guidance.base import Guidance, Look, Split
from hasten.diffusion.guidance.race import guidance

CARD = Card(
    name="classifier-guidance",
    family="diffusion",
    title="Diffusion Models Beat GANs on Image Synthesis",
    authors="Dhariwal & Nichol",
    year=2021,
    arxiv="2105.05233",
    summary="Adds the gradient of a classifier's log probability to the score of an unconditional model.",
    cost="One evaluation, and one forward and backward pass of the classifier.",
    when="With an unconditional model and a classifier that knows noisy inputs, e.g. `MultiExpert`.",
    kinds=("sample",),
    needs=("classifier",),
    use="centres = 2 * torch.eye(2)\n"
    "guidance = hasten.diffusion.ClassifierGuidance(\n"
    "    lambda x, t: -torch.cdist(x, centres).square(), torch.arange(16) % 2{hyper})\n"
    "samples = hasten.diffusion.sample(denoiser, (16, 2), steps=20, guidance=guidance)",
)


@guidance(CARD)
@dataclass(frozen=True, eq=False)
class ClassifierGuidance(Guidance):
    """Guidance of an unconditional model by a classifier: `eps - sigma scale grad_x log p(label | x, t)`.

    Works on conditional models too, where it adds to the condition.

    Args:
        classifier: function of noisy states (batch, ...) and their times (batch,) that returns logits
            (batch, classes). It must know noisy inputs: one that was trained on clean data leads astray.
        labels: wanted classes, (batch,), integers.
        scale: strength; 1 samples the classifier's class, above that its typical members.

    Raises:
        InputError: labels are no integers, or their number is not that of the samples.

    Cost: one evaluation; one forward and backward pass of the classifier.
    Source: Dhariwal & Nichol (2021), arXiv 2105.05233.
    """

    evaluations: ClassVar[int] = 1
    conditional: ClassVar[bool] = False
    classifier: Callable[[Tensor, Tensor], Tensor]
    labels: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        check.real("scale", self.scale)
        labels: Any = self.labels
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or labels.dtype.is_complex:
            raise InputError(f"labels must be a tensor of integers, one per sample; got {labels!r}")

    def guide(self, look: Look) -> Split:
        found = look.conditional()
        return found.with_eps(look, found.eps - look.sigma * self.scale * self.slope(look.x, look.times()))

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """`grad_x log p(label | x, t)`.

        Args:
            x: noisy states, (batch, ...).
            t: their times, (batch,).
        """
        if len(x) % len(self.labels):
            raise InputError(f"labels are for {len(self.labels)} samples, but {len(x)} are drawn")
        labels = self.labels.to(x.device, torch.int64).repeat(len(x) // len(self.labels))
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = self.classifier(x, t)
            if logits.ndim != 2 or len(logits) != len(x):
                raise InputError(f"the classifier must return logits (batch, classes), got {tuple(logits.shape)}")
            if int(labels.max()) >= logits.shape[1] or int(labels.min()) < 0:
                raise InputError(f"label {int(labels.max())} is none of the classifier's {logits.shape[1]} classes")
            chosen = F.log_softmax(logits, dim=1).gather(1, labels[:, None])
            return torch.autograd.grad(chosen.sum(), x)[0]
