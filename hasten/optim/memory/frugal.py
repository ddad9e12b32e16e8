"""FRUGAL: a stateful rule inside a subspace, a stateless one outside it, so that every entry moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal, Real
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options
from hasten.optim.memory.projector import SIDES, Projector, on_right
from hasten.optim.memory.surrogate import Base, Part, SubspaceOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

PROJECTIONS = ("svd", "random", "columns", "rows", "randk", "blocks")
ORDERS = ("random", "ascending", "descending", "mirror")
INACTIVE = ("sign_sgd", "sgd", "none")

CARD = Card(
    name="frugal",
    family="optim",
    paper_id=268,
    title="FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training",
    authors="Zmushko et al.",
    year=2024,
    arxiv="2411.07837",
    summary="Any optimizer in a part of each matrix or of the network, signed gradient steps in the rest.",
    cost="A quarter of the base's state for matrices at density 0.25; columns, rows, entries and blocks cost no "
    "products, svd three per step and a decomposition per gap.",
    when="Optimizer memory is what limits the model, and its updates should still be of full rank.",
    kinds=KINDS,
    use="optimizer = hasten.optim.Frugal(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "inactive_lr_scale": Real(0.03, 1.0, log=True)},
)


@optimizer(CARD)
class Frugal(SubspaceOptimizer):
    """A base optimizer on a part of the entries, and signs of the gradient on the others.

        every update_gap steps: a new subspace, and the base begins anew
        y = down(g);  d <- the base's step on y;  r = g - up(y);  p <- p (1 - lr weight_decay)
        p <- p + proj_lr_scale (up(d) - lr inactive_lr_scale sign(r))

    Matrices are split. All other tensors, and groups with `density=None`, take the base's own step. The authors leave
    embeddings and the output layer so: `Frugal(hidden_matrices(model, density=None))`.

    Args:
        params: parameters, named parameters or groups of them.
        base: `adamw`, `lion`, `adafactor`, `sgdm` (momentum `betas[0]`), or a class or function that builds an
            optimizer from `(params, lr=...)`.
        projection: `svd` leading singular vectors of the present gradient; `random` directions; random `columns`,
            `rows` or entries (`randk`); `blocks`, whole matrices of the group.
        density: share of rows, columns, entries or matrices that the base gets, in [0, 1]; None for no split.
        update_gap: steps from one subspace to the next.
        inactive: outside: `sign_sgd`, `sgd` or `none` (GaLore, if nothing is reset).
        inactive_lr_scale: of the steps outside.
        proj_lr_scale: of the steps of split matrices, inside and outside.
        reset: whether the base begins anew in a new subspace; a matrix that leaves `blocks` is forgotten anyway.
        block_order: `random`, `ascending`, `descending`, or `mirror` (pairs from both ends).
        lr, betas, eps: of the base; betas None for its usual ones.
        weight_decay: decoupled, of all parameters; the base has none.
        side: of `svd` and `random`: which side is projected, see `Projector`.
        seed: of random choices.
        options: `maximize`, `backend` (for `lion` and `adafactor`), `on_nonfinite`, see `Options`.

    Raises:
        InputError: also for complex parameters, and for a base that evaluates losses itself.

    Cost: density times the base's state, and a stand-in of that size. Source: Zmushko et al. (2024),
    arXiv 2411.07837.
    """

    def __init__(
        self,
        params: Any,
        base: Base = "adamw",
        projection: str = "svd",
        density: float | None = 0.25,
        update_gap: int = 200,
        inactive: str = "sign_sgd",
        inactive_lr_scale: float = 1.0,
        proj_lr_scale: float = 1.0,
        reset: bool = True,
        block_order: str = "random",
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        side: str = "std",
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        usual = (0.9, 0.99 if base == "lion" else 0.999)
        rule = {"lr": lr, "betas": betas or usual, "eps": eps, "weight_decay": weight_decay}
        where = {"projection": projection, "density": density, "update_gap": update_gap, "reset": reset}
        outside = {"inactive": inactive, "inactive_lr_scale": inactive_lr_scale, "proj_lr_scale": proj_lr_scale}
        choice = {"block_order": block_order, "side": side, "seed": seed}
        super().__init__(params, {**rule, **where, **outside, **choice}, base, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.one_of("projection", group["projection"], PROJECTIONS)
        check.one_of("inactive", group["inactive"], INACTIVE)
        check.one_of("block_order", group["block_order"], ORDERS)
        check.one_of("side", group["side"], SIDES)
        check.integer("update_gap", group["update_gap"], 1)
        check.nonnegative("inactive_lr_scale", group["inactive_lr_scale"])
        check.nonnegative("proj_lr_scale", group["proj_lr_scale"])
        if group["density"] is None:
            return
        check.real("density", group["density"], 0.0, 1.0)
        if group["projection"] == "blocks" and group["block_order"] == "mirror":
            count = _count(len(_matrices(group)), group["density"])
            if count % 2 and _matrices(group):
                raise InputError(
                    f"block_order='mirror' takes matrices in pairs, but density={group['density']} of "
                    f"{len(_matrices(group))} makes {count}; choose a density that makes an even number"
                )

    def projector(
        self, options: Mapping[str, Any], param: Tensor, number: int, state: dict[str, Any]
    ) -> Projector | None:
        if param.ndim != 2 or options["density"] is None:
            return None
        kind, gap = options["projection"], options["update_gap"]
        renewal, within = divmod(state["step"], gap)
        if within == 0 and options["reset"]:
            self.forget(state)
        rank = 0 if kind == "blocks" else _rank(param.shape, kind, options["density"], options["side"])
        if rank == 0:
            projector = Projector("blocks", state=state)
            if within == 0:
                projector.active = kind == "blocks" and self._chosen(param, options, renewal)
            if not projector.active:
                self.forget(state)
            return projector
        seed = options["seed"] + number
        return Projector(kind, rank, side=options["side"], gap=gap, seed=seed, state=state)

    def _chosen(self, param: Tensor, options: Mapping[str, Any], renewal: int) -> bool:
        group = next(group for group in self.param_groups if any(param is other for other in group["params"]))
        matrices = _matrices(group)
        chosen = blocks(len(matrices), options["density"], options["block_order"], renewal, options["seed"])
        return any(matrices[index] is param for index in chosen)

    def apply(self, p: Tensor, part: Part, options: Mapping[str, Any]) -> None:
        projector, scale = part.projector, options["proj_lr_scale"]
        part.add_back_(p, 1.0 if projector is None else scale)
        if projector is None or options["inactive"] == "none" or (projector.kind == "blocks" and projector.active):
            return
        rest = projector.outside(part.g, part.y)
        step = options["lr"] * scale * options["inactive_lr_scale"]
        p.sub_(rest.sign_() if options["inactive"] == "sign_sgd" else rest, alpha=step)


def blocks(count: int, density: float, order: str, renewal: int, seed: int = 0) -> Sequence[int]:
    """Which of `count` matrices are active from this renewal (0, 1, ...) to the next."""
    active = _count(count, density)
    if order == "random":
        generator = torch.Generator().manual_seed((seed << 20) + renewal)
        return torch.randperm(count, generator=generator)[:active].tolist()
    if order == "ascending":
        return [(renewal * active + index) % count for index in range(active)]
    if order == "descending":
        return [(count - 1 - renewal * active - index) % count for index in range(active)]
    half, pairs = count // 2, active // 2
    low = [(renewal * pairs + index) % half for index in range(pairs)]
    return [*low, *(count - 1 - index for index in low)]


def _matrices(group: Mapping[str, Any]) -> list[Tensor]:
    return [param for param in group["params"] if param.ndim == 2 and param.numel()]


def _count(matrices: int, density: float) -> int:
    return round(matrices * density)


def _rank(shape: torch.Size, kind: str, density: float, side: str) -> int:
    """Directions are rounded to the nearest number, choices down, as in the published code."""
    rows, cols = shape
    if kind in ("svd", "random"):
        return round((cols if on_right(shape, side) else rows) * density)
    return int({"columns": cols, "rows": rows, "randk": rows * cols}[kind] * density)
