"""OptEx: steps on gradients that a kernel predicts, so that the true ones of several iterations come in one round."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.layout import real
from hasten.optim.wrapper import OptimizerWrapper, copied

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "matern52": lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r**2) * torch.exp(-math.sqrt(5) * r),
    "rbf": lambda r: torch.exp(-(r**2) / 2),
}
LENGTHSCALES = ("median", "wide")

CARD = Card(
    name="optex",
    family="optim",
    paper_id=147,
    title="OptEx: Expediting First-Order Optimization with Approximately Parallelized Iterations",
    authors="Shu et al.",
    year=2024,
    arxiv="2402.11427",
    summary="Steps ahead on gradients predicted from past ones, then evaluates all those points in one parallel round.",
    cost="N gradients per round, history x (history + N) inner products of gradients, 2 x history vectors of memory.",
    when="Gradients can be evaluated in parallel and the time of a round counts, not the number of gradients.",
    kinds=KINDS,
    needs=("loss",),
    use="optimizer = hasten.optim.OptEx(model.parameters(), torch.optim.SGD{hyper})\n"
    "for inputs, labels in loader:\n\n"
    "    def closure():\n"
    "        optimizer.zero_grad()\n"
    "        loss = loss_fn(model(inputs), labels)\n"
    "        loss.backward()\n"
    "        return loss\n\n"
    "    optimizer.step(closure)",
    search_space={"lr": LogReal(1e-4, 1e-1), "parallel": Choice(2, 4, 8), "lengthscale": Choice(*LENGTHSCALES)},
)


class KernelGradient:
    """Predicts gradients from those seen at other points, by one kernel for all entries (Gaussian process mean).

        mu(x) = k(x, X) (K + noise I)^-1 G

    Args:
        history: pairs that are kept, the latest ones.
        kernel: `matern52` or `rbf`.
        lengthscale: a number, `median` of the distances in the history, or `wide`: 3 times the largest one.
        noise: variance of the gradients' noise over that of the gradients, above 0.
        subset_dims: how many coordinates, drawn once, make the distances; None for all.
        seed: of that draw.

    Attributes:
        pairs: points and gradients, vectors (d,).
    """

    def __init__(
        self,
        history: int = 20,
        kernel: str = "matern52",
        lengthscale: float | str = "median",
        noise: float = 1e-6,
        subset_dims: int | None = None,
        seed: int = 0,
    ) -> None:
        self.kernel = check.one_of("kernel", kernel, tuple(KERNELS))
        if isinstance(lengthscale, str):
            check.one_of("lengthscale", lengthscale, LENGTHSCALES)
        else:
            check.positive("lengthscale", lengthscale)
        self.lengthscale = lengthscale
        self.noise = check.positive("noise", noise)
        self.subset_dims = None if subset_dims is None else check.integer("subset_dims", subset_dims, 1)
        self.seed = seed
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=check.integer("history", history, 1))
        self._fitted: tuple[Tensor, Tensor, float, Tensor] | None = None

    def add(self, x: Tensor, gradient: Tensor) -> None:
        """Remember a pair; one with infinite or NaN entries is not taken."""
        if bool(torch.isfinite(x).all() and torch.isfinite(gradient).all()):
            self.pairs.append((x.detach().clone(), gradient.detach().clone()))
            self._fitted = None

    def clear(self) -> None:
        """Forget all pairs."""
        self.pairs.clear()
        self._fitted = None

    def predict(self, x: Tensor) -> Tensor:
        """Gradient (d,) expected at the point `x` (d,); zero far away from all that was seen."""
        if not self.pairs:
            raise InputError("nothing to predict from: add pairs of points and gradients first")
        if self._fitted is None:
            self._fitted = self._fit()
        points, gradients, length, factor = self._fitted
        row = KERNELS[self.kernel](_distances(points, self._seen(x)[None])[:, 0] / length)
        weights = torch.cholesky_solve(row[:, None], factor)[:, 0]
        return weights.to(gradients.dtype) @ gradients

    def _fit(self) -> tuple[Tensor, Tensor, float, Tensor]:
        points = torch.stack([self._seen(point) for point, _ in self.pairs])
        distances = _distances(points, points)
        length = self.lengthscale
        if isinstance(length, str):
            apart = distances[distances > 0]
            length = 1.0 if not len(apart) else float(apart.median() if length == "median" else 3 * apart.max())
        gram = KERNELS[self.kernel](distances / length)
        factor = torch.linalg.cholesky(gram + self.noise * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        return points, torch.stack([gradient for _, gradient in self.pairs]), length, factor

    def _seen(self, x: Tensor) -> Tensor:
        if self.subset_dims is None or self.subset_dims >= len(x):
            return x
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))[: self.subset_dims]
        return x[drawn.to(x.device)]


@optimizer(CARD)
class OptEx(OptimizerWrapper):
    """Approximately parallel iterations of any optimizer.

    One call of `step` is one round of `parallel` iterations:

        z_0 = x;  z_j = one step of the base from z_{j-1} on the predicted gradient mu(z_{j-1})
        true gradients at z_0, ..., z_{N-1}, independent of each other: they can be evaluated in parallel
        x <- one step of the base from z_{N-1} on its true gradient; all pairs enter the history of `KernelGradient`

    The state of the base follows the chosen point. `step(closure)` evaluates the points one after the other;
    `round(oracle)` hands them to you all at once. `step()` without a closure is an ordinary step on the gradients in
    place, which is remembered. Hooks on the base act on every iteration, those on predicted gradients included.
    Rounds fall with the number of iterations per round as long as the gradient is smooth enough along the path to be
    predicted; the number of gradients does not fall.

    Args:
        params: parameters or groups.
        base_factory: makes the base from `params` and `options`, e.g. `torch.optim.SGD`; it must take gradients.
        parallel: iterations (gradients) per round.
        history, kernel, lengthscale, noise, subset_dims: see `KernelGradient`.
        select: from which point to go on: `last`, `min_loss` or `min_grad` (norm).
        options: for the base.

    Attributes:
        predictor: the `KernelGradient`.
        idle: places of parameters that had no gradient at the last evaluation.

    Raises:
        InputError: an argument is out of range, or the base evaluates gradients itself.

    Cost: `parallel` gradients per round, 2 `history` vectors of memory. Source: Shu et al. (2024), arXiv 2402.11427.
    """

    def __init__(
        self,
        params: Any,
        base_factory: Callable[..., Optimizer] = torch.optim.SGD,
        parallel: int = 4,
        history: int = 20,
        kernel: str = "matern52",
        lengthscale: float | str = "median",
        noise: float = 1e-6,
        subset_dims: int | None = None,
        select: str = "last",
        **options: Any,
    ) -> None:
        self.parallel = check.integer("parallel", parallel, 1)
        self.select = check.one_of("select", select, ("last", "min_loss", "min_grad"))
        self.predictor = KernelGradient(history, kernel, lengthscale, noise, subset_dims)
        self.idle: list[int] = []
        super().__init__(base_factory(params, **options))
        if getattr(self.base, "takes", "gradients") != "gradients":
            raise InputError(
                f"base_factory must make an optimizer that takes gradients, not {type(self.base).__name__}"
            )

    @property
    def takes(self) -> str:
        return "closure"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One round; `closure` computes the loss and the gradients anew. Returns the loss at the beginning."""
        if closure is None:
            self.predictor.add(self._point(), self._gradient())
            return self.base.step()
        losses: list[Any] = []

        def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
            gradients = []
            for point in points:
                self._move(point)
                with torch.enable_grad():
                    losses.append(closure())
                gradients.append(self._gradient())
            values = [math.nan if loss is None else torch.as_tensor(loss).item() for loss in losses]
            return torch.tensor(values, dtype=torch.float64), torch.stack(gradients)

        self.round(evaluate)
        return losses[0]

    @torch.no_grad()
    def round(self, oracle: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]) -> None:
        """One round in which all points are evaluated together.

        Args:
            oracle: points (n, d), n <= `parallel`, each all parameters one after the other -> their gradients (n, d),
                or losses (n,) and gradients.
        """
        points, states = [self._point()], [self._snapshot(), *[None] * (self.parallel - 1)]
        while len(points) < self.parallel and self.predictor.pairs:
            expected = self.predictor.predict(points[-1])
            if not bool(torch.isfinite(expected).all()):
                break
            self._advance(expected)
            if self.select != "last":
                states[len(points)] = self._snapshot()
            points.append(self._point())
        found = oracle(torch.stack(points))
        losses, gradients = found if isinstance(found, tuple) else (None, found)
        for point, gradient in zip(points, gradients):
            self.predictor.add(point, gradient)
        place = self._choose(losses, gradients)
        self._move(points[place])
        if place != len(points) - 1:
            self._restore(states[place])
        self._advance(gradients[place])

    def _choose(self, losses: Tensor | None, gradients: Tensor) -> int:
        finite = torch.isfinite(gradients).all(1)
        if self.select == "last" or not bool(finite.any()):
            return len(gradients) - 1 if bool(finite[-1]) else 0
        measure = torch.linalg.vector_norm(gradients, dim=1) if self.select == "min_grad" else losses
        if measure is None or bool(measure.isnan().all()):
            raise InputError("select='min_loss' needs losses: let the closure return its loss, or the oracle both")
        if self.select == "min_loss" and self.defaults.get("maximize"):
            measure = -measure
        return int(measure.nan_to_num(math.inf).masked_fill(~finite.to(measure.device), math.inf).argmin())

    # The base's parameters, gradients and state as vectors and copies

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _point(self) -> Tensor:
        return _flat([real(param.detach()) for param in self._params()])

    def _gradient(self) -> Tensor:
        """The gradients in place; remembers which parameters have none, they take no step."""
        params = self._params()
        self.idle = [place for place, param in enumerate(params) if param.grad is None]
        return _flat([real(torch.zeros_like(param) if param.grad is None else param.grad) for param in params])

    def _move(self, point: Tensor) -> None:
        for param, part in zip(self._params(), self._parts(point)):
            param.detach().copy_(part)

    def _advance(self, gradient: Tensor) -> None:
        for place, (param, part) in enumerate(zip(self._params(), self._parts(gradient))):
            param.grad = None if place in self.idle or not param.requires_grad else part.to(param.dtype, copy=True)
        self.base.step()

    def _parts(self, vector: Tensor) -> list[Tensor]:
        params = [real(param.detach()) for param in self._params()]
        parts = [part.view(like.shape) for part, like in zip(vector.split([like.numel() for like in params]), params)]
        pairs = zip(parts, self._params())
        return [torch.view_as_complex(part.contiguous()) if like.is_complex() else part for part, like in pairs]

    def _snapshot(self) -> Any:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        return copied(groups), {param: copied(state) for param, state in self.base.state.items()}

    def _restore(self, saved: Any) -> None:
        for group, options in zip(self.param_groups, saved[0]):
            group.update(options)
        self.base.state.clear()
        self.base.state.update(saved[1])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base; the history, which knows nothing of them, is forgotten."""
        self.base.add_param_group(param_group)
        self.predictor.clear()
        self.idle = []

    def own_state(self) -> dict[str, Any]:
        return {"pairs": [copied(pair) for pair in self.predictor.pairs], "idle": list(self.idle)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.predictor.clear()
        like = self._point()
        for point, gradient in state["pairs"]:
            self.predictor.add(point.to(like.device), gradient.to(like.device))
        self.idle = list(state["idle"])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all entries, in single precision or, where some are double, in double."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.cat([tensor.reshape(-1).to(torch.float64 if double else torch.float32) for tensor in tensors])


def _distances(left: Tensor, right: Tensor) -> Tensor:
    return torch.cdist(left.double(), right.double(), compute_mode="donot_use_mm_for_euclid_dist")
