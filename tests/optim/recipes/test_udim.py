"""UDIM: its per-sample gradients, its inconsistency, its worst inputs, and its step."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.optim import SAM, UDIM, MeZO, per_sample_gradients


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=bias)).double()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 5, generator=generator).double(), torch.randint(0, 3, (12,), generator=generator)


def closure_of(model: nn.Module, seed: int = 0) -> Any:
    inputs, labels = batch(seed)
    return lambda: F.cross_entropy(model(inputs), labels)


def udim(model: nn.Sequential, **options: Any) -> UDIM:
    return UDIM(torch.optim.SGD(model.parameters(), lr=0.1), model, model[-1], **options)


def inconsistency(model: nn.Sequential, changed: Tensor) -> float:
    """The published formula on per-sample gradients that were made another way."""
    inputs, labels = batch()
    each = [per_sample_gradients(model, F.cross_entropy, x, labels) for x in (inputs, changed)]
    names = [name for name in each[0] if name.startswith("2.")]
    spread: list[list[Tensor]] = [[], []]
    norms = 0.0
    for name in names:
        plain, other = (grads[name].flatten(1) for grads in each)
        mean = plain.mean(0)
        spread[0].append(((plain - mean) ** 2).mean(0))
        spread[1].append(((other - mean) ** 2).mean(0))
        norms += float((other**2).sum(1).mean() / other.shape[1])
    first, second = (torch.cat(parts) for parts in spread)
    middle = (first + second) / 2
    return float(sum(((v - middle) ** 2).mean() for v in (first, second)) / 2) + norms


@pytest.mark.parametrize("bias", [True, False])
def test_inconsistency_is_the_published_formula(bias: bool):
    model = network(bias)
    optimizer = udim(model)
    changed = optimizer.worst_inputs(closure_of(model))
    assert float(optimizer.measure(closure_of(model), changed).detach()) == pytest.approx(
        inconsistency(model, changed), rel=1e-9
    )


def test_worst_inputs_climb_the_loss_and_the_sharpness():
    """Against finite differences of L + rho |grad L|; the step is normalised over the batch."""
    model, rho = network(), 0.5
    inputs, labels = batch()
    changed = udim(model, rho=rho, input_lr=0.3).worst_inputs(closure_of(model))

    def surrogate(x: Tensor) -> float:
        loss = F.cross_entropy(model(x), labels)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return float(loss.detach()) + rho * float(torch.cat([g.flatten() for g in grads]).norm())

    slopes = torch.zeros_like(inputs)
    for place in [(i, j) for i in range(12) for j in range(5)]:
        ends = []
        for side in (1e-5, -1e-5):
            moved = inputs.clone()
            moved[place] += side
            ends.append(surrogate(moved))
        slopes[place] = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(changed, inputs + 0.3 * F.normalize(slopes, dim=0), rtol=0, atol=1e-5)


def test_the_step_is_sam_plus_the_gradient_of_the_inconsistency():
    model, plain = network(), network()
    optimizer, sam = udim(model, weight=0.0), SAM(torch.optim.SGD(plain.parameters(), lr=0.1))

    def backward() -> Tensor:
        sam.zero_grad()
        loss = closure_of(plain)()
        loss.backward()
        return loss

    first = optimizer.step(closure_of(model))
    assert float(first) == pytest.approx(float(sam.step(backward).detach()))
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    heavy = network()
    other = udim(heavy, weight=10.0)
    changed = other.worst_inputs(closure_of(heavy))
    extra = torch.autograd.grad(other.measure(closure_of(heavy), changed), list(heavy.parameters()))
    other.step(closure_of(heavy))
    for ours, theirs, g in zip(heavy.parameters(), plain.parameters(), extra):
        torch.testing.assert_close(ours, theirs - 0.1 * 10.0 * g, rtol=0, atol=1e-12)


def test_warm_up_is_sam():
    model, twin = network(), network()
    run, sam = udim(model, warm_up=2), udim(twin, weight=0.0)
    for t in range(2):
        run.step(closure_of(model, t))
        sam.step(closure_of(twin, t))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert run.inconsistency == 0
    run.step(closure_of(model, 2))
    assert run.inconsistency > 0


def test_style_changes_mean_and_deviation_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.rand(6, 2, 4, 4), torch.randint(0, 3, (6,))
    optimizer = udim(model, style=True, input_lr=5.0)
    kept = model[1].running_mean.clone()

    def closure() -> Tensor:
        return F.cross_entropy(model(images), labels)

    changed = optimizer.worst_inputs(closure)

    def normed(x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)

    torch.testing.assert_close(normed(changed).abs(), normed(images).abs(), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(changed, images, atol=1e-3)
    assert torch.equal(model[1].running_mean, kept)
    optimizer.step(closure)
    assert all(torch.isfinite(param).all() for param in model.parameters())
    flat = network()
    with pytest.raises(InputError, match="style=True needs images"):
        udim(flat, style=True).step(closure_of(flat))


def test_continues_from_a_file():
    model = network()
    optimizer = udim(model, warm_up=2)
    for t in range(3):
        optimizer.step(closure_of(model, t))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    twin = network()
    twin.load_state_dict(weights)
    again = udim(twin, warm_up=2)
    again.load_state_dict(state)
    optimizer.step(closure_of(model, 3))
    again.step(closure_of(twin, 3))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_bad_calls_are_named():
    model = network()
    with pytest.raises(InputError, match=r"classifier must be an nn\.Linear"):
        UDIM(torch.optim.SGD(model.parameters(), lr=0.1), model, model[1])
    with pytest.raises(InputError, match="evaluates its own"):
        UDIM(MeZO(model.parameters()), model, model[-1])
    with pytest.raises(InputError, match="needs a closure"):
        udim(model).step()
    with pytest.raises(InputError, match="did not call the model"):
        udim(model).step(closure_of(network()))
    with pytest.raises(InputError, match="input_lr"):
        udim(model, input_lr=-1.0)
