"""What all caches share: attachment to a network, the chain of its calls, streams, the record of passes.

A cache watches the calls of one network. A change of the time begins the next step; a further call at the same time is
the step's next stream (guidance calls a network under its condition and without), and each stream has features of its
own. A pass is full if it runs all of the network, and a forecast if it runs what the cache leaves of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from hasten.core.errors import InputError
from hasten.core.registry import entry
from hasten.diffusion.caching.attachment import (
    Forward,
    check_network,
    find_blocks,
    replaced,
    state_of,
    time_of,
)
from hasten.diffusion.caching.features import Feature, Place, Stream

ROOT = ""


@dataclass(eq=False, kw_only=True)
class Cache(ABC):
    """Base of the caches. One cache serves one network at a time.

    A step index counts the times at which the network was called. It restarts, and all features are dropped, when the
    time turns round (the next chain of a pipeline begins); a stream whose input changes its shape starts anew. A
    sampler that goes back and forth in time therefore gains nothing from a cache.

    Args:
        model: the network, where it is not the denoiser's own function.
        blocks: paths of the network's lists of blocks; `blocks`, `transformer_blocks`, `single_transformer_blocks` or
            `layers` if not given.

    Attributes:
        stores: whether forecasts need stored features, so that a stream without any runs in full.
        full: passes that ran all of the network, since the last reset.
        forecasts: passes that ran a part of it.
        stored: most numbers that were stored at a time.
    """

    stores: ClassVar[bool] = True
    model: nn.Module | None = field(default=None, repr=False)
    blocks: str | Sequence[str] | None = None
    full: int = field(default=0, init=False, repr=False)
    forecasts: int = field(default=0, init=False, repr=False)
    stored: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._held = False
        self.reset()

    @abstractmethod
    def places(self, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The modules whose calls `answer` gets, by path."""

    @abstractmethod
    def due(self, step: int, stream: Stream) -> bool:
        """Whether this pass must be full, beyond those of a stream without features."""

    @abstractmethod
    def answer(self, place: Place, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """The output of a module in the present pass; `run()` computes it."""

    @abstractmethod
    def calls_for(self, passes: int) -> int:
        """Calls of the network in a chain that is to make about this many full passes, for races."""

    def attach(self, model: nn.Module | None = None) -> None:
        """Take hold of a network (`self.model` if not given) and begin a new record.

        Raises:
            InputError: the network is no module, is compiled or scripted, has no such blocks, or has a cache already.
        """
        if self._held:
            raise InputError("this cache is attached already; detach it first, or make another one")
        self._stack.enter_context(self.resumed(model))
        self.reset()

    def detach(self) -> None:
        """Leave the network as it was before and drop the features; the record stays."""
        self._stack.close()
        self._restart()

    @contextmanager
    def resumed(self, model: nn.Module | None = None) -> Iterator[Cache]:
        """Hold a network for the length of a `with` block, going on with what is stored, and keep that afterwards."""
        network = check_network(self.model if model is None else model)
        with replaced({ROOT: network, **self.places(find_blocks(network, self.blocks))}, self._visit):
            self._held = True
            try:
                yield self
            finally:
                self._held = False

    @contextmanager
    def attached(self, model: nn.Module | None = None) -> Iterator[Cache]:
        """Attach for the length of a `with` block.

        Example:
            >>> with TaylorSeer(interval=4).attached(pipeline.transformer) as cache:
            ...     images = pipeline(labels).images
        """
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def reset(self) -> None:
        """Begin a new chain and a new record."""
        self.full = self.forecasts = self.stored = self._rows = 0
        self._restart()

    def passes(self, batch: int) -> int:
        """Full passes per sample of a batch, as network evaluations are counted."""
        return -(-self._rows // batch)

    @property
    def step(self) -> int:
        """Index of the present step."""
        return self._step

    @property
    def stream(self) -> Stream:
        """The stream of the present pass."""
        assert self._present is not None
        return self._present

    @property
    def is_full(self) -> bool:
        """Whether the present pass, or between passes the latest one, is full."""
        return self._full

    def forecast(self, place: Place) -> Any:
        """What the stored features say of a module's output at the present step; None if they say nothing."""
        if place not in self._forecasts:
            feature = self.stream.features.get(place)
            ahead = self._step - self.stream.last
            self._forecasts[place] = None if feature is None else feature.forecast(ahead)
        return self._forecasts[place]

    def refresh(self, place: Place, output: Any, order: int) -> None:
        """Store a module's output in the present, full pass."""
        feature = self.stream.features.setdefault(place, Feature(order))
        feature.refresh(output, self._step - self.stream.last)

    def run_in_full(self) -> None:
        """Make the present pass a full one after all."""
        self._full = True

    def _restart(self) -> None:
        self._streams: list[Stream] = []
        self._present: Stream | None = None
        self._full = True
        self._step = 0
        self._index = 0
        self._direction = 0
        self._time: float | None = None
        self._calls: Counter[str] = Counter()
        self._forecasts: dict[Place, Any] = {}

    def _visit(self, path: str, forward: Forward, args: Any, kwargs: Any) -> Any:
        if path == ROOT:
            return self._pass(forward, args, kwargs)
        if self._present is None:
            return forward(*args, **kwargs)
        place = (path, self._calls[path])
        self._calls[path] += 1
        return self.answer(place, lambda: forward(*args, **kwargs), args, kwargs)

    def _pass(self, forward: Forward, args: Any, kwargs: Any) -> Any:
        time, state = time_of(args, kwargs), state_of(args, kwargs)
        self._proceed(time)
        kind = (state.shape, state.dtype, state.device)
        if self._index == len(self._streams):
            self._streams.append(Stream(kind))
        elif self._streams[self._index].kind != kind:
            self._streams[self._index] = Stream(kind)
        stream = self._present = self._streams[self._index]
        self._full = (self.stores and not stream.features) or self.due(self._step, stream)
        self._calls.clear()
        self._forecasts.clear()
        try:
            output = forward(*args, **kwargs)
        except BaseException:
            self._restart()
            raise
        self._present = None
        self._forecasts.clear()
        self._record(stream, len(state))
        return output

    def _proceed(self, time: float) -> None:
        """Find the step and the stream that a call at this time belongs to."""
        before, self._time = self._time, time
        if before is None:
            return
        if time == before:
            self._index += 1
            return
        direction = 1 if time > before else -1
        if self._direction == -direction:
            self._restart()
            self._time = time
            return
        if self._direction == 0 and direction == 1:
            self._streams.clear()
        self._direction = direction
        self._step += 1
        self._index = 0

    def _record(self, stream: Stream, rows: int) -> None:
        if not self._full:
            self.forecasts += 1
            stream.skipped += 1
            return
        self.full += 1
        self._rows += rows
        stream.last = self._step
        stream.skipped = 0
        held = sum(feature.elements for stream in self._streams for feature in stream.features.values())
        self.stored = max(self.stored, held)


def network_of(denoiser: Any) -> Any:
    """The network behind a denoiser, guided or not."""
    return getattr(getattr(denoiser, "_inner", denoiser), "fn", None)


def make_cache(cache: str | Cache | None) -> Cache | None:
    """The cache of this name, or itself."""
    if cache is None or isinstance(cache, Cache):
        return cache
    found = entry(cache if "." in cache else f"diffusion.{cache}").target if isinstance(cache, str) else None
    if not (isinstance(found, type) and issubclass(found, Cache)):
        raise InputError(f"cache must be a cache or the name of one, e.g. 'taylorseer' or TaylorSeer(); got {cache!r}")
    return found()


def cached_network(denoiser: Any, cache: Cache) -> nn.Module:
    """The network that the cache attaches to: the one that it names, or the denoiser's."""
    network = network_of(denoiser) if cache.model is None else cache.model
    if not isinstance(network, nn.Module):
        raise InputError(
            "a cache attaches to an nn.Module, but the denoiser's network is none; give the module inside it to the "
            "cache, e.g. TaylorSeer(model=net)"
        )
    return network


def caching(denoiser: Any, cache: Cache | None) -> AbstractContextManager[Any]:
    """A `with` block that samples with this cache."""
    return nullcontext() if cache is None else cache.attached(cached_network(denoiser, cache))
