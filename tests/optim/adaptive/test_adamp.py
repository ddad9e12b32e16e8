"""AdamP, SGDP and RadialFree against the rules written plainly, and what the projection promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core.errors import InputError
from hasten.optim import SGDP, AdamP, RadialFree, compose, radial_projection

SHAPES = [(8, 6), (5,), (2, 3, 2, 2), (3, 8), (4, 2)]


def plain_projection(p: Tensor, g: Tensor, u: Tensor, delta: float, wd_ratio: float) -> tuple[Tensor, float]:
    """Row after row, then the tensor as one vector."""
    if p.ndim < 2:
        return u, 1.0
    for parts in (list(range(len(p))), [slice(None)]):
        width = p[parts[0]].numel()
        if all(abs(float((p[i] * g[i]).sum() / (p[i].norm() * g[i].norm()))) < delta / width**0.5 for i in parts):
            u = u.clone()
            for i in parts:
                unit = p[i] / (p[i].norm() + 1e-8)
                u[i] -= unit * (unit * u[i]).sum()
            return u, wd_ratio
    return u, 1.0


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def gradient(t: int, place: int, p: Tensor) -> Tensor:
    """At right angles to each row, to the whole tensor, or to neither, in turn; larger for tensors that come later."""
    generator = torch.Generator().manual_seed(100 * t + place)
    g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * (1 + place)
    if p.ndim < 2 or (t + place) % 3 == 0:
        return g
    rows, by_row = (p.reshape(len(p), -1), (t + place) % 3 == 1)
    flat = rows if by_row else rows.reshape(1, -1)
    grads = g.reshape(flat.shape)
    return (grads - flat * ((flat * grads).sum(1) / flat.square().sum(1))[:, None]).reshape(p.shape)


def adamp(p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr: float, wd: float, nesterov: bool) -> Tensor:
    m = s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    v = s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * g**2
    u = (0.9 * m + 0.1 * g if nesterov else m) / (v.sqrt() / math.sqrt(1 - 0.999**t) + 1e-8)
    u, ratio = plain_projection(p, g, u, 0.1, 0.1)
    return p * (1 - lr * wd * ratio) - lr / (1 - 0.9**t) * u


def sgdp(p: Tensor, g: Tensor, s: dict[str, Any], t: int, lr: float, wd: float, nesterov: bool) -> Tensor:
    m = s["m"] = 0.9 * s.get("m", 0.0) + 0.8 * g
    u, ratio = plain_projection(p, g, g + 0.9 * m if nesterov else m, 0.1, 0.1)
    if not nesterov:
        s["m"] = u
    return p * (1 - lr * wd * ratio / (1 - 0.9)) - lr * u


MAKES: dict[str, tuple[Callable[..., Optimizer], Callable[..., Tensor]]] = {
    "adamp": (AdamP, adamp),
    "sgdp": (lambda params, **given: SGDP(params, momentum=0.9, dampening=0.2, **given), sgdp),
}


def follow(optimizer: Optimizer, params: list[nn.Parameter], plain: Callable[..., Tensor], steps: int) -> float:
    """Largest difference from the plain rule on any step, and none of the three cases left out."""
    points, states, worst, ratios = [p.detach().clone() for p in params], [{} for _ in params], 0.0, set()
    for t in range(1, steps + 1):
        grads = [gradient(t, place, point) for place, point in enumerate(points)]
        for place, (param, g) in enumerate(zip(params, grads)):
            param.grad = g.clone()
            ratios.add(plain_projection(points[place], g, g, 0.1, 0.5)[1])
            points[place] = plain(points[place], g, states[place], t)
        optimizer.step()
        worst = max(worst, *(float((p.detach() - point).abs().max()) for p, point in zip(params, points)))
    assert ratios == {0.5, 1.0}
    return worst


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("name", MAKES)
def test_follows_the_paper(name: str, nesterov: bool) -> None:
    make, plain = MAKES[name]
    params = parameters()
    optimizer = make(params, lr=0.01, weight_decay=0.1, nesterov=nesterov, backend="eager")
    assert follow(optimizer, params, lambda p, g, s, t: plain(p, g, s, t, 0.01, 0.1, nesterov), 60) < 1e-9


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_tell_equal_lengths_apart() -> None:
    """Axes of one length in the first tensor, and as long as there are numbers in a step, but not in the second."""
    params = [nn.Parameter(parameters()[0].detach()[:, :4].clone()), nn.Parameter(parameters()[3].detach().clone())]
    optimizer = AdamP(params, lr=0.01, weight_decay=0.1, backend="compile")
    assert follow(optimizer, params, lambda p, g, s, t: adamp(p, g, s, t, 0.01, 0.1, False), 6) < 1e-12


def test_projected_updates_are_at_right_angles_and_others_are_left() -> None:
    p, g, u = (torch.randn(4, 6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(3))
    rows = g - p * ((p * g).sum(1) / p.square().sum(1))[:, None]
    found, ratio = radial_projection(p, rows, u, wd_ratio=0.3)
    assert ratio == pytest.approx(0.3)
    assert (p * found).sum(1).abs().max() < 1e-6
    whole = g - p * ((p * g).sum() / p.square().sum())
    found, ratio = radial_projection(p, whole, u)
    assert (p * found).sum().abs() < 1e-6 < (p * found).sum(1).abs().max()
    found, ratio = radial_projection(p, p + 0.1 * g, u)
    assert ratio == 1.0
    assert torch.equal(found, u)
    assert radial_projection(p[0], rows[0], u[0])[1] == 1.0


def test_adam_where_nothing_is_scale_invariant() -> None:
    ours, theirs = parameters(), parameters()
    left, right = AdamP(ours, lr=0.01, delta=0.0), torch.optim.Adam(theirs, lr=0.01)
    for t in range(1, 30):
        for place, (a, b) in enumerate(zip(ours, theirs)):
            a.grad, b.grad = gradient(t, place, a.detach()), gradient(t, place, a.detach())
        left.step()
        right.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)


def test_zero_weights_and_zero_gradients_stay_finite() -> None:
    params = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.ones(3, 4))]
    for optimizer in (AdamP(params, lr=0.1), SGDP(params, lr=0.1, momentum=0.9)):
        for grads in ((torch.ones(3, 4), torch.zeros(3, 4)), (torch.zeros(3, 4), torch.ones(3, 4))):
            params[0].grad, params[1].grad = grads
            optimizer.step()
    assert all(torch.isfinite(param).all() for param in params)


def test_hook_on_adam_is_adamp() -> None:
    params = parameters()
    optimizer = compose(torch.optim.Adam(params, lr=0.01), RadialFree())
    assert follow(optimizer, params, lambda p, g, s, t: adamp(p, g, s, t, 0.01, 0.0, False), 40) < 1e-9


def test_hook_takes_low_precision_and_complex_weights() -> None:
    half = nn.Parameter(torch.ones(2, 4, dtype=torch.bfloat16))
    number = nn.Parameter(torch.ones(2, 4, dtype=torch.complex64))
    optimizer = torch.optim.SGD([half, number], lr=0.5, momentum=0.9)
    RadialFree(optimizer)
    for sign in (1.0, -1.0):
        row = torch.tensor([1.0, -1.0, 1.0, -1.0]) * sign
        half.grad, number.grad = row.expand(2, 4).bfloat16(), row.expand(2, 4).to(torch.complex64) * 1j
        optimizer.step()
    assert torch.isfinite(half).all()
    torch.testing.assert_close(number.real, torch.ones(2, 4))


@pytest.mark.parametrize("make", [AdamP, SGDP])
@pytest.mark.parametrize(("name", "value"), [("delta", -0.1), ("wd_ratio", 1.5), ("eps", 0.0)])
def test_bad_options(make: Any, name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        make(parameters(), lr=0.1, **{name: value})


def test_bad_momentum() -> None:
    with pytest.raises(InputError, match="momentum"):
        SGDP(parameters(), lr=0.1, momentum=1.0)


def test_hook_refuses_optimizers_that_project_themselves() -> None:
    with pytest.raises(InputError, match="AdamP leaves out"):
        RadialFree(AdamP(parameters()))
