"""Teleportation: jumps along a level set of the loss, by symmetries of the network, to where descent is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Integer, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import Parts, Point, companion
from hasten.optim.averaging.level_set import Climb, Jump, Loss, Move, Weights, symmetry
from hasten.optim.wrapper import OptimizerWrapper, copied

POINTWISE = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)

CARD = Card(
    name="teleportation",
    family="optim",
    paper_id=214,
    title="Improving Convergence and Generalization Using Parameter Symmetries",
    authors="Zhao, Gower, Walters, Yu",
    year=2024,
    arxiv="2305.13404",
    summary="Jumps to equivalent weights at which the gradient is larger; any optimizer goes on from there.",
    cost="Per jump: 10 double backward passes, and a pseudo-inverse of the activations per pair of layers.",
    when="A network of fully connected layers starts out with badly balanced layers or in a flat region.",
    kinds=("train",),
    needs=("loss",),
    use="base = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "optimizer = hasten.optim.Teleporting(base, model{hyper})\n"
    "for inputs, labels in loader:\n"
    "    optimizer.step(lambda: loss_fn(model(inputs), labels))",
    search_space={"lr": LogReal(1e-4, 1e-1), "jump_lr": LogReal(1e-4, 1e-1), "jump_steps": Integer(1, 10)},
)


def teleport(
    weights: Sequence[Tensor],
    X: Tensor,
    Y: Any,
    loss: Callable[[Tensor, Any], Tensor],
    activation: Callable[[Tensor], Tensor],
    lr: float = 1e-2,
    steps: int = 10,
    objective: str = "grad_norm",
    sign: int = 1,
    cap: float | None = None,
    biases: Sequence[Tensor] = (),
) -> Jump:
    """Equivalent weights of the network `h_m = activation(h_{m-1} W_m^T + b_m)` with a larger (or smaller) objective.

        W_m <- g_m W_m;  W_{m+1} <- W_{m+1} (I + (a - a') a'^+),  a and a' the activations before and after
        g = I + T;  T <- T + sign * lr * dJ/dT, from T = 0, `steps` times

    The outputs on `X` stay as they are if the activation is linear, or if there are no more rows in `X` than units in
    each hidden layer and the activations are independent. With more rows they change a little; a change of the loss
    by more than a thousandth is warned of.

    Args:
        weights: matrices (out, in) of all layers, two or more; they stay as they are.
        X: inputs (n, in).
        Y: what `loss` compares the outputs with.
        loss: `loss(outputs, Y)` -> 0-dim tensor.
        activation: of all layers but the last, elementwise.
        lr, steps: of the ascent in the group.
        objective: `grad_norm` (its square), `sharpness` (mean loss at random perturbations of norm 0.01, 0.03 and 0.1)
            or `curvature` (of a random curve within the level set).
        sign: +1 raises the objective, -1 lowers it.
        cap: no further step once the objective is beyond this; None for no limit.
        biases: (out,) of all layers, or none.

    Cost: per step one double backward pass and a pseudo-inverse per hidden layer. Source: Zhao, Gower, Walters, Yu
    (2024), arXiv 2305.13404.
    """
    count = len(weights)
    if len(biases) not in (0, count):
        raise InputError(f"biases must be none or one per layer: {count} weights, {len(biases)} biases")

    def bind(params: Weights) -> Move:
        hidden, inner = [], X.double()
        for layer in range(count - 1):
            hidden.append(inner @ params[layer].T + (params[count + layer] if biases else 0))
            inner = activation(hidden[-1])
        return symmetry(params, hidden, [activation] * (count - 1))

    def evaluate(params: Weights) -> Tensor:
        inner = X.double()
        for layer in range(count):
            inner = inner @ params[layer].T + (params[count + layer] if biases else 0)
            inner = inner if layer == count - 1 else activation(inner)
        return loss(inner, Y)

    climb = Climb(lr, steps, objective, sign, cap)
    jump = climb([w.detach().double() for w in (*weights, *biases)], count, bind, evaluate)
    return Jump(*_like(jump, [*weights, *biases], count), jump.loss, jump.grad_norm)


class LinearTeleport:
    """Teleportation of a linear network, exact on all data: `(W_1, W_2, ...) -> (g_1 W_1, g_2 W_2 g_1^-1, ...)`.

    Args:
        lr, steps, objective, sign, cap: as for `teleport`.

    Source: Zhao, Gower, Walters, Yu (2024), arXiv 2305.13404.
    """

    def __init__(
        self, lr: float = 1e-2, steps: int = 10, objective: str = "grad_norm", sign: int = 1, cap: float | None = None
    ) -> None:
        self.climb = Climb(lr, steps, objective, sign, cap)

    def __call__(self, weights: Sequence[Tensor], loss: Loss) -> Jump:
        """Jump; `loss(weights)` must depend on the product of the matrices only."""

        def bind(params: Weights) -> Move:
            def move(group: Sequence[Tensor]) -> Weights:
                moved = [g @ w for g, w in zip(group, params)] + [params[-1]]
                return [moved[0], *(torch.linalg.solve(g, w, left=False) for w, g in zip(moved[1:], group))]

            return move

        jump = self.climb([w.detach().double() for w in weights], len(weights), bind, loss)
        return Jump(*_like(jump, weights, len(weights)), jump.loss, jump.grad_norm)


def _like(jump: Jump, models: Sequence[Tensor], count: int) -> tuple[Weights, Weights]:
    made = [new.to(old.dtype) for new, old in zip((*jump.weights, *jump.biases), models)]
    return made[:count], made[count:]


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    base = torch.optim.AdamW(model.parameters(), lr=own.pop("lr", 1e-3))
    if isinstance(model, Point):
        model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    return Parts(Teleporting(base, model, **own))


@companion(CARD, _assemble)
class Teleporting(OptimizerWrapper):
    """Teleports the fully connected layers of a network before some steps of any optimizer.

    `step(closure)` takes a closure that returns the loss with its graph, without `backward`. Before the steps
    `at_steps` the weights jump to equivalent ones for the batch of that step, see `teleport`; `jump(closure)` does so
    at any time, e.g. on a larger batch. The state of the base for these weights, which belongs to the old place, is
    set back to what it was when the wrapper was made.

    Args:
        base: any `torch.optim.Optimizer` that takes gradients.
        model: holds an `nn.Sequential` in which linear layers alternate with elementwise activations.
        at_steps: steps, from 0, before which to jump.
        jump_lr, jump_steps, objective, sign, cap: `lr`, `steps` and so on of `teleport`.
        reset: set the base's state back after a jump.

    Attributes:
        jumps: what the jumps did.

    Raises:
        InputError: an argument is out of range, there are no two such layers, or the base evaluates gradients itself.

    Source: Zhao, Gower, Walters, Yu (2024), arXiv 2305.13404.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        at_steps: Iterable[int] = (0,),
        jump_lr: float = 1e-2,
        jump_steps: int = 10,
        objective: str = "grad_norm",
        sign: int = 1,
        cap: float | None = None,
        reset: bool = True,
    ) -> None:
        super().__init__(base)
        if getattr(base, "takes", "gradients") != "gradients":
            raise InputError(f"base must take gradients, {type(base).__name__} evaluates them itself")
        self.at_steps = frozenset(check.integer("at_steps", step, 0) for step in at_steps)
        self.climb = Climb(jump_lr, jump_steps, objective, sign, cap)
        self.reset = reset
        self.layers, self.activations = _chain(model)
        self.steps = 0
        self.jumps: list[Jump] = []
        self._first = {param: copied(state) for param, state in base.state.items()}

    @property
    def takes(self) -> str:
        return "loss"

    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """Take one step, and a jump before it if one is due; returns the loss."""
        self.steps += 1
        due = self.steps - 1 in self.at_steps
        if closure is None:
            if due:
                raise InputError(f"step {self.steps - 1} is to teleport; give step() a closure that returns the loss")
            return self.base.step()
        if due:
            self.jump(closure)
        with torch.enable_grad():
            self.zero_grad()
            loss = closure()
            loss.backward()
        self.base.step()
        return loss.detach()

    def jump(self, closure: Callable[[], Tensor]) -> Jump:
        """Move the weights; `closure` evaluates the loss on the batch for which they are to be equivalent."""
        slots = [
            (layer, name) for name in ("weight", "bias") for layer in self.layers if getattr(layer, name) is not None
        ]
        owners: list[Tensor] = [getattr(layer, name) for layer, name in slots]

        def loss(params: Weights) -> Tensor:
            with _replaced(slots, [new.to(old.dtype) for new, old in zip(params, owners)]):
                return closure()

        def bind(params: Weights) -> Move:
            seen: list[list[Tensor]] = [[] for _ in self.layers]
            handles = [
                layer.register_forward_hook(lambda _module, _inputs, output, place=place: seen[place].append(output))
                for place, layer in enumerate(self.layers)
            ]
            with torch.no_grad():
                loss(params)
            for handle in handles:
                handle.remove()
            hidden = [torch.cat([z.flatten(0, -2) for z in outputs]).double() for outputs in seen[:-1]]
            return symmetry(params, hidden, self.activations)

        jump = self.climb([old.detach().double() for old in owners], len(self.layers), bind, loss)
        with torch.no_grad():
            for old, new in zip(owners, (*jump.weights, *jump.biases)):
                old.copy_(new)
                if self.reset and old in self.base.state:
                    self.base.state.pop(old)
                    if old in self._first:
                        self.base.state[old] = copied(self._first[old])
        self.jumps.append(jump)
        return jump

    def own_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


def _chain(model: nn.Module) -> tuple[list[nn.Linear], list[nn.Module]]:
    """The first run of linear layers with elementwise activations between them."""
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        layers: list[nn.Linear] = []
        activations: list[nn.Module] = []
        for part in module:
            if isinstance(part, nn.Linear) and len(layers) == len(activations):
                layers.append(part)
            elif isinstance(part, POINTWISE) and len(layers) == len(activations) + 1:
                activations.append(part)
            elif len(layers) > 1:
                break
            else:
                layers, activations = [], []
        if len(layers) > 1 and len({layer.bias is None for layer in layers}) == 1:
            return layers, activations[: len(layers) - 1]
    raise InputError(
        f"model {type(model).__name__} holds no nn.Sequential of linear layers (all with or all without biases) with "
        "elementwise activations between them; teleport() takes the weights of other networks"
    )


@contextmanager
def _replaced(slots: Sequence[tuple[nn.Linear, str]], params: Weights) -> Iterator[None]:
    """Let the layers compute with these tensors for a while; they may carry a graph."""
    kept = [layer._parameters[name] for layer, name in slots]
    try:
        for (layer, name), param in zip(slots, params):
            layer._parameters[name] = param  # type: ignore[assignment]
        yield
    finally:
        for (layer, name), param in zip(slots, kept):
            layer._parameters[name] = param
