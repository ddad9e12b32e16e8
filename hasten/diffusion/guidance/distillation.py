"""Adapter guidance distillation: small adapters teach a network to predict in one call what guidance does in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.diffusion.base import Sampler
from hasten.diffusion.guidance.adapters import ADAPTERS, AdapterHook, Conditions, frozen, output_width
from hasten.diffusion.guidance.teacher import States, Teacher, inside, output
from hasten.numerics.denoiser import Denoiser

CARD = Card(
    name="agd",
    family="diffusion",
    title="Efficient Distillation of Classifier-Free Guidance using Adapters",
    authors="Jensen & Sadat",
    year=2025,
    arxiv="2503.07274",
    paper_id=437,
    summary="Trains small adapters after the attention layers to predict in one call what guidance does in two.",
    cost="One evaluation per guided one, some percent more arithmetic in it; once per model a training of minutes.",
    when="When a model is always sampled under guidance, so that half of the evaluations is worth a short training.",
    kinds=("sample",),
    needs=("condition", "training"),
    use="labels = torch.arange(8) % 10\n"
    "agd = hasten.diffusion.AGD(transformer{hyper})\n"
    "agd.fit(agd.record(torch.randn(8, 1, 8, 8), labels, steps=5), iterations=3)\n"
    "samples = hasten.diffusion.sample(agd.denoiser(w=3.0).given(labels), (8, 1, 8, 8), steps=10)",
)


@register(CARD)
class AGD(nn.Module):
    """Adapters after the attention layers of a conditional network, which make one call answer as if guided.

    The output h of each attention layer becomes `h + a(h; w, t, label)`. The adapter's last projection is zero at the
    start, so that training begins at the conditional prediction, which is exact for `w = 1`. It is trained to give the
    prediction of classifier-free guidance, `eps_u + w (eps_c - eps_u)`, at the states that guided chains pass through.

    The network itself is not changed: adapters act through hooks, and only while a denoiser of `denoiser(w)` is
    evaluated. As a module, this consists of the adapters alone.

    Args:
        denoiser: the conditional model; its `null` stands for no condition.
        targets: names (or their last parts) of the modules after which adapters act. They return tokens (batch,
            tokens, width), or a tuple that begins with them.
        module: the network in which to look for them; None takes `denoiser.fn`, which must then be a module.
        adapter: `bottleneck` (tokens and conditions meet in a narrow layer), `cross-attention` (each token looks up
            the conditions) or `additive` (the same offset for all tokens, from the conditions alone).
        hidden: width inside the adapters, even.
        w_range: guidance scales that are trained, and that may be asked for later.
        t_range: times at which there is guidance; elsewhere the prediction stays conditional. None means all.
        classes: number of labels, for adapters that know the label; None leaves it to the network.

    Attributes:
        teacher: what the adapters learn from, the model under classifier-free guidance.

    Raises:
        InputError: no module of these names, a module whose output width is not known, a scale outside of w_range.

    Cost: one evaluation per guided one, and the arithmetic of the adapters.
    Source: Jensen & Sadat (2025), arXiv 2503.07274.

    Example:
        >>> agd = AGD(denoiser)
        >>> agd.fit(agd.record(torch.randn(512, 1, 8, 8), labels))
        >>> images = sample(agd.denoiser(3.0).given(labels), (16, 1, 8, 8), steps=10)
    """

    def __init__(
        self,
        denoiser: Denoiser,
        targets: str | Sequence[str] = ("attn", "attn1"),
        module: nn.Module | None = None,
        *,
        adapter: str = "bottleneck",
        hidden: int = 32,
        w_range: tuple[float, float] = (1.0, 6.0),
        t_range: tuple[float, float] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise InputError(f"denoiser must be a Denoiser, got {type(denoiser).__name__}")
        network = denoiser.fn if module is None else module
        if not isinstance(network, nn.Module):
            raise InputError("denoiser.fn is a function, so its attention layers cannot be found; give module=")
        check.one_of("adapter", adapter, tuple(ADAPTERS))
        check.integer("hidden", hidden, 2)
        if hidden % 2:
            raise InputError(f"hidden must be even, got {hidden}")
        self.w_range = _interval("w_range", w_range)
        self.t_range = None if t_range is None else _interval("t_range", t_range)
        self.teacher = Teacher(denoiser, self.t_range)
        self._network = (network,)
        self._layers = _named(network, (targets,) if isinstance(targets, str) else tuple(targets))
        self.conditions = Conditions(hidden, self.w_range, denoiser.schedule.T, classes)
        self.adapters = nn.ModuleList(
            ADAPTERS[adapter](output_width(name, layer), hidden) for name, layer in self._layers.items()
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapted modules."""
        return tuple(self._layers)

    def denoiser(self, w: float | Tensor) -> Denoiser:
        """The model under guidance, with one evaluation instead of two; `.given(labels)` sets the labels.

        Args:
            w: guidance scale, inside `w_range`; or one per sample.
        """
        scales = torch.as_tensor(w).flatten()
        check.real("w", float(scales.min()), *self.w_range)
        check.real("w", float(scales.max()), *self.w_range)
        base = self.teacher.denoiser

        def network(x: Tensor, t: Tensor, **given: Any) -> Tensor:
            rows = scales.to(x).repeat(len(x) // len(scales))
            with self._acting(rows, t, given.get(base.cond_arg)):
                return base.fn(x, t, **given)

        return Denoiser(
            network,
            base.schedule,
            base.prediction,
            cond=base.cond,
            cond_arg=base.cond_arg,
            null=base.null,
            check_finite=base.check_finite,
        )

    def record(
        self,
        noise: Tensor,
        labels: Tensor,
        w: Tensor | None = None,
        *,
        steps: int = 20,
        sampler: str | Sampler = "ddim",
        generator: torch.Generator | None = None,
    ) -> States:
        """The states that chains under classifier-free guidance pass through, and what guidance predicts there.

        Args:
            noise: start noise, (batch, ...); some hundred samples.
            labels: their conditions, (batch, ...).
            w: their guidance scales; uniform in `w_range` if not given.
            steps, sampler: as for `sample`; the adapters serve all samplers.
            generator: source of the scales; torch's global one if not given.

        Cost: two evaluations per step.
        """
        if w is None:
            low, high = self.w_range
            w = low + (high - low) * torch.rand(len(noise), generator=generator)
        return self.teacher.along_chains(noise, labels, w, steps, sampler)

    def fit(
        self,
        states: States,
        iterations: int = 1000,
        batch: int = 128,
        lr: float = 3e-3,
        *,
        generator: torch.Generator | None = None,
    ) -> AGD:
        """Train the adapters to return what guidance predicts; the network stays as it is.

        The loss is the mean square error of the network's own kind of prediction, `|eps_student - eps_guided|^2` for
        one that predicts noise.

        Args:
            states: what `record` returns.
            iterations: optimizer steps.
            batch: states per step.
            lr: learning rate of Adam, falling to zero with the cosine.
            generator: draws the batches; torch's global one if not given.
        """
        check.integer("iterations", iterations, 1)
        check.integer("batch", batch, 1)
        check.positive("lr", lr)
        optimizer = torch.optim.Adam(self.parameters(), lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        with frozen(self._network[0]):
            for _ in range(iterations):
                part = states[torch.randint(len(states), (batch,), generator=generator).to(states.x.device)]
                loss = (self.predict(part) - part.output).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
        return self

    def predict(self, states: States) -> Tensor:
        """What the adapted network returns at these states, in the place of `states.output`."""
        adapted = self.denoiser(states.w).given(states.cond)
        return output(adapted, adapted.prediction, states.x, states.t)

    @contextmanager
    def _acting(self, w: Tensor, t: Tensor, labels: Any) -> Iterator[None]:
        """Let the network act with its adapters."""
        conditions = self.conditions(w, t, labels)
        within = None if self.t_range is None else inside(t, self.t_range)
        handles = []
        try:
            for (name, layer), adapter in zip(self._layers.items(), self.adapters):
                handles.append(layer.register_forward_hook(AdapterHook(name, adapter, conditions, within)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _interval(name: str, value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    check.real(name, low)
    check.real(name, high, low, open_low=True)
    return float(low), float(high)


def _named(network: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules whose name is, or ends with, one of these."""
    found = {
        name: layer
        for name, layer in network.named_modules()
        if any(name == target or name.endswith(f".{target}") for target in targets)
    }
    if not found:
        raise InputError(
            f"no module of the network is called {' or '.join(map(repr, targets))}; give those of its attention layers"
        )
    return found
