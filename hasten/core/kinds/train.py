"""Kind `train`: a network, mini-batches, a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem


class Training(Instance):
    """A network being trained. The answer (`state.x`) is a network: the trained one or an average of it.

    Oracles: `gradient()`, counted as `gradient`, and `evaluate()`, counted as `value` or `gradient`.

    Args:
        model: the network, in its starting point.
        batches: endless iterator of `(input, label)` pairs.
        loss: `loss(model(input), label)` -> 0-dim tensor.
        metric: the network's distance from the goal; not counted.

    Attributes:
        parameters: those of the network that are trained; renew it after surgery on the network.
    """

    kind = "train"

    def __init__(
        self,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
        metric: Callable[[nn.Module], float],
    ) -> None:
        super().__init__()
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.batches = batches
        self.loss = loss
        self._metric = metric
        self._batch: tuple[Tensor, Tensor] | None = None

    def gradient(self, fresh: bool = True) -> Tensor:
        """Put the mini-batch gradient in every parameter's `.grad`; returns the loss.

        `fresh=False` stays on the batch drawn last, for rules that evaluate several points on one batch.
        """
        for parameter in self.parameters:
            parameter.grad = None
        with torch.enable_grad():
            loss = self.evaluate(fresh)
            loss.backward()
        return loss.detach()

    def evaluate(self, fresh: bool = True) -> Tensor:
        """The mini-batch loss: with its graph, and counted as `gradient`, where gradients are recorded; else `value`.

        `fresh=False` stays on the batch drawn last.
        """
        if fresh or self._batch is None:
            self._batch = next(self.batches)
        inputs, labels = self._batch
        self.calls["gradient" if torch.is_grad_enabled() else "value"] += 1
        return self.loss(self.model(inputs), labels)

    def offers(self) -> frozenset[str]:
        return frozenset({"loss"})

    def metric(self, x: nn.Module) -> float:
        return self._metric(x)


def minibatches(tensors: Sequence[Tensor], batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """Endless shuffled mini-batches, epoch after epoch; the last short batch of an epoch is left out."""
    count = len(tensors[0])
    size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            index = order[start : start + size]
            yield tuple(tensor[index] for tensor in tensors)


def mean_loss(
    loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, labels: Tensor, batch_size: int = 4096
) -> Callable[[nn.Module], float]:
    """The metric "mean loss of the network over these data", in evaluation mode."""

    def measure(model: nn.Module) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            total = math.fsum(
                float(loss(model(x), y)) * len(x) for x, y in zip(inputs.split(batch_size), labels.split(batch_size))
            )
        model.train(training)
        return total / len(inputs)

    return measure


def training(
    name: str,
    model: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int = 64,
    evaluate: tuple[Tensor, Tensor] | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    **options: Any,
) -> Problem:
    """A training problem of your own, from a network, data and a loss.

    Args:
        name: what it is called in reports.
        model: makes the network; called once per seed, after `torch.manual_seed(seed)`.
        data: `(inputs, labels)` tensors of equal length, or a function that returns them.
        loss: `loss(model(inputs), labels)`, averaged over the batch.
        evaluate: `(inputs, labels)` for the metric; the training data if not given.
        metric: a function of the network, smaller is better; the mean loss over `evaluate` if not given.
        options: further fields of `Problem`: `target`, `budget`, `every`, `baseline`, `contenders`, `measures`, ...
    """
    check.integer("batch_size", batch_size, 1)

    def build(seed: int) -> Training:
        inputs, labels = data() if callable(data) else data
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise InputError(f"data: inputs and labels must be of one length > 0, got {len(inputs)} and {len(labels)}")
        torch.manual_seed(seed)
        network = model()
        generator = torch.Generator().manual_seed(seed)
        measure = metric or mean_loss(loss, *(evaluate or (inputs, labels)))
        return Training(network, minibatches((inputs, labels), batch_size, generator), loss, measure)  # type: ignore[arg-type]

    options.setdefault("measures", "mean loss")
    options.setdefault("baseline", "optim.adamw")
    return Problem(name=name, kind=Training.kind, build=build, **options)
