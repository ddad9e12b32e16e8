"""DeepZero: training from scratch by forward passes only, with sparse coordinate-wise gradient estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, Parts, companion
from hasten.optim.base import NonFiniteGradientError
from hasten.optim.layout import real
from hasten.optim.wrapper import OptimizerWrapper
from hasten.optim.zeroth_order.probes import Loss, move_, normals, source, undone
from hasten.optim.zeroth_order.reuse import FeatureReuse

CARD = Card(
    name="deepzero",
    family="optim",
    paper_id=406,
    title="DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    authors="Chen et al.",
    year=2024,
    arxiv="2310.02025",
    summary="Gives any optimizer gradients measured by forward passes alone, one coordinate at a time, mostly masked.",
    cost="(1 - sparsity) d + 1 forward passes per step for d weights; no backward pass and no memory for it.",
    when="Backward passes are impossible (black box, simulator in the loop) and the network is small.",
    kinds=KINDS,
    needs=("loss",),
    use="base = torch.optim.SGD(model.parameters(), momentum=0.9{hyper})\n"
    "optimizer = hasten.optim.DeepZero(base, model)\n"
    "for inputs, labels in loader:\n    optimizer.step(lambda: loss_fn(model(inputs), labels))",
    search_space={"lr": LogReal(1e-3, 1.0)},
)


@torch.no_grad()
def cge(
    f: Callable[[], Any],
    params: Sequence[Tensor],
    mu: float = 5e-3,
    mask: Sequence[Tensor | None] | None = None,
    central: bool = False,
    base: float | None = None,
) -> list[Tensor]:
    """Coordinate-wise gradient estimate by finite differences.

        g_i = (f(x + mu e_i) - f(x)) / mu,   central: (f(x + mu e_i) - f(x - mu e_i)) / (2 mu);   0 where masked out

    Args:
        f: the loss at the present values of `params`, which are moved and put back exactly.
        params: the tensors to differentiate for.
        mu: length of the step, > 0; about 5e-3 in single precision.
        mask: one boolean tensor per parameter, None for all of its entries.
        central: differences to both sides: twice the evaluations, an error of order mu^2 instead of mu.
        base: `f()`, if it is known.

    Returns:
        One tensor per parameter. Cost: one evaluation of `f`, and one per coordinate (two if `central`).
    """
    check.positive("mu", mu)
    masks = [None] * len(params) if mask is None else list(mask)
    if len(masks) != len(params):
        raise InputError(f"mask must hold one tensor per parameter, {len(params)}; got {len(masks)}")
    start = float(f()) if base is None and not central else base
    estimates = [torch.zeros_like(param) for param in params]
    for param, estimate, chosen in zip(params, estimates, masks):
        seen, slopes = real(param.detach()), real(estimate)
        places = torch.ones(seen.shape, dtype=torch.bool) if chosen is None else chosen.reshape(seen.shape)
        for place in map(tuple, places.nonzero().tolist()):
            entry = seen[place]
            kept = entry.clone()
            try:
                entry.add_(mu)
                up = float(f())
                if central:
                    entry.copy_(kept - mu)
                    slopes[place] = (up - float(f())) / (2 * mu)
                else:
                    slopes[place] = (up - start) / mu  # type: ignore[operator]
            finally:
                entry.copy_(kept)
    return estimates


@torch.no_grad()
def rge(
    f: Callable[[], Any],
    params: Sequence[Tensor],
    q: int = 192,
    mu: float = 5e-3,
    unit: bool = True,
    seed: int = 0,
    base: float | None = None,
) -> list[Tensor]:
    """Gradient estimate from random directions.

        g = 1/q sum_j u_j (f(x + mu u_j) - f(x)) / mu,   u_j normal for every tensor, scaled to length 1 if `unit`

    With `unit` the expectation is the gradient of each tensor over its number of entries.

    Args:
        f, params, mu, base: as for `cge`.
        q: number of directions, at least 1.
        unit: scale each tensor of a direction to length 1.
        seed: of the directions.

    Returns:
        One tensor per parameter. Cost: q + 1 evaluations of `f`.
    """
    check.positive("mu", mu)
    check.integer("q", q, 1)
    estimates = [torch.zeros_like(param) for param in params]
    start = float(f()) if base is None else base
    with undone(params) as undo:
        for j in range(q):
            directions = list(normals(params, seed, j))
            if unit:
                directions = [direction / (direction.norm() + 1e-8) for direction in directions]
            move_(params, directions, mu)
            slope = (float(f()) - start) / mu
            undo()
            move_(estimates, directions, slope / q)
    return estimates


@torch.no_grad()
def zo_grasp_scores(
    f: Callable[[], Any], params: Sequence[Tensor], q: int = 192, mu: float = 5e-3, seed: int = 0
) -> list[Tensor]:
    """How much each weight matters to the flow of gradients, by forward passes only.

        score = - x * Hg,   Hg = (rge(x + mu g) - g) / mu,   g = rge(x)

    Both estimates use the same directions. Args as for `rge`; cost: 2 (q + 1) evaluations of `f`.
    """
    first = rge(f, params, q, mu, seed=seed)
    with undone(params):
        move_(params, [real(estimate) for estimate in first], mu)
        second = rge(f, params, q, mu, seed=seed)
    return [-param.detach() * (b - a) / mu for param, a, b in zip(params, first, second)]


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    base = torch.optim.SGD(model.parameters(), lr=own.pop("lr", 0.1), momentum=own.pop("momentum", 0.9))
    return Parts(DeepZero(base, model, **own))


@companion(CARD, _assemble)
class DeepZero(OptimizerWrapper):
    """Gives any optimizer sparse gradients that are measured by forward passes; the weights stay dense.

    Every `mask_every` steps new random masks are drawn, which leave `1 - sparsity` of the entries of matrices and
    kernels; vectors (biases, norms) are never masked. The share of each tensor comes from ZO-GraSP scores at the
    first step: how many of its entries are among the largest of all. The gradient of the remaining entries is `cge`.
    A change in one layer of an `nn.Sequential` is evaluated from that layer on, with the features before it kept.

        loss = optimizer.step(lambda: loss_fn(model(inputs), labels))

    Dropout and batches drawn inside the closure stay the same within a step, and buffers such as batch statistics
    are updated once.

    Args:
        base: any `torch.optim.Optimizer` that takes gradients.
        model: the network that the closure evaluates.
        sparsity: share of entries left out, in [0, 1).
        mask_every: steps between masks, at least 1; best an epoch.
        layer_ratio: `zo_grasp`, or `uniform` for the same share of every tensor.
        reuse_features: evaluate from the changed layer on; needs an `nn.Sequential` called once per evaluation.
        mu: length of the differences, > 0.
        q: directions for the ZO-GraSP scores, at least 1.
        seed: of masks and directions.

    Attributes:
        queries: evaluations of the loss so far.

    Raises:
        InputError: the base evaluates gradients itself, or `step` got no closure.
        NonFiniteGradientError: an evaluation was infinite or NaN and the base has no policy for it; nothing was
            changed.

    Cost: (1 - sparsity) d + 1 forward passes per step, where reuse saves about half of the work; 2 (q + 1) once. No
    backward pass. Prefer it only where there is no backward pass: with one, gradients cost d times less. Source: Chen
    et al. (2024), arXiv 2310.02025.
    """

    takes = "loss"  # type: ignore[assignment]

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        sparsity: float = 0.9,
        mask_every: int = 100,
        layer_ratio: str = "zo_grasp",
        reuse_features: bool = True,
        mu: float = 5e-3,
        q: int = 192,
        seed: int = 0,
    ) -> None:
        super().__init__(base)
        if getattr(base, "takes", "gradients") != "gradients":
            raise InputError(f"DeepZero gives gradients, but {type(base).__name__} evaluates its own inside the step")
        self.model = model
        self.sparsity = check.fraction("sparsity", sparsity)
        self.mask_every = check.integer("mask_every", mask_every, 1)
        self.layer_ratio = check.one_of("layer_ratio", layer_ratio, ("zo_grasp", "uniform"))
        self.mu = check.positive("mu", mu)
        self.q = check.integer("q", q, 1)
        self.seed = check.integer("seed", seed, 0)
        self.reuse = FeatureReuse(model) if reuse_features and isinstance(model, nn.Sequential) else None
        self.steps = self.queries = 0
        self.shares: list[float] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]
        """One step of the base on estimated gradients; `closure` returns the loss, which is returned."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad and p.numel()]
        f = Loss(closure, params, "DeepZero")
        with self.reuse.record() if self.reuse else nullcontext():
            loss = f()
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        if self.shares is None:
            self.shares = self._shares(f, params)
        estimates = self._estimates(f, params, loss)
        for buffer, kept in buffers:
            buffer.copy_(kept)
        self.queries += f.count
        if not hasattr(self.base, "on_nonfinite") and not all(bool(g.isfinite().all()) for g in estimates):
            raise NonFiniteGradientError(
                f"the loss was infinite or NaN near the parameters (at them it is {loss:g}); nothing was changed. "
                "Lower the learning rate or mu"
            )
        for param, estimate in zip(params, estimates):
            param.grad = estimate
        self.base.step()
        for param in params:
            param.grad = None
        self.steps += 1
        return torch.tensor(loss)

    def _estimates(self, f: Loss, params: list[Tensor], loss: float) -> list[Tensor]:
        masks = self._masks(params)
        if self.reuse is None:
            return cge(f, params, self.mu, masks, base=loss)
        found = []
        for param, mask in zip(params, masks):
            with self.reuse.resume(param):
                found += cge(f, [param], self.mu, [mask], base=loss)
        self.reuse.forget()
        return found

    def _masks(self, params: list[Tensor]) -> list[Tensor | None]:
        assert self.shares is not None
        draw = source(self.seed, self.steps // self.mask_every)
        return [
            _largest(draw(param), max(1, round(share * param.numel()))) if share < 1 else None
            for param, share in zip(params, self.shares)
        ]

    def _shares(self, f: Loss, params: list[Tensor]) -> list[float]:
        """Share of entries to be estimated, per parameter."""
        shares = [1 - self.sparsity if param.ndim > 1 else 1.0 for param in params]
        masked = [place for place, share in enumerate(shares) if share < 1]
        if self.layer_ratio == "uniform" or not masked:
            return shares
        scores = zo_grasp_scores(f, [params[place] for place in masked], self.q, self.mu, self.seed)
        flat = torch.cat([score.abs().flatten().float().cpu() for score in scores])
        kept = _largest(flat, max(1, round((1 - self.sparsity) * flat.numel())))
        parts = kept.split([score.numel() for score in scores])
        for place, part in zip(masked, parts):
            shares[place] = float(part.double().mean())
        return shares

    def own_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "queries": self.queries, "shares": self.shares, "seed": self.seed}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.steps, self.queries, self.seed = state["steps"], state["queries"], state["seed"]
        self.shares = None if state["shares"] is None else list(state["shares"])


def _largest(values: Tensor, count: int) -> Tensor:
    """True at the `count` largest entries."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().topk(count).indices] = True
    return chosen.view(values.shape)
