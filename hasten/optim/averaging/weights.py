"""Averages of the weights along the way: evaluated instead of the trained network, never fed back into training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, Integer, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, Parts, companion

CARD = Card(
    name="lawa",
    family="optim",
    paper_id=199,
    title="Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging",
    authors="Kaddour",
    year=2022,
    arxiv="2209.14981",
    summary="Evaluates the mean of the last k checkpoints of the weights; training itself is unchanged.",
    cost="k copies of the weights (in host memory), one mean per checkpoint.",
    when="Training at a high, undecayed learning rate has reached the stage where its loss fluctuates.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "average = hasten.optim.LatestWeightAverage(model{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "k": Integer(3, 10), "every": Integer(3, 60, log=True)},
)


class WeightAverage(ABC):
    """Base of weight averages: keeps an averaged copy of a network beside the one in training.

    Floating-point parameters and buffers (such as the statistics of batch norm) are averaged, buffers of integers are
    those of the network in training. Half-precision weights are averaged in single precision.

    Attributes:
        model: the network in training.
        averaged_model: the average; a network of its own, without gradients. Before the first average it holds the
            weights that the network had when this object was made.
        averages: how often the average was updated.

    Args:
        model: the network in training.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.averaged_model = copy.deepcopy(model).requires_grad_(False)
        self.averages = 0

    @abstractmethod
    def step(self) -> None:
        """Take note of the weights; call it after each step of the optimizer."""

    @property
    def best_model(self) -> nn.Module:
        """The network to evaluate: the average once there is one, before that the network in training."""
        return self.averaged_model if self.averages else self.model

    @contextmanager
    def swap(self) -> Iterator[nn.Module]:
        """Put the average into the network in training for a while, e.g. to evaluate or save it."""
        with torch.no_grad():
            self._exchange()
        try:
            yield self.model
        finally:
            with torch.no_grad():
                self._exchange()

    def _exchange(self) -> None:
        for live, averaged in zip(tensors(self.model), tensors(self.averaged_model)):
            kept = live.clone()
            live.copy_(averaged)
            averaged.copy_(kept)

    def _published(self) -> None:
        """Complete a new average by what is not averaged: counters and flags."""
        for live, averaged in zip(tensors(self.model), tensors(self.averaged_model)):
            if not averages_well(live):
                averaged.copy_(live)
        self.averages += 1

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to continue exactly, the average included."""
        return {"averages": self.averages, "averaged_model": [x.clone() for x in tensors(self.averaged_model)]}

    @abstractmethod
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved state; the tensors are copied.

        Raises:
            InputError: the state is of another network.
        """
        own, saved = list(tensors(self.averaged_model)), state_dict["averaged_model"]
        if [x.shape for x in own] != [x.shape for x in saved]:
            raise InputError("state_dict is of a network with other tensors than this one")
        for target, source in zip(own, saved):
            target.copy_(source)
        self.averages = state_dict["averages"]


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, then buffers, each once, without their history."""
    return (tensor.detach() for part in (model.parameters(), model.buffers()) for tensor in part)


def averages_well(tensor: Tensor) -> bool:
    """Whether a mean of such tensors makes sense: not for counters and flags."""
    return tensor.is_floating_point() or tensor.is_complex()


def floats(model: nn.Module) -> list[Tensor]:
    """The tensors of a network that are averaged."""
    return [tensor for tensor in tensors(model) if averages_well(tensor)]


def wide(tensor: Tensor) -> Tensor:
    """A copy to average in: half precision becomes single, everything else stays."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(torch.float32 if half else tensor.dtype, copy=True)


class PolynomialAverager(WeightAverage):
    """Polynomial-decay average of the weights: recent ones count more, no horizon is needed.

        c = (gamma + 1) / (gamma + t);  average <- (1 - c) average + c x      (t = 1, 2, ...)

    `gamma=0` is the plain mean. Prefer it with step sizes that do not decay, such as DoG's.

    Args:
        model: the network in training.
        gamma: degree of the decay, at least 0.

    Cost: one copy of the weights, one pass over them per step. Source: Shamir, Zhang (2013), arXiv 1212.1824; as used
    in Ivgi, Hinder, Carmon (2023), arXiv 2302.12022.
    """

    def __init__(self, model: nn.Module, gamma: float = 8.0) -> None:
        self.gamma = check.nonnegative("gamma", gamma)
        super().__init__(model)
        self._single = {place: wide(x) for place, x in enumerate(floats(model)) if wide(x).dtype != x.dtype}

    @torch.no_grad()
    def step(self) -> None:
        c = (self.gamma + 1) / (self.gamma + self.averages + 1)
        for place, (averaged, live) in enumerate(zip(floats(self.averaged_model), floats(self.model))):
            average = self._single.get(place, averaged)
            average.mul_(1 - c).add_(live, alpha=c)
            if average is not averaged:
                averaged.copy_(average)
        self._published()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "single": {place: x.clone() for place, x in self._single.items()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for place, average in self._single.items():
            average.copy_(state_dict["single"][place])


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = {"every": max(1, horizon // 40), **hyper}
    optimizer = torch.optim.AdamW(model.parameters(), lr=own.pop("lr", 1e-3))
    average = LatestWeightAverage(model, **own)
    return Parts(optimizer, (average.step,), lambda: average.best_model)


@companion(CARD, _assemble)
class LatestWeightAverage(WeightAverage):
    """Mean of the latest `k` checkpoints of the weights (LAWA); works beside any optimizer.

        every `every` steps: push a copy of the weights, drop the one before the last k;  average = mean of the queue

    Batch-norm statistics are averaged too, unless `average_buffers=False` (then recompute them with
    `torch.optim.swa_utils.update_bn(loader, average.averaged_model)`). Early in training, while the loss still falls
    steeply, the average lags behind the network; prefer it once the loss fluctuates.

    Args:
        model: the network in training.
        k: checkpoints in the mean.
        every: calls of `step` between two checkpoints; `"epoch"` makes each call one, for calling it once per epoch.
        start: calls of `step` at the beginning that are left alone.
        device: where the checkpoints are kept; None for beside the weights.
        average_buffers: average floating-point buffers as well, instead of taking the latest.

    Cost: `k` copies of the weights, one mean per checkpoint. Source: Kaddour (2022), arXiv 2209.14981.
    """

    def __init__(
        self,
        model: nn.Module,
        k: int = 6,
        every: str | int = "epoch",
        start: int = 0,
        device: str | torch.device | None = "cpu",
        average_buffers: bool = True,
    ) -> None:
        self.k = check.integer("k", k, 1)
        if isinstance(every, str) and every != "epoch":
            raise InputError(f"every must be 'epoch' or a number of steps, got {every!r}")
        self.every = 1 if isinstance(every, str) else check.integer("every", every, 1)
        self.start = check.integer("start", start, 0)
        self.device = device
        self.average_buffers = average_buffers
        self.calls = 0
        self.queue: deque[list[Tensor]] = deque(maxlen=self.k)
        super().__init__(model)

    @torch.no_grad()
    def step(self) -> None:
        self.calls += 1
        if self.calls <= self.start or (self.calls - self.start) % self.every:
            return
        self.queue.append([tensor.to(self.device or tensor.device, copy=True) for tensor in floats(self.model)])
        parameters = sum(averages_well(tensor) for tensor in self.model.parameters())
        for place, (averaged, live) in enumerate(zip(floats(self.averaged_model), floats(self.model))):
            averaged.copy_(self._mean(place) if self.average_buffers or place < parameters else live)
        self._published()

    def _mean(self, place: int) -> Tensor:
        total = wide(self.queue[0][place])
        for checkpoint in list(self.queue)[1:]:
            total += checkpoint[place]
        return total / len(self.queue)

    def state_dict(self) -> dict[str, Any]:
        checkpoints = [[tensor.clone() for tensor in checkpoint] for checkpoint in self.queue]
        return {**super().state_dict(), "calls": self.calls, "queue": checkpoints}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.calls = state_dict["calls"]
        devices = [self.device or tensor.device for tensor in floats(self.model)]
        self.queue = deque(maxlen=self.k)
        for checkpoint in state_dict["queue"]:
            self.queue.append([tensor.to(device, copy=True) for tensor, device in zip(checkpoint, devices)])
