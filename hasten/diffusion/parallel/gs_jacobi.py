"""GS-Jacobi: the inverse of an autoregressive flow by parallel sweeps over segments of its tokens."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import DivergedError, InputError
from hasten.core.registry import register

CARD = Card(
    name="gs-jacobi",
    family="diffusion",
    title="Accelerate TarFlow Sampling with GS-Jacobi Iteration",
    authors="Liu & Qin",
    year=2025,
    arxiv="2505.12849",
    paper_id=170,
    summary="Inverts an autoregressive flow by sweeps over whole segments of tokens instead of token after token.",
    cost="As many passes as sweeps settle in, at most one per token; each pass covers a whole segment.",
    when="For samples of transformer flows, wherever a pass over many tokens costs little more than one over a few.",
    kinds=("sample",),
    needs=("autoregressive-flow",),
    use=(
        "from hasten.problems.networks.tarflow import TinyTarFlow\n"
        "flow = TinyTarFlow()\n"
        "z = torch.randn(4, flow.tokens, flow.features)\n"
        "images = flow.unpatchify(hasten.diffusion.invert_flow(flow, z{hyper}).x)"
    ),
)
STARTS = ("z", "zero")


class AffineBlock(Protocol):
    """A causal affine map of tokens, `z_t = (x_t - mu_t(x_<t)) exp(-s_t(x_<t))` with `mu_1 = s_1 = 0`."""

    def ordered(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Tokens (batch, tokens, features) in the order of the recursion, or back from it."""
        ...

    def extend(self, x: Tensor, start: int, memory: Any) -> tuple[Tensor, Tensor, Any]:
        """mu and s of the token after each of the given ones, and the memory (keys and values) that holds these too.

        `x` are tokens `start, start + 1, ...` of the recursion; `memory` is that of all before, None at the start.
        """
        ...

    def projections(self) -> tuple[Tensor, Tensor]:
        """Weights of the last linear layer that make mu, and those that make s."""
        ...


class Inverted(NamedTuple):
    """The tokens x that a map sends to z.

    Attributes:
        x: shaped like z.
        passes: network passes one after the other: per segment, or per block for a whole flow.
        overflows: passes in which `z exp(s) + mu` left the finite numbers at a token that was not settled.
    """

    x: Tensor
    passes: tuple[int, ...]
    overflows: int


@dataclass(frozen=True)
class BlockPlan:
    """How one block is inverted; see `gs_jacobi_inverse`."""

    segments: int = 1
    max_iter: int | None = None
    init: str = "z"

    def __post_init__(self) -> None:
        check.integer("segments", self.segments, 1)
        if self.max_iter is not None:
            check.integer("max_iter", self.max_iter, 1)
        check.one_of("init", self.init, STARTS)


@register(CARD)
def invert_flow(
    flow: Any, z: Tensor, plans: Sequence[BlockPlan] | None = None, *, tol: float = 1e-8, clamp: float | None = 3.0
) -> Inverted:
    """Samples of an autoregressive flow from latent tokens, block after block from the last.

    Args:
        flow: the flow; its `blocks` are `AffineBlock`s that map data to noise, the first one first.
        z: latent tokens (batch, tokens, features), standard normal.
        plans: one per block, in the order of the data; `plan_flow` makes them from training data. Without them every
            block is inverted by Jacobi iteration.
        tol, clamp: see `gs_jacobi_inverse`.

    Returns:
        Tokens of the data, and the passes of each block in the order of the data.

    Source: Liu & Qin (2025), arXiv 2505.12849.
    """
    blocks = list(flow.blocks)
    plans = [BlockPlan()] * len(blocks) if plans is None else list(plans)
    if len(plans) != len(blocks):
        raise InputError(f"plans must hold one plan per block: the flow has {len(blocks)}, got {len(plans)}")
    x, passes, overflows = z, [], 0
    for block, plan in zip(reversed(blocks), reversed(plans)):
        x, rounds, lost = gs_jacobi_inverse(block, x, plan.segments, plan.max_iter, tol, init=plan.init, clamp=clamp)
        passes.insert(0, sum(rounds))
        overflows += lost
    return Inverted(x, tuple(passes), overflows)


@torch.no_grad()
def gs_jacobi_inverse(
    block: AffineBlock,
    z: Tensor,
    segments: int,
    max_iter: int | None = None,
    tol: float = 1e-8,
    *,
    init: str = "z",
    clamp: float | None = 3.0,
) -> Inverted:
    """The tokens that one block maps to z: Gauss-Seidel over segments, Jacobi iteration inside each.

    Within a segment all tokens are renewed at once, `x <- z exp(s(x)) + mu(x)`, until `|x_new - x| < tol batch
    features`; then the segment's keys and values are kept and the next one begins. After k passes the first k tokens
    of a segment are exact, so no more passes are made than it has tokens: with one segment per token this is the
    sequential inverse, with one segment Jacobi iteration.

    Args:
        block: the map.
        z: its values, (batch, tokens, features).
        segments: parts into which the tokens are cut; divides their number.
        max_iter: most passes per segment; None lets each settle.
        tol: change of a token's features, summed as above, that counts as settled.
        init: first guess: `z`, or `zero`, which is zeros after the first token. Tokens that overflow fall back to z.
        clamp: bound on the size of tokens that are not settled; it is lifted before a segment counts as settled, so
            that the result does not depend on it unless `max_iter` cuts the iteration short. None for no bound.

    Raises:
        InputError: `segments` does not divide the number of tokens, or another argument is out of range.
        DivergedError: the exact inverse itself overflows.

    Cost: passes one after the other, each over one segment. Source: Liu & Qin (2025), arXiv 2505.12849.
    """
    plan = BlockPlan(segments, max_iter, init)
    check.nonnegative("tol", tol)
    bound = math.inf if clamp is None else check.positive("clamp", clamp)
    _check_tokens(z, plan.segments)
    z = block.ordered(z)
    x = z.clone()
    if init == "zero":
        x[:, 1:] = 0.0
    batch, tokens, features = z.shape
    memory, passes, overflows = None, [], 0
    for begin in range(0, tokens - 1, tokens // segments):
        # Token t makes the coefficients of token t + 1: a segment's inputs lie one place before its outputs.
        end = min(begin + tokens // segments, tokens - 1)
        goal, now, limit = z[:, begin + 1 : end + 1], x[:, begin + 1 : end + 1], bound
        extended, done = memory, 0
        for done in range(1, min(end - begin, max_iter or tokens) + 1):
            mu, s, extended = block.extend(x[:, begin:end], begin, memory)
            new = goal * s.exp() + mu
            lost = _replace_overflow(new, goal, done, begin)
            overflows += lost
            new[:, done:].clamp_(-limit, limit)
            change = float((new - now).norm()) / (batch * features)
            now.copy_(new)
            if change < tol and not lost:
                if not bool((new[:, done:].abs() == limit).any()):
                    break
                limit = math.inf
        memory = extended
        passes.append(done)
    if overflows and init == "zero":
        warnings.warn("exp(s) overflowed from the guess of zeros; those tokens went on from z", stacklevel=2)
    return Inverted(block.ordered(x, inverse=True), tuple(passes), overflows)


def jacobi_inverse(
    block: AffineBlock,
    z: Tensor,
    max_iter: int | None = None,
    tol: float = 1e-8,
    init: str = "z",
    clamp: float | None = 3.0,
) -> Inverted:
    """The tokens that one block maps to z, all renewed at once in every pass; see `gs_jacobi_inverse`."""
    return gs_jacobi_inverse(block, z, 1, max_iter, tol, init=init, clamp=clamp)


def sequential_inverse(block: AffineBlock, z: Tensor) -> Inverted:
    """The tokens that one block maps to z, one after the other: the exact inverse in `tokens - 1` passes."""
    _check_tokens(z, 1)
    return gs_jacobi_inverse(block, z, z.shape[1])


@torch.no_grad()
def igm(block: AffineBlock, x: Tensor) -> dict[str, float]:
    """Initial guessing metric: how far one pass from each first guess stays from the data, by name of the guess.

    `|mean over the batch of (z exp(s(guess)) + mu(guess) - x)|_2`, the norm being the spectral one of (tokens,
    features). The guess with the smaller value is the better `init`; one that overflows has infinity.

    Args:
        block: the map.
        x: what it is fed with when the flow sees training data, (batch, tokens, features).
    """
    _check_tokens(x, 1)
    x = block.ordered(x)
    _, _, z = _forward(block, x)
    guesses = {"z": z, "zero": torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], dim=1)}
    found: dict[str, float] = {}
    for name, guess in guesses.items():
        mu, s, _ = block.extend(guess[:, :-1], 0, None)
        residual = (z[:, 1:] * s.exp() + mu - x[:, 1:]).mean(0)
        found[name] = float(matrix_norm(residual, ord=2)) if bool(residual.isfinite().all()) else math.inf
    return found


@torch.no_grad()
def crm(block: AffineBlock, x: Tensor) -> float:
    """Convergence ranking metric: `|mean of exp(-s) x|_2 |W_s|_2 + |W_mu|_2`, large where iteration is slow.

    All norms are spectral; W are the two halves of the last layer's weights. A block with a large share of the sum over
    all blocks is a tough one.

    Args:
        block, x: as for `igm`.
    """
    _check_tokens(x, 1)
    x = block.ordered(x)
    _, s, _ = _forward(block, x)
    scaled = torch.cat([x[:, :1], x[:, 1:] * (-s).exp()], dim=1).mean(0)
    weight_mu, weight_s = block.projections()
    return float(matrix_norm(scaled, ord=2) * matrix_norm(weight_s, ord=2) + matrix_norm(weight_mu, ord=2))


@torch.no_grad()
def plan_flow(
    flow: Any, x: Tensor, *, segments: int = 8, max_iter: int | None = None, tough: float = 2.0
) -> list[BlockPlan]:
    """A plan for every block, from a batch of training data: cuts up the tough blocks, chooses the first guesses.

    Args:
        flow: the flow.
        x: tokens of training data, (batch, tokens, features).
        segments: of tough blocks.
        max_iter: most passes over easy blocks; None lets them settle.
        tough: a block is tough when its share of the sum of `crm` is at least this many times the mean share.
    """
    check.positive("tough", tough)
    _check_tokens(x, segments)
    scores, starts = [], []
    for block in flow.blocks:
        scores.append(crm(block, x))
        guesses = igm(block, x)
        starts.append(min(STARTS, key=lambda name: guesses[name]))
        x = block.ordered(_forward(block, block.ordered(x))[2], inverse=True)
    level = tough * sum(scores) / len(scores)
    return [
        BlockPlan(segments, None, init) if score >= level else BlockPlan(1, max_iter, init)
        for score, init in zip(scores, starts)
    ]


def _forward(block: AffineBlock, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mu and s of all tokens but the first, and the block's values; everything in the order of the recursion."""
    mu, s, _ = block.extend(x[:, :-1], 0, None)
    return mu, s, torch.cat([x[:, :1], (x[:, 1:] - mu) * (-s).exp()], dim=1)


def _replace_overflow(new: Tensor, goal: Tensor, exact: int, begin: int) -> bool:
    """Put z where a token is not finite; an error where it is one of the first `exact`, which no pass will change."""
    bad = ~new.isfinite()
    if not bool(bad.any()):
        return False
    if bool(bad[:, :exact].any()):
        place = begin + 1 + int(bad[:, :exact].any(2).any(0).nonzero()[0])
        raise DivergedError(f"the inverse is nan or infinity at token {place} of the recursion: exp(s) overflows there")
    new[bad] = goal[bad]
    return True


def _check_tokens(z: Tensor, segments: int) -> None:
    check.integer("segments", segments, 1)
    if z.ndim != 3 or z.shape[1] < 2 or not z.is_floating_point():
        raise InputError(f"tokens must be real, of shape (batch, tokens, features), got {tuple(z.shape)} {z.dtype}")
    if z.shape[1] % segments:
        raise InputError(f"segments must divide the number of tokens, {z.shape[1]}; got {segments}")
