"""Evaluating a network again from one of its layers on, with what came before it kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hasten.optim.zeroth_order.probes import RandomState


class FeatureReuse:
    """Remembers the inputs of the layers of a network, so that a change in one is evaluated from there on.

        with reuse.record():
            loss = closure()
        with reuse.resume(param):
            changed = closure()

    Exact, for closures that call the network once; what it was called with is then not looked at again. Where the
    network was called more than once, or the parameter is not in it, it is evaluated from the beginning.

    Args:
        model: the network; its layers are its direct members.
    """

    def __init__(self, model: nn.Sequential) -> None:
        self.model = model
        self._calls = 0
        self._features: list[tuple[Tensor, RandomState]] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Remember the input of every layer in the evaluation inside."""
        self.forget()

        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            self._features.append((args[0].detach().clone(), RandomState(args[:1])))

        def count(model: nn.Module, args: tuple[Any, ...]) -> None:
            self._calls += 1

        handles = [layer.register_forward_pre_hook(note) for layer in self.model]
        handles.append(self.model.register_forward_pre_hook(count))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def resume(self, param: Tensor) -> Iterator[None]:
        """Inside, the network starts at the first layer that holds this parameter."""
        layers = list(self.model)
        holding = [place for place, layer in enumerate(layers) if any(p is param for p in layer.parameters())]
        # A layer object that is used twice would be noted twice, in another order than that of the list.
        if self._calls != 1 or len(self._features) != len(layers) or not holding or holding[0] == 0:
            yield
            return
        features, random = self._features[holding[0]]

        def rest(*args: Any) -> Tensor:
            random.restore()
            x = features.clone()
            for layer in layers[holding[0] :]:
                x = layer(x)
            return x

        object.__setattr__(self.model, "forward", rest)
        try:
            yield
        finally:
            object.__delattr__(self.model, "forward")

    def forget(self) -> None:
        """Let go of the features."""
        self._calls = 0
        self._features = []
