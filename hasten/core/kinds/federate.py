"""Kind `federate`: one model, many clients that each hold their own data, and a wire whose bytes are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem
from hasten.numerics import keys

Loss = Callable[[Tensor, Any], Tensor]
Draw = Callable[[Tensor, int, Tensor], Any]


class Federation(Instance):
    """`n` clients minimise the weighted mean of their losses. The answer (`state.x`) is the flat parameter vector.

    Oracles: `gradient` of one client at one point and one mini-batch (counted once per client), `hvp` likewise.
    The wire: `uplink(message)` and `downlink(message)` count bytes, in `up_bytes`, `down_bytes` and their sum
    `bytes_sent`.

    Args:
        n: number of clients.
        x0: the start, `[d]`.
        draw: `(clients [m], steps, keys [m])` -> mini-batches, any nest of tensors with axes `[m, steps, ...]`. Equal
            keys give equal batches, whoever else takes part.
        metric: distance of a flat vector from the goal; not counted.
        loss: `(x [d], batch)` -> 0-dim tensor, for one client and one mini-batch (no leading axes).
        gradient: `(x [d], batch)` -> `[d]`, in closed form; from the loss by autograd if not given.
        weights: share of each client in the objective, `[n]`, sums to 1; equal if not given.
        tensors: names and lengths of the tensors that make up the flat vector, in order.
    """

    kind = "federate"

    def __init__(
        self,
        n: int,
        x0: Tensor,
        draw: Draw,
        metric: Callable[[Tensor], float],
        *,
        loss: Loss | None = None,
        gradient: Loss | None = None,
        weights: Tensor | None = None,
        tensors: Mapping[str, int] | None = None,
    ) -> None:
        self.up_bytes = self.down_bytes = 0
        super().__init__()
        if loss is None and gradient is None:
            raise InputError("a federation needs a loss or a gradient; both are None")
        if x0.ndim != 1:
            raise InputError(f"x0 must be the flat parameter vector [d], got shape {tuple(x0.shape)}")
        self.n = check.integer("n (clients)", n, 1)
        self.x0 = x0
        self.draw = draw
        self.weights = torch.full((n,), 1.0 / n, dtype=x0.dtype) if weights is None else weights.to(x0.dtype)
        if self.weights.shape != (n,) or abs(float(self.weights.sum()) - 1.0) > 1e-4 or float(self.weights.min()) < 0:
            raise InputError(f"weights must be {n} shares of at least 0 that sum to 1, got {self.weights}")
        self.tensors = dict(tensors or {"x": len(x0)})
        self._metric = metric
        self._gradient = gradient or grad(loss)  # type: ignore[arg-type]

    @property
    def bytes_sent(self) -> int:  # type: ignore[override]
        """Bytes over the wire, both ways; setting it to zero resets both counters."""
        return self.up_bytes + self.down_bytes

    @bytes_sent.setter
    def bytes_sent(self, value: int) -> None:
        self.up_bytes, self.down_bytes = value, 0

    def gradient(self, x: Tensor, batch: Any, clients: int = 1) -> Tensor:
        """Gradient `[d]` of one client's loss on one mini-batch; pure, so that it runs under `vmap`.

        `clients` says how many evaluations this call stands for when it is mapped over clients.
        """
        self.calls["gradient"] += clients
        return self._gradient(x, batch)

    def gradients(self, x: Tensor, clients: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Gradients `[m, d]` of these clients (all if not given) at a common point `[d]` or at their own `[m, d]`."""
        who = torch.arange(self.n) if clients is None else clients
        batches = self.draw(who, 1, keys.fold(keys.key(0) if key is None else key, who))
        return vmap(
            lambda point, batch: self.gradient(point, first(batch), len(who)),
            in_dims=(0 if x.ndim == 2 else None, 0),
            randomness="different",
        )(x, batches)

    def hvp(self, x: Tensor, v: Tensor, clients: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Hessian-vector products `[m, d]` of these clients' losses at `x` `[d]`, with `v` `[m, d]`."""
        who = torch.arange(self.n) if clients is None else clients
        batches = self.draw(who, 1, keys.fold(keys.key(0) if key is None else key, who))
        self.calls["hvp"] += len(who)

        def product(direction: Tensor, batch: Any) -> Tensor:
            # Reverse mode twice: forward over reverse fails on some of torch's losses (mse_loss among them).
            return grad(lambda point: self._gradient(point, first(batch)) @ direction)(x)

        return vmap(product, randomness="different")(v, batches)

    def uplink(self, message: Any) -> None:
        """Count what goes to the server: anything with `nbytes` (tensors, payloads), or a mapping of such."""
        self.up_bytes += size(message)

    def downlink(self, message: Any, copies: int = 1) -> None:
        """Count what the server sends to each of `copies` clients."""
        self.down_bytes += copies * size(message)

    def offers(self) -> frozenset[str]:
        return frozenset({"gradient", "hvp"})

    def metric(self, x: Tensor) -> float:
        with torch.no_grad():
            return float(self._metric(x))


def size(message: Any) -> int:
    """Bytes of a message."""
    if isinstance(message, Mapping):
        return sum(size(part) for part in message.values())
    return int(message.nbytes)


def first(batch: Any) -> Any:
    """The first of several mini-batches `[steps, ...]` of one client."""
    return at(batch, 0)


def at(batch: Any, step: int) -> Any:
    """Mini-batch number `step` of `[steps, ...]`."""
    if isinstance(batch, Tensor):
        return batch[step]
    if isinstance(batch, Mapping):
        return {name: at(part, step) for name, part in batch.items()}
    return tuple(at(part, step) for part in batch)


def federation(
    name: str,
    model: Callable[[], nn.Module],
    data: Sequence[tuple[Tensor, Tensor]] | Callable[[int], Sequence[tuple[Tensor, Tensor]]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int | None = 32,
    metric: Callable[[nn.Module], float] | None = None,
    **options: Any,
) -> Problem:
    """A federated problem of your own, from a network, each client's data and a loss.

    Args:
        name: what it is called in reports.
        model: makes the network; called once per seed, after `torch.manual_seed(seed)`. Without BatchNorm, whose
            statistics do not belong to the parameters (GroupNorm and LayerNorm are fine).
        data: `(inputs, labels)` of each client, or a function of the seed that returns them.
        loss: `loss(model(inputs), labels)`, averaged over the batch.
        batch_size: samples per local step, drawn with replacement; None for all of a client's data (then all clients
            must hold equally many).
        metric: a function of the network, smaller is better; the mean loss over all clients' data if not given.
        options: further fields of `Problem`: `target`, `budget`, `every`, `baseline`, `contenders`, `measures`, ...

    Raises:
        InputError: a client without data, labels of another length, or shards that `batch_size=None` cannot stack.
    """
    if batch_size is not None:
        check.integer("batch_size", batch_size, 1)

    def build(seed: int) -> Federation:
        shards = data(seed) if callable(data) else data
        counts = _check(shards, batch_size)
        torch.manual_seed(seed)
        network = model()
        _refuse_statistics(network)
        named = {key: value.detach() for key, value in network.named_parameters()}
        shapes = {key: value.shape for key, value in named.items()}
        lengths = {key: value.numel() for key, value in named.items()}
        inputs = torch.cat([shard[0] for shard in shards])
        labels = torch.cat([shard[1] for shard in shards])
        starts = counts.cumsum(0) - counts

        def unflatten(x: Tensor) -> dict[str, Tensor]:
            # One split, because its backward pass is one concatenation; a slice per tensor would pad each to full size.
            pieces = x.split(list(lengths.values()))
            return {key: piece.view(shape) for (key, shape), piece in zip(shapes.items(), pieces)}

        def evaluate(x: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
            return loss(functional_call(network, unflatten(x), (batch[0],)), batch[1])

        def draw(clients: Tensor, steps: int, key: Tensor) -> tuple[Tensor, Tensor]:
            rows = (len(clients), steps, batch_size or int(counts[0]))
            if batch_size is None:
                index = torch.arange(rows[2]).expand(rows)
            else:
                share = keys.uniform(key, rows[1] * rows[2], torch.float64).view(rows)
                index = (share * counts[clients].view(-1, 1, 1)).long()
            index = index + starts[clients].view(-1, 1, 1)
            return inputs[index], labels[index]

        def measure(x: Tensor) -> float:
            if metric is None:
                return float(loss(functional_call(network, unflatten(x), (inputs,)), labels))
            return metric(_load(network, unflatten(x)))

        x0 = torch.cat([value.flatten() for value in named.values()])
        weights = counts / counts.sum()
        return Federation(len(shards), x0, draw, measure, loss=evaluate, weights=weights.to(x0.dtype), tensors=lengths)

    options.setdefault("measures", "mean loss")
    options.setdefault("baseline", "distributed.dp-sgd")
    options.setdefault("cost", "bytes")
    return Problem(name=name, kind=Federation.kind, build=build, **options)


def _check(shards: Sequence[tuple[Tensor, Tensor]], batch_size: int | None) -> Tensor:
    if not shards:
        raise InputError("data: a federation needs at least one client, got none")
    for place, (inputs, labels) in enumerate(shards):
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise InputError(
                f"data of client {place}: inputs and labels must be of one length > 0, got {len(inputs)} and "
                f"{len(labels)}; leave clients without data out"
            )
    counts = torch.tensor([len(inputs) for inputs, _ in shards])
    if batch_size is None and len(counts.unique()) > 1:
        raise InputError(
            f"batch_size=None needs equally many samples on each client, got {counts.tolist()}; give a batch_size"
        )
    return counts


def _refuse_statistics(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise InputError(
                f"model: {name} keeps batch statistics that are not parameters; use GroupNorm or LayerNorm"
            )


def _load(network: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(parameters[name])
    return network
