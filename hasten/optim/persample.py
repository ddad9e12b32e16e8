"""Gradients of single samples, and mean and variance of gradients over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from hasten.core.errors import InputError
from hasten.optim.layout import work_dtype

Key = TypeVar("Key", bound=Hashable)
Loss = Callable[[Tensor, Tensor], Tensor]


def per_sample_gradients(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """The gradient of every sample by itself, for all samples at once.

    Their mean over the samples is the gradient of a loss that is averaged over the batch.

    Args:
        model: the network; gradients are taken with respect to its parameters that require one.
        loss: `loss(model(inputs), labels)`, averaged over the batch; called with batches of one sample.
        inputs, labels: `n` samples along the first axis.
        chunk_size: samples worked on at a time; None for all. Memory is `chunk_size` times the activations and, for
            the result, `n` times the parameters.

    Returns:
        By the parameter's name, a tensor (n, *shape).

    Raises:
        InputError: there are no samples, their numbers differ, or the network has batch norm in training mode, under
            which a sample has no gradient of its own.
    """
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise InputError(f"inputs and labels must be of one length > 0, got {len(inputs)} and {len(labels)}")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise InputError(
                f"{name or 'the network'} is a {type(module).__name__} that normalises over the batch, so that a "
                "sample has no gradient of its own; call eval() on it or use GroupNorm"
            )
    trained = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    fixed = {name: param.detach() for name, param in model.named_parameters() if not param.requires_grad}
    fixed.update(model.named_buffers())

    def of_one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, {**params, **fixed}, (x.unsqueeze(0),)), y.unsqueeze(0))

    each = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different", chunk_size=chunk_size)
    return each(trained, inputs, labels)


class MicroBatches(Generic[Key]):
    """Mean, mean square and variance over gradients that come one after the other.

    Variances are kept around the running mean, so that they do not drown in the rounding errors of a difference of
    large numbers. Kept in float32 for half precision.

        seen = MicroBatches()
        for batch in micro_batches:
            seen.add({name: gradient, ...})
        seen.variance[name]

    Attributes:
        count: gradients added so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[Key, Tensor] = {}
        self._spread: dict[Key, Tensor] = {}

    @torch.no_grad()
    def add(self, grads: Mapping[Key, Tensor]) -> None:
        """Take in one gradient, by name or by parameter; the tensors are copied.

        Raises:
            InputError: the names or shapes are not those of the gradients before, or one is complex; nothing was
                changed.
        """
        for key, g in grads.items():
            if g.is_complex():
                raise InputError(f"gradient {key} is complex; give its real and imaginary parts (torch.view_as_real)")
        if self.count == 0:
            self._mean = {key: torch.zeros_like(g, dtype=work_dtype(g.dtype)) for key, g in grads.items()}
            self._spread = {key: torch.zeros_like(mean) for key, mean in self._mean.items()}
        if grads.keys() != self._mean.keys():
            odd = [str(key) for key in grads.keys() ^ self._mean.keys()]
            raise InputError(f"every gradient must have the same names; only in some: {sorted(odd)[:8]}")
        for key, g in grads.items():
            if g.shape != self._mean[key].shape:
                raise InputError(f"gradient {key} is shaped {tuple(g.shape)}, before {tuple(self._mean[key].shape)}")
        self.count += 1
        for key, g in grads.items():
            mean, spread = self._mean[key], self._spread[key]
            off = g - mean
            mean.add_(off, alpha=1 / self.count)
            spread.add_(off.mul_(g - mean))

    @property
    def mean(self) -> dict[Key, Tensor]:
        """Mean of the gradients."""
        self._need(1)
        return {key: mean.clone() for key, mean in self._mean.items()}

    @property
    def mean_square(self) -> dict[Key, Tensor]:
        """Mean of the squares, entry by entry."""
        self._need(1)
        return {key: self._mean[key].square().add_(spread / self.count) for key, spread in self._spread.items()}

    @property
    def variance(self) -> dict[Key, Tensor]:
        """Unbiased variance of one gradient, entry by entry (divisor `count - 1`)."""
        self._need(2)
        return {key: spread / (self.count - 1) for key, spread in self._spread.items()}

    def clear(self) -> None:
        """Begin anew."""
        self.count = 0
        self._mean, self._spread = {}, {}

    def _need(self, least: int) -> None:
        if self.count < least:
            raise InputError(f"at least {least} gradients must be added first, got {self.count}")
