"""Gradients by forward passes: the formulas, masks, reuse of features, and what a step must leave alone."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.optim import ADOPT, DeepZero, GrokfastEMA, NonFiniteGradientError, cge, rge, zo_grasp_scores
from hasten.optim.zeroth_order.probes import normals


def cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x**3).sum() + (x.sum() * y).sum() + y.square().sum()


def tensors(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, generator=generator).double(), torch.randn(4, generator=generator).double()]


def published(kind: str, params: list[Tensor], mu: float, q: int = 0, seed: int = 0) -> list[Tensor]:
    """The formulas with whole copies of the parameters, as in the published code (RGE there is mu times ours)."""
    base = float(cubic(*params))
    found = [torch.zeros_like(param) for param in params]
    if kind == "cge":
        for place, param in enumerate(params):
            for index in range(param.numel()):
                moved = [p.clone() for p in params]
                moved[place].view(-1)[index] += mu
                found[place].view(-1)[index] = (float(cubic(*moved)) - base) / mu
        return found
    for j in range(q):
        directions = [u / (u.norm() + 1e-8) * mu for u in normals(params, seed, j)]
        slope = (float(cubic(*[p + u for p, u in zip(params, directions)])) - base) / mu
        found = [g + u * slope / q for g, u in zip(found, directions)]
    return found


def test_estimates_are_those_of_the_published_code():
    params = tensors()
    for ours, theirs in zip(cge(lambda: cubic(*params), params, mu=0.1), published("cge", params, 0.1)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    ours = rge(lambda: cubic(*params), params, q=7, mu=0.1, seed=3)
    for mine, theirs in zip(ours, published("rge", params, 0.1, 7, 3)):
        torch.testing.assert_close(mine * 0.1, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), mu=st.floats(1e-3, 0.3))
def test_central_differences_are_exact_on_quadratics(seed: int, mu: float):
    params = tensors(seed)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(10, 10, generator=generator, dtype=torch.float64)

    def f() -> Tensor:
        x = torch.cat([param.flatten() for param in params])
        return x @ matrix @ x

    x = torch.cat([param.flatten() for param in params])
    found = torch.cat([g.flatten() for g in cge(f, params, mu=mu, central=True)])
    torch.testing.assert_close(found, (matrix + matrix.T) @ x, rtol=1e-7, atol=1e-7)


def test_normal_directions_are_unbiased():
    params = [torch.ones(3, dtype=torch.float64)]
    (found,) = rge(lambda: (params[0] * torch.tensor([1.0, 2.0, 3.0])).sum(), params, q=20_000, unit=False)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), atol=0.15, rtol=0)


@pytest.mark.parametrize("central", [False, True])
def test_masks_and_number_of_evaluations(central: bool):
    params, calls = tensors(), []
    mask = torch.tensor([True, False, False, True])

    def f() -> Tensor:
        calls.append(1)
        return cubic(*params)

    before = [param.clone() for param in params]
    found = cge(f, params, mask=[torch.zeros(2, 3, dtype=torch.bool), mask], central=central)
    assert len(calls) == (4 if central else 3)
    assert not found[0].any()
    assert torch.equal(found[1] != 0, mask)
    assert all(map(torch.equal, params, before))


def test_parameters_are_put_back_exactly_even_by_an_error():
    params, calls = tensors(), []
    before = [param.clone() for param in params]

    def f() -> float:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("stop")
        return float(cubic(*params))

    for estimate in (cge, rge):
        calls.clear()
        with pytest.raises(RuntimeError, match="stop"):
            estimate(f, params)
        assert all(map(torch.equal, params, before))


def test_scores_see_the_curvature_along_the_gradient():
    """f = sum c x^2 / 2: Hg = c g = c^2 x, so the score is -c^2 x^2 up to the noise of the directions."""
    curvature = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    x = torch.ones(3, dtype=torch.float64)
    (score,) = zo_grasp_scores(lambda: (curvature * x * x).sum() / 2, [x], q=2000, mu=1e-3)
    assert score.abs().argmax() == 2
    assert score[2] < 0


def network(batch_norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    first: list[nn.Module] = [nn.Linear(3, 5), nn.BatchNorm1d(5)] if batch_norm else [nn.Linear(3, 5)]
    return nn.Sequential(*first, nn.Tanh(), nn.Dropout(0.3), nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True)),
                         nn.Linear(4, 2)).double()  # fmt: skip


def batch(t: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 3, generator=generator).double(), torch.randint(0, 2, (8,), generator=generator)


def run(optimizer: Any, model: nn.Module, first: int, last: int) -> list[Tensor]:
    for t in range(first, last):
        inputs, labels = batch(t)
        torch.manual_seed(t)
        optimizer.step(lambda inputs=inputs, labels=labels: F.cross_entropy(model(inputs), labels))
    return [tensor.detach().clone() for tensor in model.state_dict().values()]


def sgd(model: nn.Module, **options: Any) -> DeepZero:
    return DeepZero(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, **{"q": 4, **options})


def test_reused_features_change_nothing():
    """Dropout, batch statistics and in-place layers included."""
    plain, reused = network(), network()
    a = run(sgd(plain, sparsity=0.5, reuse_features=False), plain, 0, 5)
    b = run(sgd(reused, sparsity=0.5), reused, 0, 5)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_reuse_saves_the_layers_before():
    model, seen = network(), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    optimizer = sgd(model, sparsity=0.0)
    run(optimizer, model, 0, 1)
    own = sum(param.numel() for param in model[0].parameters())
    assert optimizer.queries == sum(param.numel() for param in model.parameters()) + 1
    assert len(seen) == own + 1


def test_a_network_called_twice_is_evaluated_whole():
    model, twin = network(), network()
    for member, optimizer in ((model, sgd(model, sparsity=0.0)), (twin, sgd(twin, sparsity=0.0, reuse_features=False))):
        inputs, labels = batch()
        torch.manual_seed(0)
        optimizer.step(lambda m=member: F.cross_entropy(m(inputs), labels) + m(-inputs).square().mean())  # noqa: B023
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_follows_backpropagation():
    model, reference = network(batch_norm=False).eval(), network(batch_norm=False).eval()
    run(sgd(model, sparsity=0.0, mu=1e-6), model, 0, 10)
    base = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for t in range(10):
        inputs, labels = batch(t)
        base.zero_grad()
        F.cross_entropy(reference(inputs), labels).backward()
        base.step()
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_updated_once():
    model, reference = network(), network()
    run(sgd(model, sparsity=0.0), model, 0, 1)
    reference(batch()[0])
    assert torch.equal(model[1].running_mean, reference[1].running_mean)
    assert model[1].num_batches_tracked == 1


@pytest.mark.parametrize("layer_ratio", ["zo_grasp", "uniform"])
def test_masks(layer_ratio: str):
    """Matrices lose a share of their entries, vectors none; the masks change every `mask_every` steps."""
    model = network()
    optimizer = sgd(model, sparsity=0.6, layer_ratio=layer_ratio, mask_every=2)
    masks = []
    optimizer.base.register_step_pre_hook(
        lambda *_: masks.append([param.grad.detach() != 0 for param in model.parameters()])
    )
    run(optimizer, model, 0, 1)
    assert optimizer.shares is not None
    sizes = [param.numel() for param in model.parameters() if param.ndim > 1]
    shares = [share for share, param in zip(optimizer.shares, model.parameters()) if param.ndim > 1]
    assert all(share == 1 for share, param in zip(optimizer.shares, model.parameters()) if param.ndim == 1)
    total = sum(share * size for share, size in zip(shares, sizes)) / sum(sizes)
    assert total == pytest.approx(0.4, abs=0.03)
    params = list(model.parameters())
    first = optimizer._masks(params)
    assert first[0] is not None
    optimizer.steps = 2
    assert not torch.equal(first[0], optimizer._masks(params)[0])  # type: ignore[arg-type]
    counts = [int(mask.sum()) for mask, share in zip(first, optimizer.shares) if mask is not None and share < 1]
    assert counts == [max(1, round(share * size)) for share, size in zip(shares, sizes)]


def test_resumes_from_a_file_bit_for_bit():
    model = network()
    optimizer = sgd(model, sparsity=0.5, mask_every=3)
    run(optimizer, model, 0, 4)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = network()
    again = sgd(twin, sparsity=0.5, mask_every=3)
    twin.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert all(map(torch.equal, run(optimizer, model, 4, 9), run(again, twin, 4, 9)))
    assert optimizer.queries == again.queries


@pytest.mark.parametrize("make", [lambda p: ADOPT(p, lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01)])
def test_serves_any_optimizer_hook_and_schedule(make: Any):
    model = network()
    base = make(model.parameters())
    hook = GrokfastEMA(base)
    optimizer = DeepZero(base, model, sparsity=0.5, q=4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.0)
    before = copy.deepcopy(model.state_dict())
    run(optimizer, model, 0, 2)
    assert hook.steps == 2
    assert not torch.equal(model[0].weight, before["0.weight"])
    schedule.step()
    schedule.step()
    held = model[0].weight.clone()
    run(optimizer, model, 2, 3)
    assert torch.equal(model[0].weight, held)
    assert all(param.grad is None for param in model.parameters())


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run(sgd(model), model, 0, 2)
    assert torch.equal(model[0].weight, before)


def test_infinite_losses_change_nothing():
    model = network()
    optimizer = sgd(model, sparsity=0.0)
    run(optimizer, model, 0, 1)
    before = copy.deepcopy(list(model.parameters()))
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        loss = F.cross_entropy(model(batch()[0]), batch()[1])
        return loss * math.inf if len(calls) == 4 else loss

    with pytest.raises(NonFiniteGradientError, match="infinite or NaN"):
        optimizer.step(closure)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sparsity": 1.0}, "sparsity"), ({"mask_every": 0}, "mask_every"), ({"layer_ratio": "snip"}, "layer_ratio"),
     ({"mu": 0.0}, "mu"), ({"q": 0}, "q")],
)  # fmt: skip
def test_bad_arguments_are_named(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        sgd(network(), **options)


def test_bad_calls_are_named():
    model = network()
    with pytest.raises(InputError, match="needs a closure"):
        sgd(model).step()
    with pytest.raises(InputError, match="one number"):
        sgd(model).step(lambda: torch.zeros(3))
    with pytest.raises(InputError, match="evaluates its own"):
        DeepZero(sgd(model), model)
    with pytest.raises(InputError, match="one tensor per parameter"):
        cge(lambda: 0.0, tensors(), mask=[None])
