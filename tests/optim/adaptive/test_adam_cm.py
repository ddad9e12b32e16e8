"""AdamCM against the rule written plainly with a list of remembered items."""

from __future__ import annotations

from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import AdamCM

LR = 1e-2


def plain(last: int, size: int, decay: float, of_momenta: bool, synced: bool, wd: float, amsgrad: bool) -> list[Tensor]:
    points = [param.detach().clone() for param in ref.start()]
    items: list[list[list[Any]]] = [[] for _ in points]
    moments = [[torch.zeros_like(p) for _ in range(3)] for p in points]
    for t in range(1, last + 1):
        grads = gradients(t)
        for index, (p, g) in enumerate(zip(points, grads)):
            m, v, w = moments[index]
            memory = items[index]
            norm = float(sum(other.norm() for other in grads) if synced else g.norm())
            if of_momenta and t > 1:
                m = 0.9 * m + 0.1 * g
            new = g if t == 1 else m if of_momenta else g
            a = torch.zeros_like(g) if of_momenta and t == 1 else new.clone()
            if memory:
                a = a + torch.stack([item for _, item in memory]).mean(0)
            if len(memory) < size:
                memory.append([norm, new])
            else:
                least = min(range(size), key=lambda place: memory[place][0])
                if norm > memory[least][0]:
                    memory[least] = [norm, new]
            for entry in memory:
                entry[0] *= decay
            if not of_momenta:
                m = 0.9 * m + 0.1 * a
            v = 0.999 * v + 0.001 * a**2
            w = torch.maximum(w, v)
            root = ((w if amsgrad else v) / (1 - 0.999**t)).sqrt() + 1e-8
            points[index] = p * (1 - LR * wd) - LR / (1 - 0.9**t) * (a if of_momenta else m) / root
            moments[index] = [m, v, w]
    return points


def gradients(t: int) -> list[Tensor]:
    """Every tensor has one in every step, and their scale goes up and down."""
    scale = 1 + (t * 7) % 5
    return [torch.zeros_like(p) if grad is None else grad * scale for p, grad in zip(ref.start(), ref.stream(t))]


def ours(last: int, **options: Any) -> list[Tensor]:
    params = ref.start()
    optimizer = AdamCM(params, lr=LR, **{"backend": "eager", **options})
    for t in range(1, last + 1):
        for param, grad in zip(params, gradients(t)):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("memory", ["momentum", "gradient"])
@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("last", [1, 2, 5, 50])
def test_follows_the_paper(last: int, synced: bool, memory: str) -> None:
    expected = plain(last, 3, 0.7, memory == "momentum", synced, 0.1, False)
    assert_same(ours(last, buffer=3, memory=memory, synced=synced, weight_decay=0.1), expected)


def test_the_running_sum_is_renewed() -> None:
    assert_same(ours(135, decay=0.99, amsgrad=True), plain(135, 5, 0.99, True, True, 0.0, True))


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    x, y = (nn.Parameter(ref.start()[0].detach()) for _ in range(2))
    left, right = AdamCM([x], backend="compile", buffer=2), AdamCM([y], backend="eager", buffer=2)
    for t in range(1, 6):
        for param, optimizer in ((x, left), (y, right)):
            param.grad = gradients(t)[0]
            optimizer.step()
    torch.testing.assert_close(x, y, rtol=0.0, atol=1e-12)


def test_the_first_step_only_remembers() -> None:
    assert_same(ours(1), [param.detach() for param in ref.start()])


def test_small_gradients_do_not_replace_large_ones() -> None:
    x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = AdamCM([x], buffer=2, decay=0.5, memory="gradient")
    for norm in (8.0, 4.0, 1.5, 1.1, 0.9):
        x.grad = torch.tensor([norm, 0.0], dtype=torch.float64)
        optimizer.step()
    # Priorities: (4, -), (2, 2), then 1.5 < 2, and (1, 1) -> 1.1 replaces one, (0.55, 0.5) -> 0.9 the other.
    assert sorted(optimizer.state[x]["memory"][:, 0].tolist()) == [0.9, 1.1]
    assert optimizer.state[x]["total"][0] == pytest.approx(2.0)


@pytest.mark.parametrize(("name", "value"), [("buffer", 0), ("decay", 1.5), ("memory", "loss"), ("eps", 0.0)])
def test_bad_options_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        AdamCM(ref.start(), **{name: value})
