"""What every ready problem must offer: seeds that mean something, a finite start, a metric that can be lowered."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.card import Card
from hasten.core.catalogue import Ready, problem, problems
from hasten.core.errors import InputError
from hasten.core.kinds.minimise import Minimisation
from hasten.core.kinds.train import Training
from hasten.core.registry import get
from hasten.core.run import run
from hasten.optim.adapter import OptimizerMethod, Parts
from hasten.problems.data import SOURCES
from hasten.problems.linear import Logistic, a9a_table, breast_cancer

DATA = {"cifar10", "tinyshakespeare", "a9a", "cora", "etth1"}
KINDS = {"train", "minimise"}
SMALL = {"stdlib-lm": {"width": 16, "depth": 1, "context": 16}, "tinyshakespeare": {"width": 16, "depth": 1}}
DETERMINISTIC = {"a9a", "amsgrad-counterexample", "breast-cancer-logreg", "diabetes-lasso", "rosenbrock"}

needs_data = pytest.mark.skipif(
    not os.environ.get("HASTEN_DATA"), reason="set HASTEN_DATA to the folder with the real data sets"
)


def cases() -> list[Any]:
    """The problems of the two kinds that optimizers serve, small where that saves time."""
    return [
        pytest.param(entry, id=entry.name, marks=needs_data if entry.name in DATA else ())
        for entry in problems()
        if entry.kind in KINDS
    ]


def build(entry: Ready, seed: int) -> Any:
    return problem(entry.name, **SMALL.get(entry.name, {})).build(seed)


def first_gradient(instance: Any) -> torch.Tensor:
    if isinstance(instance, Training):
        instance.gradient()
        return torch.cat([parameter.grad.flatten() for parameter in instance.model.parameters()])
    return instance.gradient(instance.x0)


def answer(instance: Any) -> Any:
    return instance.model if isinstance(instance, Training) else instance.x0


@pytest.mark.parametrize("entry", cases())
def test_equal_seeds_give_equal_instances(entry: Ready):
    first = build(entry, 3)
    start, gradient = first.metric(answer(first)), first_gradient(first)
    second = build(entry, 3)
    assert first.kind == entry.kind
    assert second.metric(answer(second)) == start
    assert torch.equal(first_gradient(second), gradient)


@pytest.mark.parametrize("entry", [case for case in cases() if case.values[0].name not in DETERMINISTIC])
def test_other_seed_other_start(entry: Ready):
    first, second = first_gradient(build(entry, 0)), first_gradient(build(entry, 1))
    assert torch.isfinite(first).all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("entry", cases())
def test_description(entry: Ready):
    made = problem(entry.name)
    start = build(entry, 0)
    value = start.metric(answer(start))
    assert entry.summary
    assert entry.summary.endswith(".")
    assert made.summary
    assert made.kind == entry.kind
    assert made.target is not None
    assert made.target < value < float("inf")
    assert made.every <= made.budget
    assert all(made.kind in get(name).kinds for name in made.contenders)
    assert start.calls.total() == 0, "the metric must not count as an oracle call"


def with_contenders() -> list[Any]:
    """Problems of any kind that say who races by default."""
    return [
        pytest.param(entry, id=entry.name, marks=needs_data if entry.name in DATA else ())
        for entry in problems()
        if problem(entry.name).contenders
    ]


@pytest.mark.parametrize("entry", with_contenders())
def test_who_races_by_default_fits(entry: Ready):
    made = problem(entry.name)
    offers = made.build(0).offers()
    assert [name for name in made.contenders if not get(name).fits(made.kind, offers)] == []


@pytest.mark.parametrize("entry", cases())
def test_a_few_steps_lower_the_metric(entry: Ready):
    made = problem(entry.name, **SMALL.get(entry.name, {}))
    lr = 3e-2 if entry.kind == "minimise" else 3e-3
    card = Card("reference", "optim", "AdamW", "-", 2019, "-", "-", "-", ("train", "minimise"), "-")
    method = OptimizerMethod(
        card, lambda model, _, hyper: Parts(torch.optim.AdamW(model.parameters(), **hyper)), {"lr": lr}
    )
    trace = run(method, made, budget=12, every=12)
    assert trace.status == "budget", trace.message
    assert trace.final < trace.metric[0]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("quadratic", {"cond": 0.5}),
        ("quadratic", {"dim": 0}),
        ("quadratic", {"noise": -1.0}),
        ("rosenbrock", {"dim": 1}),
        ("breast-cancer-logreg", {"ridge": 0.0}),
        ("breast-cancer-logreg", {"batch": -1}),
        ("diabetes-lasso", {"strength": 1.0}),
        ("digits-mlp", {"width": 0}),
        ("digits-mlp", {"batch": 0}),
        ("stdlib-lm", {"depth": 0}),
        ("cora", {"dropout": 1.0}),
        ("etth1", {"past": 0}),
    ],
)
def test_bad_parameters_are_named(name: str, params: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(params)) if params != {"batch": 0} else "batch_size"):
        problem(name, **params)


def test_a_width_that_the_heads_do_not_divide():
    with pytest.raises(InputError, match="multiple of the 4 heads, got 18"):
        problem("stdlib-lm", width=18).build(0)


def minimisation(name: str, **params: Any) -> Minimisation:
    return problem(name, **params).build(0)  # type: ignore[return-value]


def test_breast_cancer_figures():
    """Least value, start gap and Lipschitz constant as the literature's setting of this problem has them."""
    instance = minimisation("breast-cancer-logreg")
    x, _ = breast_cancer()
    assert instance.minimum == pytest.approx(0.05984, abs=5e-6)
    assert instance.metric(instance.x0) == pytest.approx(0.633, abs=5e-4)
    assert float(torch.linalg.eigvalsh(x.T @ x)[-1]) / (4 * len(x)) + 1e-3 == pytest.approx(3.32, abs=0.01)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), ridge=st.floats(1e-6, 1.0), scale=st.floats(0.1, 10.0))
def test_logistic_derivatives_match_autograd(seed: int, ridge: float, scale: float):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(12, generator=generator, dtype=torch.float64).sign()
    w = scale * torch.randn(5, generator=generator, dtype=torch.float64)
    logistic = Logistic(x, y, ridge)
    torch.testing.assert_close(logistic.gradient(w), torch.func.grad(logistic.value)(w))
    torch.testing.assert_close(logistic.hessian(w), torch.func.hessian(logistic.value)(w))
    least = logistic.minimum()
    assert least <= float(logistic.value(w)) + 1e-12
    assert least <= float(logistic.value(torch.zeros_like(w))) + 1e-12


def test_stochastic_gradients_are_unbiased():
    exact = minimisation("breast-cancer-logreg").gradient(torch.zeros(30, dtype=torch.float64))
    noisy = minimisation("breast-cancer-logreg", batch=64)
    mean = torch.stack([noisy.gradient(noisy.x0) for _ in range(800)]).mean(0)
    assert (mean - exact).abs().max() < 0.012
    assert "hessian" not in noisy.offers()
    noisy = minimisation("quadratic", noise=0.5, dim=3)
    mean = torch.stack([noisy.gradient(noisy.x0) for _ in range(800)]).mean(0)
    assert (mean - noisy._gradient(noisy.x0)).abs().max() < 0.1


def test_lasso_minimum_is_a_fixed_point_of_proximal_gradient():
    instance = minimisation("diabetes-lasso")
    assert {"prox", "hessian"} <= instance.offers()
    x = instance.x0
    step = 1 / float(torch.linalg.eigvalsh(instance.hessian(x))[-1])
    for _ in range(3000):
        x = instance.prox(x - step * instance.gradient(x), step)
    assert abs(instance.metric(x)) < 1e-9
    assert (x == 0).any()
    torch.testing.assert_close(instance.gradient(x), torch.func.grad(instance.fun)(x))


@settings(max_examples=15, deadline=None)
@given(dim=st.integers(1, 12), cond=st.floats(1.0, 1e5), rotated=st.booleans(), seed=st.integers(0, 99))
def test_quadratic_spectrum(dim: int, cond: float, rotated: bool, seed: int):
    instance = problem("quadratic", dim=dim, cond=cond, rotated=rotated).build(seed)
    values = torch.linalg.eigvalsh(instance.hessian(instance.x0))
    assert float(values[0]) == pytest.approx(1.0, rel=1e-6)
    if dim > 1:
        assert float(values[-1]) == pytest.approx(cond, rel=1e-6)
        ratios = [float(b / a) for a, b in pairwise(values)]
        assert ratios == pytest.approx([cond ** (1 / (dim - 1))] * (dim - 1), rel=1e-5)
    torch.testing.assert_close(instance.gradient(instance.x0), torch.func.grad(instance.fun)(instance.x0))
    assert instance.metric(torch.zeros(dim, dtype=torch.float64)) == 0


@settings(max_examples=10, deadline=None)
@given(dim=st.integers(2, 20), seed=st.integers(0, 99))
def test_rosenbrock(dim: int, seed: int):
    instance = problem("rosenbrock", dim=dim).build(seed)
    x = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(instance.gradient(x), torch.func.grad(instance.fun)(x))
    assert instance.metric(torch.ones(dim, dtype=torch.float64)) == 0
    assert float(instance.gradient(torch.ones(dim, dtype=torch.float64)).norm()) == 0


def test_digits_mlp_is_the_network_it_says():
    instance = problem("digits-mlp").build(0)
    assert [tuple(p.shape) for p in instance.model.parameters() if p.dim() == 2] == [(64, 64), (64, 64), (10, 64)]
    images, labels = next(instance.batches)
    assert images.shape == (64, 64)
    assert 0 <= images.min() < images.max() <= 1
    assert labels.dtype == torch.int64


def test_language_model_is_causal():
    model = problem("stdlib-lm", **SMALL["stdlib-lm"]).build(0).model
    text = torch.randint(0, 256, (2, 16), dtype=torch.uint8)
    changed = text.clone()
    changed[:, 10:] = 0
    with torch.no_grad():
        before, after = model(text), model(changed)
    assert before.shape == (2, 16, 256)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@needs_data
def test_cora_propagates_along_edges_only():
    from hasten.problems.graphs import cora_graph

    graph = cora_graph()
    dense = graph.mixing.to_dense()
    torch.testing.assert_close(dense, dense.T)
    assert int((dense != 0).sum()) == 2 * 5278 + 2708
    assert float(torch.linalg.eigvalsh(dense.double())[-1]) == pytest.approx(1.0, abs=1e-5)


@needs_data
def test_a9a_is_the_file():
    x, y = a9a_table()
    assert float(x.sum(1).mean()) == pytest.approx(13.85, abs=0.02)
    assert float((y > 0).double().mean()) == pytest.approx(0.2362, abs=1e-3)


def test_every_data_problem_has_a_source():
    assert set(SOURCES) >= DATA
