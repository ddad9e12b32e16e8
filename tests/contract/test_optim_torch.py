"""PyTorch's own optimizer cases (`torch.testing._internal.common_optimizers`), run over ours wherever they apply.

The inputs and the error inputs are PyTorch's. The behaviours are those that its suite checks for every entry of its
data base; that suite itself is not part of an installed PyTorch.
"""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from contract.test_optim import OURS, build, rate
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, PolynomialLR, ReduceLROnPlateau, StepLR

common = pytest.importorskip("torch.testing._internal.common_optimizers", reason="this PyTorch ships no test helpers")

ours = pytest.mark.parametrize("card", OURS, ids=lambda card: card.name)
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "step": lambda optimizer: StepLR(optimizer, gamma=0.9, step_size=10),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer),
    "linear": lambda optimizer: LinearLR(optimizer, start_factor=0.4, total_iters=4),
    "exponential": lambda optimizer: ExponentialLR(optimizer, gamma=0.99),
    "polynomial": lambda optimizer: PolynomialLR(optimizer, power=0.9, total_iters=40),
}


def accepts(card: Any, given: dict[str, Any]) -> bool:
    """Whether the constructor has these arguments (those of the base included), and none of them is a word there."""
    known = inspect.signature(card.load().__init__).parameters
    words = {name for name in given if name in known and isinstance(known[name].default, str)}
    return set(given) <= {*known, "maximize"} and not any(not isinstance(given[name], str) for name in words)


def inputs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every set of options that PyTorch tests its optimizers with, each once."""
    seen = set()
    for info in common.optim_db:
        for given in info.optim_inputs_func(device="cpu"):
            # Step sizes of other rules would test nothing but stability.
            kwargs = {name: value for name, value in given.kwargs.items() if name not in ("lr", "eps")}
            if repr(kwargs) not in seen:
                seen.add(repr(kwargs))
                yield f"{info.optim_cls.__name__}: {given.desc}", kwargs


CASES = [
    pytest.param(card, kwargs, id=f"{card.name}-{label}")
    for card in OURS
    for label, kwargs in inputs()
    if accepts(card, kwargs)
    and not any(isinstance(value, (list, tuple)) and len(value) != 2 for value in kwargs.values())
    and not ("betas" in kwargs and len(inspect.signature(card.load()).parameters["betas"].default) != 2)
]


def closure_for(params: list[nn.Parameter], takes: str, target: float = 0.0, sign: float = 1.0) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        return sign * sum(((param - target) ** 2).sum() for param in params)  # type: ignore[return-value]

    def closure() -> Tensor:
        for param in params:
            param.grad = None
        value = loss()
        value.backward()
        return value

    return loss if takes == "loss" else closure


def advance(optimizer: Any, params: list[nn.Parameter], count: int = 1, target: float = 0.0) -> float:
    """Steps on the squared distance from a point, or on its negative to climb; returns its last value before a step."""
    takes = getattr(optimizer, "takes", "gradients")
    closure = closure_for(params, takes, target, -1.0 if optimizer.param_groups[0].get("maximize") else 1.0)
    value = closure()
    for _ in range(count):
        if takes == "gradients":
            value = closure()
            optimizer.step()
        else:
            value = optimizer.step(closure)
    return float(value.detach())


def square(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes or ((4, 3), (3,))]


@pytest.mark.parametrize(("card", "kwargs"), CASES)
def test_every_input_of_torch_goes_the_right_way(card: Any, kwargs: dict[str, Any]) -> None:
    params = square()
    optimizer = build(card, params, **kwargs)
    first = advance(optimizer, params)
    last = advance(optimizer, params, 40)
    if kwargs.get("maximize"):
        assert last > first
    else:
        assert last < first


@ours
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_goes_the_right_way_under_a_schedule(card: Any, schedule: str) -> None:
    params = square()
    optimizer = build(card, params)
    scheduler = SCHEDULES[schedule](optimizer)
    first = best = advance(optimizer, params)
    for _ in range(30):
        value = advance(optimizer, params)
        best = min(best, value)
        scheduler.step(*((value,) if schedule == "plateau" else ()))
    assert best < first


@ours
@pytest.mark.parametrize("error", range(len(common.get_error_inputs_for_all_optims("cpu", torch.float32))))
def test_rejects_what_torch_rejects(card: Any, error: int) -> None:
    case = common.get_error_inputs_for_all_optims("cpu", torch.float32)[error]
    given = case.optimizer_error_input
    if not accepts(card, given.kwargs):
        return
    params = given.params if given.params is not None else square()
    if isinstance(params, list) and params and isinstance(params[0], dict):
        known = set(inspect.signature(card.load()).parameters) | {"params"}
        params = [{name: value for name, value in group.items() if name in known} for group in params]
    if case.error_type is UserWarning:
        with pytest.warns(UserWarning, match=case.error_regex):
            card.load()(params, **given.kwargs)
        return
    with pytest.raises(case.error_type):
        card.load()(params, **given.kwargs)


@ours
@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1e-2},
        {"lr": torch.tensor([1e-3, 1e-3])},
        {"lr": float("nan")},
        {"weight_decay": -1},
        {"eps": -1e-8},
        {"betas": (1.0, 0.0)},
        {"betas": (-0.1, 0.9)},
        {"momentum": -1.0},
    ],
    ids=str,
)
def test_options_out_of_range_are_named(card: Any, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    parameters = inspect.signature(card.load()).parameters
    if name not in parameters:
        return
    default = parameters[name].default
    if isinstance(default, tuple) != isinstance(wrong[name], tuple):
        return
    if isinstance(default, tuple):
        wrong = {name: (*wrong[name], *default[2:])}
    with pytest.raises(ValueError, match=name):
        card.load()(square(), **wrong)


@ours
@pytest.mark.parametrize("option", ["capturable", "differentiable", "foreach", "fused"])
def test_options_of_torch_that_make_no_sense_here_are_refused_with_the_reason(card: Any, option: str) -> None:
    with pytest.raises((TypeError, ValueError), match=option):
        card.load()(square(), **{**rate(card), option: True})


@ours
def test_unknown_options_are_refused(card: Any) -> None:
    with pytest.raises(TypeError, match="leraning_rate"):
        card.load()(square(), leraning_rate=1e-3)


@ours
def test_step_hooks_act(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    seen: list[str] = []
    before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    advance(optimizer, params)
    assert seen == ["before", "after"]
    before.remove()
    after.remove()
    advance(optimizer, params)
    assert len(seen) == 2


@ours
def test_state_dict_hooks_act(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    advance(optimizer, params)
    calls: list[str] = []

    def renamed(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("save")
        return {**state, "note": "kept"}

    def restored(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("load")
        return {name: value for name, value in state.items() if name != "note"}

    optimizer.register_state_dict_post_hook(renamed)
    optimizer.register_load_state_dict_pre_hook(restored, prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["note"] == "kept"
    optimizer.load_state_dict(saved)
    assert calls == ["save", "load", "loaded"]


@ours
def test_deep_copies_have_all_public_attributes(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    advance(optimizer, params, 2)
    public = {name for name in dir(optimizer) if not name.startswith("_")}
    assert public == {name for name in dir(copy.deepcopy(optimizer)) if not name.startswith("_")}


@ours
def test_weight_decay_of_a_group_is_its_own(card: Any) -> None:
    if "weight_decay" not in inspect.signature(card.load()).parameters:
        return

    def after(decay: float) -> Tensor:
        pair = [nn.Parameter(torch.full((3, 3), 2.0, dtype=torch.float64)) for _ in range(2)]
        groups = [{"params": [pair[0]], "weight_decay": decay}, {"params": [pair[1]], "weight_decay": 0.0}]
        advance(build(card, groups), pair, 3, target=3.0)
        return pair[0].detach()

    assert not torch.equal(after(5.0), after(0.0))


@ours
def test_a_foreign_state_dict_is_refused_with_the_keys_that_differ(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    advance(optimizer, params, 2)
    before, kept = copy.deepcopy(optimizer.state_dict()), [param.detach().clone() for param in params]
    twins = square()
    other = torch.optim.Adadelta(twins)
    advance(other, twins, 2)
    with pytest.raises(ValueError, match="rho"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="param_groups"):
        optimizer.load_state_dict({"model": {}})
    fewer = square((2, 2))
    smaller = build(card, fewer)
    advance(smaller, fewer)
    with pytest.raises(ValueError, match="param"):
        optimizer.load_state_dict(smaller.state_dict())
    assert repr(optimizer.state_dict()) == repr(before)
    assert all(torch.equal(param, old) for param, old in zip(params, kept))


@ours
def test_state_dicts_load_with_weights_only(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    advance(optimizer, params, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twins = [nn.Parameter(param.detach().clone()) for param in params]
    fresh = build(card, twins)
    fresh.load_state_dict(saved)
    assert str(fresh.state_dict()["param_groups"]) == str(optimizer.state_dict()["param_groups"])


@ours
def test_state_dicts_of_float_parameters_load_for_double_ones(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    advance(optimizer, params, 3)
    doubles = [nn.Parameter(param.detach().double()) for param in params]
    fresh = build(card, doubles)
    fresh.load_state_dict(optimizer.state_dict())
    first = advance(fresh, doubles)
    # Rules that find their own step size may pass over the minimum at first.
    assert min(advance(fresh, doubles) for _ in range(11)) < first


@ours
def test_named_parameters_are_kept_in_the_state_dict(card: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = build(card, model.named_parameters())
    names = optimizer.state_dict()["param_groups"][0]["param_names"]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]


@ours
def test_tied_parameters_step_once(card: Any) -> None:
    tied = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(tied, tied)
    twin = nn.Linear(3, 3, bias=False)
    twin.load_state_dict(tied.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left, right = build(card, model.parameters()), build(card, twin.parameters())
    advance(left, list(model.parameters()), 3)
    advance(right, list(twin.parameters()), 3)
    assert torch.equal(tied.weight, twin.weight)


@ours
def test_without_gradients_nothing_happens(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    if getattr(optimizer, "takes", "gradients") != "gradients":
        return
    before = [param.detach().clone() for param in params]
    optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before))


@ours
def test_gradients_may_be_accumulated(card: Any) -> None:
    params, twins = square(), square()
    left, right = build(card, params), build(card, twins)
    if getattr(left, "takes", "gradients") != "gradients":
        return
    for _ in range(3):
        for param, twin in zip(params, twins):
            param.grad = None
            for _ in range(2):
                part = param.detach() * 0.5
                param.grad = part if param.grad is None else param.grad + part
            twin.grad = twin.detach().clone()
        left.step()
        right.step()
    for param, twin in zip(params, twins):
        torch.testing.assert_close(param, twin)


@ours
def test_zero_grad_and_repr(card: Any) -> None:
    params = square()
    optimizer = build(card, params)
    advance(optimizer, params)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)
    assert type(optimizer).__name__ in repr(optimizer)


@ours
def test_an_empty_list_is_refused(card: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        card.load()([])


@ours
def test_compiled_models_train(card: Any) -> None:
    if getattr(card.load(), "takes", "gradients") != "gradients":
        return
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend="eager")
    left, right = build(card, plain.parameters()), build(card, compiled.parameters())
    inputs = torch.randn(8, 3)
    for _ in range(2):
        for model, optimizer in ((plain, left), (compiled, right)):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    for a, b in zip(plain.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b)
