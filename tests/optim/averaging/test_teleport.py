"""Teleportation: what is kept, what grows, and the optimizer that jumps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hasten
from hasten.core.errors import InputError
from hasten.optim.averaging.teleport import CARD, LinearTeleport, Teleporting, teleport


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8, bias), nn.Tanh(), nn.Linear(8, 7, bias), nn.Tanh(), nn.Linear(7, 2, bias)]
    return nn.Sequential(*layers).to(dtype)


def parts(model: nn.Sequential) -> dict[str, Any]:
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    return {"weights": [layer.weight for layer in layers], "biases": [layer.bias for layer in layers]}


X, Y = random(6, 3), random(6, 2, seed=1)


@pytest.mark.parametrize("objective", ["grad_norm", "sharpness", "curvature"])
@pytest.mark.parametrize("sign", [1, -1])
def test_outputs_stay_and_the_objective_moves(objective: str, sign: int):
    """6 rows, at least 7 units: the symmetry is exact."""
    model = network()
    rate = {"grad_norm": 1e-2, "sharpness": 1e-2, "curvature": 1e-4}[objective]
    jump = teleport(
        **parts(model), X=X, Y=Y, loss=F.mse_loss, activation=torch.tanh, lr=rate, objective=objective, sign=sign
    )
    moved = network()
    with torch.no_grad():
        for layer, weight, bias in zip([moved[0], moved[2], moved[4]], jump.weights, jump.biases):
            layer.weight.copy_(weight)  # type: ignore[operator, union-attr]
            layer.bias.copy_(bias)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(moved(X), model(X), rtol=0, atol=1e-9)
    assert jump.residual < 1e-8
    assert not torch.allclose(jump.weights[0], model[0].weight, rtol=1e-4)  # type: ignore[arg-type]
    if objective == "grad_norm":
        assert (jump.grad_norm[1] > 1.02 * jump.grad_norm[0]) == (sign == 1)
        F.mse_loss(moved(X), Y).backward()
        norm = torch.cat([param.grad.flatten() for param in moved.parameters()]).norm()  # type: ignore[union-attr]
        assert norm.item() == pytest.approx(jump.grad_norm[1])


def test_the_formula_of_the_paper_for_a_full_rank_batch():
    """With more rows than units: V' = (I + T) V and U' = U a a'^+, and T is the gradient of the squared norm at 0."""
    v, u, x, y = random(4, 3), random(2, 4, seed=1), random(9, 3, seed=2), random(9, 2, seed=3)

    def act(z: Tensor) -> Tensor:
        return F.leaky_relu(z, 0.1)

    def moved(t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = act(v @ x.T), act((v + t @ v) @ x.T)
        return v + t @ v, u @ a @ torch.linalg.pinv(b)

    t = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    new = moved(t)
    grads = torch.autograd.grad(F.mse_loss(act(x @ new[0].T) @ new[1].T, y), new, create_graph=True)
    (slope,) = torch.autograd.grad(sum(grad.square().sum() for grad in grads), t)  # type: ignore[arg-type]
    expected = moved(1e-3 * slope)
    jump = teleport([v, u], x, y, F.mse_loss, act, lr=1e-3, steps=1)
    torch.testing.assert_close(jump.weights, list(expected), rtol=0, atol=1e-10)


def test_linear_networks_keep_the_product():
    weights = [random(4, 3), random(5, 4, seed=1), random(2, 5, seed=2)]

    def loss(w: list[Tensor]) -> Tensor:
        return (w[2] @ w[1] @ w[0] - random(2, 3, seed=3)).square().sum()

    jump = LinearTeleport(lr=1e-5, steps=5)(weights, loss)
    w = jump.weights
    torch.testing.assert_close(w[2] @ w[1] @ w[0], weights[2] @ weights[1] @ weights[0], rtol=1e-7, atol=1e-7)
    assert jump.grad_norm[1] > jump.grad_norm[0]
    capped = LinearTeleport(lr=1e-5, steps=5, cap=jump.grad_norm[0] ** 2 * 0.9)(weights, loss)
    assert all(torch.equal(a, b) for a, b in zip(capped.weights, weights))


def test_too_many_rows_are_warned_of():
    with pytest.warns(UserWarning, match="changed the loss on its batch"):
        teleport(**parts(network()), X=random(60, 3), Y=random(60, 2), loss=F.mse_loss, activation=torch.tanh, lr=0.5)


def test_a_jump_that_runs_away_is_cut_short():
    with pytest.warns(UserWarning, match="infinite"):
        jump = teleport(
            **parts(network()), X=X * 1e3, Y=Y * 1e200, loss=F.mse_loss, activation=nn.Identity(), lr=1e300, steps=5
        )
    assert all(bool(torch.isfinite(weight).all()) for weight in jump.weights)


@pytest.mark.parametrize("rule", [torch.optim.Adagrad, torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_optimizer_jumps_and_begins_anew(rule: Any, dtype: torch.dtype):
    model = network(dtype=dtype)
    inputs, targets = X.to(dtype), Y.to(dtype)
    optimizer = Teleporting(rule(model.parameters(), lr=0.01), model, at_steps=(3,))

    def closure() -> Tensor:
        return F.mse_loss(model(inputs), targets)

    for _ in range(3):
        optimizer.step(closure)
    before, outputs = [param.detach().clone() for param in model.parameters()], model(inputs)
    optimizer.jump(closure)
    torch.testing.assert_close(model(inputs), outputs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model[0].weight, before[0], rtol=1e-4)  # type: ignore[arg-type]
    state = optimizer.state.get(model[0].weight, {})  # type: ignore[arg-type]
    assert float(state.get("step", 0)) == 0
    assert float(state["sum"].abs().max() if "sum" in state else 0) == 0
    assert [type(param) for param in model.parameters()] == [nn.Parameter] * 6
    optimizer.step(closure)
    assert len(optimizer.jumps) == 2
    optimizer.step(closure)
    assert len(optimizer.jumps) == 2


def test_state_is_kept_if_asked_and_steps_are_saved():
    model = network()
    optimizer = Teleporting(torch.optim.Adam(model.parameters()), model, at_steps=(1,), reset=False)

    def closure() -> Tensor:
        return F.mse_loss(model(X), Y)

    optimizer.step(closure)
    again = Teleporting(torch.optim.Adam(model.parameters()), model, at_steps=(1,))
    again.load_state_dict(optimizer.state_dict())
    assert again.steps == 1
    with pytest.raises(InputError, match="closure"):
        again.step()
    optimizer.step(closure)
    assert len(optimizer.jumps) == 1
    assert float(optimizer.state[model[0].weight]["step"]) == 2  # type: ignore[index]
    optimizer.step()


def test_only_networks_with_the_symmetry():
    good = nn.Sequential(nn.Flatten(), nn.Linear(3, 4, False), nn.ReLU(), nn.Linear(4, 2, False), nn.Softmax(1))
    base = torch.optim.SGD(good.parameters(), lr=0.1)
    assert len(Teleporting(base, nn.ModuleDict({"body": good})).layers) == 2
    for bad in (
        nn.Sequential(nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Linear(3, 2),
    ):
        with pytest.raises(InputError, match="linear layers"):
            Teleporting(base, bad)


def test_bad_arguments_are_named():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, value in {"jump_lr": 0.0, "jump_steps": 0, "objective": "loss", "sign": 2, "at_steps": (-1,)}.items():
        with pytest.raises(InputError, match=name.removeprefix("jump_")):
            Teleporting(base, model, **{name: value})
    with pytest.raises(InputError, match="base"):
        Teleporting(Teleporting(base, model), model)
    with pytest.raises(InputError, match="two layers or more"):
        teleport([random(2, 3)], X, Y, F.mse_loss, torch.tanh)
    with pytest.raises(InputError, match="biases"):
        teleport([random(2, 3)] * 2, X, Y, F.mse_loss, torch.tanh, biases=[random(2)])


def test_races():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = hasten.run(CARD.make(lr=1e-2), hasten.problem("digits-mlp:width=16"), budget=10)
    assert trace.status == "budget", trace.message
    assert trace.final < trace.metric[0]
