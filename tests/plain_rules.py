"""The rules once more, written plainly from the papers for one tensor in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Rule = Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]


def adopt(
    lr: float = 1e-3, b1: float = 0.9, b2: float = 0.9999, eps: float = 1e-6, clip: Any = lambda k: k**0.25,
    wd: float = 0.0, decouple: bool = False,
) -> Rule:  # fmt: skip
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        if wd and not decouple:
            g = g + wd * p
        if t == 1:
            s["v"], s["m"] = g**2, torch.zeros_like(g)
            return p
        if wd and decouple:
            p = p * (1 - lr * wd)
        n = g / torch.clamp(s["v"].sqrt(), min=eps)
        if clip is not None:
            n = torch.clamp(n, -clip(t - 1), clip(t - 1))
        s["m"] = b1 * s["m"] + (1 - b1) * n
        s["v"] = b2 * s["v"] + (1 - b2) * g**2
        return p - lr * s["m"]

    return rule


def adabelief(
    lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16, wd: float = 0.0, decouple: bool = True,
    fixed: bool = False, rectify: bool = True, amsgrad: bool = False,
) -> Rule:  # fmt: skip
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        if decouple:
            p = p * (1 - wd if fixed else 1 - lr * wd)
        else:
            g = g + wd * p
        m = b1 * s.get("m", 0.0) + (1 - b1) * g
        v = b2 * s.get("v", 0.0) + (1 - b2) * (g - m) ** 2 + eps
        s["m"], s["v"] = m, v
        if amsgrad:
            v = s["max"] = torch.maximum(v, s.get("max", torch.zeros_like(v)))
        c1, c2 = 1 - b1**t, 1 - b2**t
        if not rectify:
            return p - lr / c1 * m / (v.sqrt() / math.sqrt(c2) + eps)
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * t * b2**t / c2
        if rho < 5:
            return p - lr / c1 * m
        r = c2 * (rho - 4) / (rho_inf - 4) * (rho - 2) / rho * rho_inf / (rho_inf - 2)
        return p - lr * math.sqrt(r) / c1 * m / (v.sqrt() + eps)

    return rule


def ademamix(
    lr: float = 1e-3, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), alpha: float = 2.0, eps: float = 1e-8,
    wd: float = 0.0, alpha_warmup: int | None = None, beta3_warmup: int | None = None,
) -> Rule:  # fmt: skip
    def h(b: float) -> float:
        return math.log(0.5) / math.log(b + 1e-8) - 1

    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        b1, b2, b3 = betas
        a = alpha * min(t / alpha_warmup, 1.0) if alpha_warmup else alpha
        if beta3_warmup and t < beta3_warmup:
            x = t / beta3_warmup
            b3 = 0.5 ** (1 / ((1 - x) * h(b1) + x * h(b3) + 1))
        m1 = s["m1"] = b1 * s.get("m1", 0.0) + (1 - b1) * g
        m2 = s["m2"] = b3 * s.get("m2", 0.0) + (1 - b3) * g
        v = s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
        u = (m1 / (1 - b1**t) + a * m2) / ((v / (1 - b2**t)).sqrt() + eps)
        return p - lr * (u + wd * p)

    return rule


def lion_k(
    subgradient: Callable[[Tensor], Tensor], lr: float = 1e-4, b1: float = 0.9, b2: float = 0.99, wd: float = 0.0
) -> Rule:
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        m = s.get("m", torch.zeros_like(g))
        s["m"] = b2 * m + (1 - b2) * g
        return p * (1 - lr * wd) - lr * subgradient(b1 * m + (1 - b1) * g)

    return rule


def _second_moment(s: dict[str, Any], name: str, x: Tensor, beta: float) -> Tensor:
    if x.ndim < 2:
        s[name] = beta * s.get(name, 0.0) + (1 - beta) * x
        return s[name]
    rows = s[name + "r"] = beta * s.get(name + "r", 0.0) + (1 - beta) * x.mean(-1)
    cols = s[name + "c"] = beta * s.get(name + "c", 0.0) + (1 - beta) * x.mean(-2)
    return torch.einsum("...i,...j->...ij", rows, cols) / rows.mean(-1)[..., None, None]


def _rms(x: Tensor) -> float:
    return float((x**2).mean().sqrt())


def adafactor(
    lr: float = 1e-2, eps: tuple[float, float] = (1e-30, 1e-3), clip: float = 1.0, decay_rate: float = -0.8,
    b1: float | None = None, wd: float = 0.0, scale: bool = True, relative: bool = True, warmup: bool = False,
) -> Rule:  # fmt: skip
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        u = g / _second_moment(s, "v", g**2 + eps[0], 1 - t**decay_rate).sqrt()
        u = u / max(1.0, _rms(u) / clip)
        step = min(1e-6 * t if warmup else lr, 1 / math.sqrt(t)) if relative else lr
        if scale:
            step *= max(eps[1], _rms(p))
        u = u * step
        if b1 is not None:
            u = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * u
        return p * (1 - wd * step) - u

    return rule


def came(
    lr: float, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), eps: tuple[float, float] = (1e-30, 1e-16),
    clip: float = 1.0, wd: float = 0.0,
) -> Rule:  # fmt: skip
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        b1, b2, b3 = betas
        u = g / _second_moment(s, "v", g**2 + eps[0], b2).sqrt()
        u = u / max(1.0, _rms(u) / clip)
        m = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * u
        out = m
        if g.ndim >= 2:
            out = m / _second_moment(s, "r", (u - m) ** 2 + eps[1], b3).sqrt()
        return p - lr * wd * p - lr * out

    return rule


SHAPES = ((6, 4), (5,), (), (2, 3, 4, 3), (6, 4))


def start(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(value.to(dtype)) for value in values]


def stream(t: int) -> list[Tensor | None]:
    """The recorded gradients of step `t`: mixed shapes and scales, one zero and one missing."""
    generator = torch.Generator().manual_seed(1000 + t)
    grads: list[Tensor | None] = [
        torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + index) for index, shape in enumerate(SHAPES)
    ]
    if t == 5:
        grads = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    if t == 7:
        grads[1] = None
    return grads


def follow(rule: Rule, last: int = 100) -> list[Tensor]:
    """Where the reference rule ends."""
    points = [param.detach().clone() for param in start()]
    states: list[dict[str, Any]] = [{} for _ in points]
    counts = [0] * len(points)
    for t in range(1, last + 1):
        for index, grad in enumerate(stream(t)):
            if grad is not None:
                counts[index] += 1
                points[index] = rule(points[index], grad, states[index], counts[index])
    return points


def drive(optimizer: Optimizer, params: list[nn.Parameter], first: int = 1, last: int = 100) -> list[Tensor]:
    """Where the optimizer ends."""
    for t in range(first, last + 1):
        for param, grad in zip(params, stream(t)):
            param.grad = None if grad is None else grad.to(param.dtype)
        optimizer.step()
    return [param.detach() for param in params]
