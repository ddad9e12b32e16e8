"""Subset-norm and subspace-momentum: one second moment per row, momentum in few dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.memory.projector import add_up_, down, on_right, principal
from hasten.optim.moments import Scalar, axpy_, ema_

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hasten.optim.layout import Batch

SECOND_MOMENTS = ("subset", "full", "none")
MOMENTA = ("subspace", "full", "none")
PROJECTIONS = ("svd", "uniform", "topk")

CARD = Card(
    name="snsm",
    family="optim",
    paper_id=69,
    title="Efficient Adaptive Optimization via Subset-Norm and Subspace-Momentum: Fast, Memory-Reduced Training with "
    "Convergence Guarantees",
    authors="Nguyen, Nguyen",
    year=2025,
    arxiv="2411.07120",
    summary="Adam with one second moment per row of a matrix and momentum in a subspace, plain gradients outside it.",
    cost="max(n, m) + rank (n + m) numbers of state per n x m matrix, a fifth of Adam's as the authors use it; two "
    "products with the basis per step, one SVD per gap.",
    when="Optimizer memory is what limits the model; use about ten times Adam's learning rate for matrices.",
    kinds=KINDS,
    use="optimizer = hasten.optim.SNSM(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class SNSM(RuleOptimizer):
    """Adam whose two moments are each made small; either half goes with the other's standard form.

        v_s <- b2 v_s + (1 - b2) sum over subset s of g^2;  y = P g;  m <- b1 m + (1 - b1) y
        p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) (P^T m + (g - P^T y)) / (sqrt(v) + eps);  p <- p (1 - lr weight_decay)

    P is renewed, and m set to zero, every `update_gap` steps, first at once. The sum over a subset is what makes ten
    times Adam's learning rate the right one. A moment that is left out is not corrected for. Tensors that are not
    matrices keep full moments.

    Args:
        params: parameters, named parameters or groups of them; to leave embeddings, the output layer and vectors to
            Adam at a rate of its own: `hidden_matrices(model, second_moment="full", momentum="full", lr=1e-3)`.
        lr: step size.
        betas: decay of momentum, in [0, 1), and of the second moment, in [0, 1]; 1 sums it up as AdaGrad does.
        eps: added to the root of the second moment.
        second_moment: `subset`, `full` or `none`.
        momentum: `subspace`, `full` or `none`.
        subset_size: `heuristic`, a row, or a column where these are more; or a number: stretches of the flattened
            matrix, as long as the largest divisor of its size that is not above.
        rank: dimensions of momentum's subspace.
        projection: `svd`, singular vectors of the gradient on the shorter side; `uniform`, rows at random, or columns
            where these are more; `topk`, those of largest norm.
        update_gap: steps from one subspace to the next.
        weight_decay: decoupled, after the step.
        seed: of `uniform`.
        options: `maximize`, `backend` (with a subspace matrices always run eagerly), `on_nonfinite`, see `Options`.

    Raises:
        InputError: also for complex parameters.

    Cost: see the card. Source: Nguyen, Nguyen (2025), arXiv 2411.07120.
    """

    whole_tensor = True
    takes_complex = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        second_moment: str = "subset",
        momentum: str = "subspace",
        subset_size: str | int = "heuristic",
        rank: int = 64,
        projection: str = "svd",
        update_gap: int = 200,
        weight_decay: float = 0.0,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        halves = {"second_moment": second_moment, "momentum": momentum, "subset_size": subset_size}
        where = {"rank": rank, "projection": projection, "update_gap": update_gap, "seed": seed}
        super().__init__(params, {**adam, **halves, **where}, **options)

    def check_betas(self, betas: Sequence[float]) -> None:
        check.fraction("betas[0]", betas[0])
        check.real("betas[1]", betas[1], 0.0, 1.0)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.one_of("second_moment", group["second_moment"], SECOND_MOMENTS)
        check.one_of("momentum", group["momentum"], MOMENTA)
        check.one_of("projection", group["projection"], PROJECTIONS)
        check.integer("rank", group["rank"], 1)
        check.integer("update_gap", group["update_gap"], 1)
        check.integer("seed", group["seed"], 0, 2**20)
        size = group["subset_size"]
        if size != "heuristic" and (isinstance(size, (bool, str)) or not hasattr(size, "__index__") or size < 1):
            raise InputError(f"subset_size must be 'heuristic' or an integer of at least 1, got {size!r}")

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        matrix = len(shape) == 2
        found: dict[str, tuple[int, ...]] = {}
        if group["second_moment"] == "full" or (group["second_moment"] == "subset" and not matrix):
            found["exp_avg_sq"] = tuple(shape)
        elif group["second_moment"] == "subset" and group["subset_size"] != "heuristic":
            size = math.prod(shape)
            found["exp_avg_sq_chunk"] = (size // divisor(size, group["subset_size"]), 1)
        elif group["second_moment"] == "subset":
            rows, cols = shape
            found.update({"exp_avg_sq_row": (rows, 1)} if rows >= cols else {"exp_avg_sq_col": (1, cols)})
        if group["momentum"] == "full" or (group["momentum"] == "subspace" and not matrix):
            found["exp_avg"] = tuple(shape)
        elif group["momentum"] == "subspace":
            found.update(_subspace(shape, group["rank"], group["projection"]))
        return found

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        if "seed" in state:
            state["seed"].fill_(group["seed"] + len(self.state))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        step = group["lr"]
        if group["momentum"] != "none":
            step /= 1 - beta1**t
        if group["second_moment"] != "none" and beta2 < 1:
            step *= math.sqrt(1 - beta2**t)
        return {
            "step": step,
            "weight1": 1 - beta1,
            "weight2": 1 - beta2 if beta2 < 1 else None,
            "eps": group["eps"],
            "shrink": group["lr"] * group["weight_decay"] if group["weight_decay"] else None,
            "projection": group["projection"],
            "renewal": t if (t - 1) % group["update_gap"] == 0 else 0,
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        *,
        exp_avg: Tensor | None = None,
        exp_avg_sq: Tensor | None = None,
        exp_avg_sq_row: Tensor | None = None,
        exp_avg_sq_col: Tensor | None = None,
        exp_avg_sq_chunk: Tensor | None = None,
        basis: Tensor | None = None,
        index: Tensor | None = None,
        seed: Tensor | None = None,
        step: Scalar,
        weight1: Scalar,
        weight2: Scalar | None,
        eps: Scalar,
        shrink: Scalar | None,
        projection: str,
        renewal: int,
    ) -> None:
        n = g
        if exp_avg is not None and basis is not None:
            right = on_right(g.shape, "std")
            if renewal:
                basis.copy_(principal(g, basis.shape[-2], right))
                exp_avg.zero_()
            y = down(g, basis, right)
            n = add_up_(g.clone(), ema_(exp_avg, y, weight1) - y, basis, right, 1.0)
        elif exp_avg is not None and index is not None:
            axis = 1 if g.shape[1] >= g.shape[2] else 2
            if renewal:
                index.copy_(_topk(g, axis, index) if seed is None else _uniform(g.shape[axis], index, seed, renewal))
                exp_avg.zero_()
            chosen = index.long().unsqueeze(3 - axis).expand_as(exp_avg)
            n = g.scatter(axis, chosen, ema_(exp_avg, g.gather(axis, chosen), weight1))
        elif exp_avg is not None:
            n = ema_(exp_avg, g, weight1)
        square = g * g
        if exp_avg_sq is not None:
            n = n / _sum_up(exp_avg_sq, square, weight2).sqrt().add_(eps)
        elif exp_avg_sq_row is not None:
            n = n / _sum_up(exp_avg_sq_row, square.sum(2, keepdim=True), weight2).sqrt().add_(eps)
        elif exp_avg_sq_col is not None:
            n = n / _sum_up(exp_avg_sq_col, square.sum(1, keepdim=True), weight2).sqrt().add_(eps)
        elif exp_avg_sq_chunk is not None:
            chunks = (*exp_avg_sq_chunk.shape[:2], -1)
            _sum_up(exp_avg_sq_chunk, square.reshape(chunks).sum(2, keepdim=True), weight2)
            n = (n.reshape(chunks) / exp_avg_sq_chunk.sqrt().add_(eps)).view(g.shape)
        axpy_(p, -step, n)
        if shrink is not None:
            p.mul_(1 - shrink)

    def _compiles(self, batch: Batch, t: int) -> bool:
        # A subspace is a product or a gathering: library calls either way.
        return not {"basis", "index"} & set(batch.names) and super()._compiles(batch, t)


def divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is not above `most`."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def _subspace(shape: torch.Size, rank: int, projection: str) -> dict[str, tuple[int, ...]]:
    rows, cols = shape
    if projection == "svd":
        rank = min(rank, rows, cols)
        return {"exp_avg": (rows, rank) if rows >= cols else (rank, cols), "basis": (rank, min(rows, cols))}
    rank = min(rank, max(rows, cols))
    # Indices are kept in the precision of the state, which holds them exactly up to 2^24.
    found = {"exp_avg": (rank, cols) if rows >= cols else (rows, rank), "index": (rank,)}
    return found if projection == "topk" else {**found, "seed": (1,)}


def _sum_up(total: Tensor, square: Tensor, weight: Scalar | None) -> Tensor:
    return total.add_(square) if weight is None else ema_(total, square, weight)


def _topk(g: Tensor, axis: int, index: Tensor) -> Tensor:
    return torch.linalg.vector_norm(g, dim=3 - axis).topk(index.shape[-1]).indices


def _uniform(total: int, index: Tensor, seed: Tensor, renewal: int) -> Tensor:
    chosen = []
    for own in seed.flatten().tolist():
        generator = torch.Generator().manual_seed((int(own) << 24) + int(renewal))
        chosen.append(torch.randperm(total, generator=generator)[: index.shape[-1]])
    return torch.stack(chosen).to(index)
