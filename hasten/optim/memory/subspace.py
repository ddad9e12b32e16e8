"""Online Subspace Descent: optimizer state in a subspace that moves a little with every gradient; and GaLore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Integer, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options
from hasten.optim.memory.projector import BASES, SIDES, Projector
from hasten.optim.memory.surrogate import Base, Part, SubspaceOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="online-subspace",
    family="optim",
    paper_id=203,
    title="Memory-Efficient LLM Training with Online Subspace Descent",
    authors="Liang et al.",
    year=2024,
    arxiv="2408.12857",
    summary="Any optimizer on low-rank projections of matrix gradients; the subspace follows them by online PCA.",
    cost="Per n x m matrix, state for r max(n, m) entries instead of n m, and 3 r min(n, m) for the subspace; three "
    "products with n m r multiplications per step.",
    when="Optimizer memory is what limits the model, and the gradients of its matrices are of low rank.",
    kinds=KINDS,
    use="optimizer = hasten.optim.OnlineSubspace(model.parameters(), scale=1.0{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "rank": Integer(4, 256, log=True)},
)


@optimizer(CARD)
class OnlineSubspace(SubspaceOptimizer):
    """A base optimizer on `g P^T`, P an r x min(n, m) matrix that learns to lose little of the gradient.

        y = g P^T;  d <- the base's step on y;  p <- p (1 - lr weight_decay) + scale d P
        P <- P - AdamW step, with proj_lr lr_t / lr_0, on |G P^T P - G|^2 + proj_reg |P P^T - I|^2, G = g / |g|

    P starts at the leading singular vectors of the first gradient; the moments stay when it moves. The shorter side is
    projected; tensors that are not matrices, and groups with `rank=None`, take the base's own step. With `base="lion"`
    signs are taken after projecting back. `kind="svd"` is GaLore: P is renewed every `update_gap` steps;
    `kind="random"` likewise at random.

    Args:
        params: parameters, named parameters or groups of them; embeddings and output layers are better left whole, see
            `hidden_matrices(model, rank=None)`.
        base: `adamw`, `lion`, `adafactor`, `sgdm` (momentum `betas[0]`), or a class or function that builds an
            optimizer from `(params, lr=...)`.
        lr: step size of the base.
        betas: decay of the moments, in [0, 1); None for the base's usual ones.
        eps: of `adamw`, added to the root of the second moment.
        rank: dimensions of the subspace, None for no projection; more than min(n, m) means all.
        kind: `online_pca`, `svd` or `random`.
        update_gap: steps from one renewal to the next, not for `online_pca`.
        proj_lr, proj_opt, proj_reg: step size and rule (`adamw`, `sgd`) of P, weight of its orthonormality.
        proj_decay: decoupled weight decay of P; the published code has 0.01.
        scale: of the steps of projected matrices.
        side: which side is projected: `std` the shorter one, `reverse_std` the longer one, `left`, `right`.
        weight_decay: decoupled; the base has none.
        seed: of random subspaces.
        options: `maximize`, `backend` (for `lion` and `adafactor`), `on_nonfinite`, see `Options`.

    Raises:
        InputError: also for complex parameters, and for a base that evaluates losses itself.

    Cost: see the card; between steps a stand-in with r max(n, m) entries is kept too. Source: Liang et al. (2024),
    arXiv 2408.12857; GaLore: Zhao et al. (2024), arXiv 2403.03507.
    """

    def __init__(
        self,
        params: Any,
        base: Base = "adamw",
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-6,
        rank: int | None = 128,
        kind: str = "online_pca",
        update_gap: int = 200,
        proj_lr: float = 1 / 200,
        proj_opt: str = "adamw",
        proj_reg: float = 0.1,
        proj_decay: float = 0.0,
        scale: float = 0.25,
        side: str = "std",
        weight_decay: float = 0.0,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        usual = (0.9, 0.99 if base == "lion" else 0.999)
        rule = {"lr": lr, "betas": betas or usual, "eps": eps, "scale": scale, "weight_decay": weight_decay}
        where = {"rank": rank, "kind": kind, "update_gap": update_gap, "side": side, "seed": seed}
        learning = {"proj_lr": proj_lr, "proj_opt": proj_opt, "proj_reg": proj_reg, "proj_decay": proj_decay}
        super().__init__(params, {**rule, **where, **learning, "lr_start": None}, base, _unsigned, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.one_of("kind", group["kind"], BASES)
        check.one_of("side", group["side"], SIDES)
        check.positive("scale", group["scale"])
        if group["rank"] is not None:
            check.integer("rank", group["rank"], 1)
        check.integer("update_gap", group["update_gap"], 1)
        check.nonnegative("proj_lr", group["proj_lr"])
        check.one_of("proj_opt", group["proj_opt"], ("adamw", "sgd"))
        check.nonnegative("proj_reg", group["proj_reg"])
        check.nonnegative("proj_decay", group["proj_decay"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own."""
        super().add_param_group(param_group)
        self.param_groups[-1]["lr_start"] = float(self.param_groups[-1]["lr"])

    def projector(
        self, options: Mapping[str, Any], param: Tensor, number: int, state: dict[str, Any]
    ) -> Projector | None:
        if param.ndim != 2 or options["rank"] is None:
            return None
        where = {"side": options["side"], "gap": options["update_gap"], "seed": options["seed"] + number}
        learning = {"lr": options["proj_lr"], "optimizer": options["proj_opt"], "reg": options["proj_reg"]}
        learning["decay"] = options["proj_decay"]
        return Projector(options["kind"], options["rank"], **where, **learning, state=state)

    def apply(self, p: Tensor, part: Part, options: Mapping[str, Any]) -> None:
        lr, projector = options["lr"], part.projector
        if self.base == "lion":
            assert part.stand_in is not None
            direction = part.stand_in if projector is None else projector.up(part.stand_in)
            p.add_(direction.sign_(), alpha=lr)
        else:
            part.add_back_(p, 1.0 if projector is None else options["scale"])
        if projector is not None:
            start = options["lr_start"]
            projector.learn(part.g, part.y, lr / start if start else 1.0)


def _unsigned(c: Tensor) -> Tensor:
    return c
