"""Subspaces of matrices: what optimizer state is kept in when it is not kept for every entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.optim.moments import Scalar, ema_, ema_square_

BASES = ("svd", "random", "online_pca")
CHOICES = ("columns", "rows", "randk", "topk")
KINDS = (*BASES, *CHOICES, "blocks")
SIDES = ("std", "reverse_std", "left", "right")


def on_right(shape: torch.Size | tuple[int, ...], side: str) -> bool:
    """Whether the columns are projected: where rows >= columns (`std`), where rows < columns (`reverse_std`)."""
    tall = shape[-2] >= shape[-1]
    return side == "right" or (side == "std" and tall) or (side == "reverse_std" and not tall)


def down(x: Tensor, basis: Tensor, right: bool) -> Tensor:
    """Coordinates of matrices in the span of the rows of `basis`."""
    return x @ basis.mT if right else basis @ x


def up(y: Tensor, basis: Tensor, right: bool) -> Tensor:
    """Matrices with these coordinates."""
    return y @ basis if right else basis.mT @ y


def add_up_(x: Tensor, y: Tensor, basis: Tensor, right: bool, alpha: Scalar) -> Tensor:
    """`x + alpha up(y)`, in place, for matrices or stacks of them."""
    if isinstance(alpha, Tensor):
        return x.add_(alpha * up(y, basis, right))
    pair = (y, basis) if right else (basis.mT, y)
    return x.addmm_(*pair, alpha=alpha) if x.ndim == 2 else x.baddbmm_(*pair, alpha=alpha)


def principal(x: Tensor, rank: int | None, right: bool) -> Tensor:
    """Leading singular vectors of matrices (..., n, m) on one side, as rows; unit vectors where a matrix is zero.

    A matrix with entries that are not finite counts as zero. Tall matrices are first reduced to their triangular
    factor, which has the same right singular vectors and is as accurate as, and cheaper than, decomposing them whole.
    """
    tall = x if right else x.mT
    size = tall.abs().amax((-2, -1), keepdim=True)
    sound = torch.isfinite(size) & (size > 0)
    tall = torch.where(sound, tall / torch.where(sound, size, 1.0), 0.0)
    if tall.shape[-2] > tall.shape[-1]:
        tall = torch.linalg.qr(tall, mode="r").R
    basis = torch.linalg.svd(tall, full_matrices=False).Vh
    unit = torch.eye(basis.shape[-2], basis.shape[-1], dtype=x.dtype, device=x.device)
    return torch.where(sound, basis, unit)[..., :rank, :]


class Projector:
    """A subspace of n x m matrices, with the way to it and back, renewed from gradients now and then.

        projector.update(g);  y = projector.down(g);  ...;  step = projector.up(direction of y);  projector.learn(g)

    | kind | the subspace |
    |---|---|
    | `svd` | leading singular vectors of the gradient (GaLore) |
    | `random` | random orthonormal directions |
    | `online_pca` | singular vectors at first, then a small step per gradient, in `learn`, to where less is lost |
    | `columns`, `rows` | random columns or rows |
    | `topk` | the rows, or columns if these are more, of largest norm |
    | `randk` | random entries, as a vector |
    | `blocks` | all entries or none, as `active` says |

    `online_pca` goes down `|G P^T P - G|^2 + reg |P P^T - I|^2` in P, where `G = g / |g|`. Random choices depend on
    `seed` and on the number of renewals alone, so that a restored projector goes on as the saved one.

    Args:
        kind: see above.
        rank: dimensions, columns, rows or entries; more than there are means all, None all.
        side: for bases: which side is projected; `std` the shorter one, `reverse_std` the longer one, `left`, `right`.
        gap: updates from one renewal to the next, None for never again.
        seed: of random choices.
        lr, reg, optimizer, decay: of `online_pca`: learning rate, weight of orthonormality, `adamw` or `sgd`, and
            decoupled weight decay of the basis.
        state: where to keep what must be saved: a dict, e.g. of an optimizer; one of its own by default.

    Attributes:
        state: `updates`, and `basis` or `index`; the moments of `online_pca`.

    Raises:
        InputError: an argument is out of range, or `down` is called before `update`.

    Cost: `svd` one decomposition per renewal; a basis two products with n x m x rank multiplications per step,
    `online_pca` one more; choices none.
    """

    def __init__(
        self,
        kind: str = "svd",
        rank: int | None = None,
        side: str = "std",
        gap: int | None = 200,
        *,
        seed: int = 0,
        lr: float = 1 / 200,
        reg: float = 0.1,
        optimizer: str = "adamw",
        decay: float = 0.0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.kind = check.one_of("kind", kind, KINDS)
        self.rank = rank if rank is None else check.integer("rank", rank, 1)
        self.side = check.one_of("side", side, SIDES)
        self.gap = gap if gap is None else check.integer("gap", gap, 1)
        self.seed = check.integer("seed", seed)
        self.lr = check.nonnegative("lr", lr)
        self.reg = check.nonnegative("reg", reg)
        self.optimizer = check.one_of("optimizer", optimizer, ("adamw", "sgd"))
        self.decay = check.nonnegative("decay", decay)
        self.state = {} if state is None else state

    @property
    def active(self) -> bool:
        """Of `blocks`: whether the subspace holds all entries (or none)."""
        return self.state.get("active", True)

    @active.setter
    def active(self, value: bool) -> None:
        self.state["active"] = bool(value)

    def due(self) -> bool:
        """Whether the next update renews the subspace."""
        count = self.state.get("updates", 0)
        return count == 0 or (self.kind != "online_pca" and self.gap is not None and count % self.gap == 0)

    @torch.no_grad()
    def update(self, x: Tensor) -> bool:
        """Take note of a gradient; True if the subspace is another one now."""
        if x.ndim != 2:
            raise InputError(f"Projector works on matrices, got a tensor shaped {tuple(x.shape)}; reshape it first")
        renew = self.due()
        if renew:
            self._renew(x)
        self.state["updates"] = self.state.get("updates", 0) + 1
        return renew

    def _renew(self, x: Tensor) -> None:
        right, kind = on_right(x.shape, self.side), self.kind
        self.state["shape"] = tuple(x.shape)
        if kind in ("svd", "online_pca"):
            self.state["basis"] = principal(x, self.rank, right).contiguous()
        elif kind == "random":
            width = x.shape[1 if right else 0]
            draw = torch.randn(width, min(self.rank or width, width), generator=self._generator(), dtype=torch.float64)
            self.state["basis"] = torch.linalg.qr(draw).Q.mT.contiguous().to(x)
        elif kind == "topk":
            axis = self._axis(x.shape)
            norms = torch.linalg.vector_norm(x, dim=1 - axis)
            self.state["index"] = norms.topk(min(self.rank or len(norms), len(norms))).indices
        elif kind in ("columns", "rows", "randk"):
            total = x.numel() if kind == "randk" else x.shape[self._axis(x.shape)]
            chosen = torch.randperm(total, generator=self._generator())[: self.rank]
            self.state["index"] = chosen.to(x.device)

    def _axis(self, shape: tuple[int, ...] | torch.Size) -> int:
        """The axis of which rows or columns are chosen."""
        return {"rows": 0, "columns": 1}.get(self.kind, 0 if shape[0] >= shape[1] else 1)

    def _generator(self) -> torch.Generator:
        # Seeds of different projectors stay apart for a million renewals; drawn on the CPU, whatever the device.
        return torch.Generator().manual_seed((self.seed << 20) + self.state.get("updates", 0))

    def shape(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
        """Shape of the coordinates of a matrix of this shape."""
        rows, cols = shape
        if self.kind == "blocks":
            return tuple(shape)
        if self.kind == "randk":
            return (min(self.rank or rows * cols, rows * cols),)
        if self.kind in CHOICES:
            right = self._axis(shape) == 1
        else:
            right = on_right(shape, self.side)
        most = cols if right else rows
        if self.kind in ("svd", "online_pca"):
            most = min(shape)
        kept = min(self.rank or most, most)
        return (rows, kept) if right else (kept, cols)

    def down(self, x: Tensor) -> Tensor:
        """Coordinates of a matrix in the subspace."""
        if "updates" not in self.state:
            raise InputError("Projector.down was called before Projector.update; give it the first gradient")
        if self.kind == "blocks":
            return x if self.active else torch.zeros_like(x)
        if self.kind == "randk":
            return x.reshape(-1)[self.state["index"]]
        if self.kind in CHOICES:
            return x.index_select(self._axis(x.shape), self.state["index"])
        return down(x, self.state["basis"].to(x.dtype), on_right(x.shape, self.side))

    def up(self, y: Tensor) -> Tensor:
        """The matrix in the subspace with these coordinates."""
        shape = self.state["shape"]
        if self.kind == "blocks":
            return y if self.active else torch.zeros_like(y)
        if self.kind == "randk":
            return y.new_zeros(shape).view(-1).index_copy_(0, self.state["index"], y).view(shape)
        if self.kind in CHOICES:
            return y.new_zeros(shape).index_copy_(self._axis(shape), self.state["index"], y)
        return up(y, self.state["basis"].to(y.dtype), on_right(shape, self.side))

    def add_(self, x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
        """`x + alpha up(y)`, in place."""
        if self.kind == "blocks":
            return x.add_(y, alpha=alpha) if self.active else x
        if self.kind == "randk":
            return x.put_(self.state["index"], y * alpha, accumulate=True)
        if self.kind in CHOICES:
            return x.scatter_add_(self._axis(x.shape), self._chosen(y), y * alpha)
        return add_up_(x, y, self.state["basis"].to(x.dtype), on_right(x.shape, self.side), alpha)

    def outside(self, x: Tensor, y: Tensor) -> Tensor:
        """What the subspace leaves of a matrix with the coordinates `y`."""
        if self.kind == "blocks":
            return torch.zeros_like(x) if self.active else x.clone()
        if self.kind == "randk":
            return x.clone().put_(self.state["index"], torch.zeros_like(y))
        if self.kind in CHOICES:
            return x.scatter(self._axis(x.shape), self._chosen(y), 0.0)
        return self.add_(x.clone(), y, -1.0)

    def _chosen(self, y: Tensor) -> Tensor:
        return self.state["index"].unsqueeze(1 - self._axis(self.state["shape"])).expand_as(y)

    @torch.no_grad()
    def learn(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> None:
        """Of `online_pca`: one step on the basis; the first gradient, from which it was made, is left out.

        Args:
            x: the gradient.
            y: its coordinates, if they are at hand.
            scale: of the learning rate.
        """
        if self.kind != "online_pca" or self.state["updates"] < 2:
            return
        norm = float(torch.linalg.vector_norm(x))
        if not 0.0 < norm < math.inf:
            return
        grad = self._slope(x, self.down(x) if y is None else y, norm)
        basis, lr = self.state["basis"], self.lr * scale
        if self.optimizer == "sgd":
            basis.mul_(1 - lr * self.decay).sub_(grad, alpha=lr)
            return
        if "basis_exp_avg" not in self.state:
            self.state["basis_exp_avg"], self.state["basis_exp_avg_sq"] = basis.new_zeros((2, *basis.shape)).unbind()
            self.state["basis_step"] = 0
        t = self.state["basis_step"] = self.state["basis_step"] + 1
        first = ema_(self.state["basis_exp_avg"], grad, 0.1)
        spread = (ema_square_(self.state["basis_exp_avg_sq"], grad, 0.001) / (1 - 0.999**t)).sqrt_().add_(1e-8)
        basis.mul_(1 - lr * self.decay).addcdiv_(first, spread, value=-lr / (1 - 0.9**t))

    def _slope(self, x: Tensor, y: Tensor, norm: float) -> Tensor:
        """Gradient of the loss in the basis, with one product of the size of `down`."""
        basis, y = self.state["basis"], y / norm
        cross = (y.mT @ x if on_right(x.shape, self.side) else y @ x.mT).div_(norm)
        gram = basis @ basis.mT
        # 2 (cross P^T P + P P^T cross - 2 cross) + 4 reg (P P^T P - P)
        grad = torch.addmm(cross, cross @ basis.mT, basis, beta=-4.0, alpha=2.0).addmm_(gram, cross, alpha=2.0)
        return grad.addmm_(gram, basis, alpha=4.0 * self.reg).sub_(basis, alpha=4.0 * self.reg)

    def state_dict(self) -> dict[str, Any]:
        """What must be saved; the tensors are copies."""
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the tensors are copied.

        Raises:
            InputError: it is of another kind of projector; nothing was changed.
        """
        wanted = {"basis"} if self.kind in BASES else {"index"} if self.kind in CHOICES else set()
        if state and not ({"updates", "shape"} | wanted) <= set(state):
            raise InputError(f"state is not of a projector of kind {self.kind!r}: it has {sorted(state)}")
        self.state.clear()
        self.state.update(
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        )
