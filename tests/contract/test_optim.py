"""What every registered optimizer must do, PyTorch's own included."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import hasten
from hasten.core.card import Real
from hasten.core.errors import InputError
from hasten.optim import NonFiniteGradientError, OptimizerWrapper, RuleOptimizer
from hasten.optim.layout import real, work_dtype


def _is_optimizer(target: Any) -> bool:
    return inspect.isclass(target) and issubclass(target, Optimizer) and not issubclass(target, OptimizerWrapper)


CARDS = [card for card in hasten.methods("optim") if _is_optimizer(card.load())]
OURS = [card for card in CARDS if issubclass(card.load(), RuleOptimizer)]
DIFFERENTIATING = [card for card in CARDS if not getattr(card.load(), "forward_only", False)]
"""Those that see gradients; the others move all parameters along random directions, whatever the loss depends on."""
SEPARATE = [
    card
    for card in OURS
    if card.load().together is RuleOptimizer.together and card.load().advance is RuleOptimizer.advance
    if card in DIFFERENTIATING
]
SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2), (3, 4), (1,), (4, 0)]

every = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
separate = pytest.mark.parametrize("card", SEPARATE, ids=lambda card: card.name)
differentiating = pytest.mark.parametrize("card", DIFFERENTIATING, ids=lambda card: card.name)
ours = pytest.mark.parametrize("card", OURS, ids=lambda card: card.name)


def test_there_are_optimizers_to_test() -> None:
    assert {"adamw", "adopt", "lion"} <= {card.name for card in CARDS}


def rate(card: Any) -> dict[str, float]:
    """A learning rate from the middle of the range that a race searches, if there is one."""
    space = card.search_space.get("lr")
    return {"lr": math.sqrt(space.low * space.high)} if isinstance(space, Real) else {}


def build(card: Any, params: Any, **options: Any) -> Optimizer:
    return card.load()(params, **{**rate(card), **options})


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [nn.Parameter(value.to(dtype)) for value in values]


def gradients(step: int, params: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in params]


def closure_of(optimizer: Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What an optimizer that evaluates by itself is given for this loss."""
    params = [param for group in optimizer.param_groups for param in group["params"]]

    def closure() -> Tensor:
        for param in params:
            param.grad = None
        value = loss()
        value.backward()
        return value

    return loss if optimizer.takes == "loss" else closure  # type: ignore[attr-defined]


def takes_gradients(optimizer: Any) -> bool:
    return getattr(optimizer, "takes", "gradients") == "gradients"


def take_step(optimizer: Optimizer, loss: Callable[[], Tensor] | None = None) -> None:
    """A step on the gradients in place; where the optimizer evaluates by itself, on a loss that has these gradients.

    It is `1 + <g, p - p0> + |p - p0|^2 / 2`, or its negative under `maximize`, unless another one is given.
    """
    if takes_gradients(optimizer):
        optimizer.step()
        return
    sign = -1.0 if optimizer.param_groups[0].get("maximize") else 1.0
    params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    if loss is not None or not params:
        optimizer.step(closure_of(optimizer, loss or (lambda: torch.zeros((), requires_grad=True))))  # type: ignore[arg-type]
        return
    recorded = [real(param.grad).to(work_dtype(param.dtype)) for param in params]
    start = [real(param.detach().clone()) for param in params]

    def bowl() -> Tensor:
        total = torch.ones((), dtype=torch.float64)
        for param, g, old in zip(params, recorded, start):
            moved = (real(param) - old).to(g.dtype)
            total = total + (sign * g * moved).sum().double() + 0.5 * moved.square().sum().double()
        return sign * total

    optimizer.step(closure_of(optimizer, bowl))  # type: ignore[arg-type]


def steps(optimizer: Optimizer, params: Any, first: int = 0, last: int = 4) -> None:
    for step in range(first, last):
        for param, grad in zip(params, gradients(step, params)):
            param.grad = grad
        take_step(optimizer)


def assert_same(left: Any, right: Any, exact: bool = True) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@every
def test_descends_a_quadratic(card: Any) -> None:
    x = nn.Parameter(torch.full((4, 3), 2.0))
    optimizer = build(card, [x])
    for _ in range(100):
        optimizer.zero_grad()
        ((x - 1) ** 2).sum().backward()
        take_step(optimizer, lambda: ((x - 1) ** 2).sum())
    assert ((x - 1) ** 2).sum() < 12.0


@every
def test_every_group_has_its_own_options(card: Any) -> None:
    still, moving = parameters(shapes=[(3, 2), (3, 2)])
    before = [still.clone(), moving.clone()]
    optimizer = build(card, [{"params": [still], "lr": 0.0}, {"params": [moving]}])
    steps(optimizer, [still, moving])
    assert torch.equal(still, before[0])
    assert not torch.equal(moving, before[1])


@every
def test_parameters_can_be_added_in_training(card: Any) -> None:
    params = parameters(shapes=[(3, 2), (4,), (2, 2)])
    optimizer = build(card, params[:2])
    steps(optimizer, params)
    before = params[2].clone()
    optimizer.add_param_group({"params": [params[2]]})
    steps(optimizer, params, 4, 7)
    assert not torch.equal(params[2], before)
    assert all(torch.isfinite(param).all() for param in params)


@differentiating
def test_frozen_and_unused_parameters_stay(card: Any) -> None:
    params = parameters()
    params[1].requires_grad_(False)
    optimizer = build(card, params)
    frozen, unused = params[1].clone(), params[4].clone()
    for step in range(3):
        for index, (param, grad) in enumerate(zip(params, gradients(step, params))):
            param.grad = None if index in (1, 4) else grad
        take_step(optimizer)
    assert torch.equal(params[1], frozen)
    assert torch.equal(params[4], unused)
    assert not optimizer.state.get(params[4])


@separate
def test_counters_belong_to_the_parameter(card: Any) -> None:
    """A parameter that joins late starts at its own first step, whatever the others did."""
    early, late = parameters(shapes=[(3, 2), (3, 2)])
    alone = nn.Parameter(late.detach().clone())
    optimizer, reference = build(card, [early, late]), build(card, [alone])
    for step in range(6):
        early.grad, grad = gradients(step, [early, late])
        late.grad = grad if step >= 3 else None
        take_step(optimizer)
        if step >= 3:
            alone.grad = grad.clone()
            take_step(reference)
    assert (optimizer.state[early]["step"], optimizer.state[late]["step"]) == (6, 3)
    torch.testing.assert_close(late, alone, rtol=1e-6, atol=1e-7)


@differentiating
def test_tensors_of_any_shape_and_stride(card: Any) -> None:
    plain = parameters(shapes=[(6, 4), (2, 3, 4, 5)])
    strided = [
        nn.Parameter(plain[0].detach().t().contiguous().t()),
        nn.Parameter(plain[1].detach().to(memory_format=torch.channels_last)),
    ]
    spread = nn.Parameter(torch.zeros(6, 8)[:, ::2])
    spread.data.copy_(plain[0].data)
    first, second = build(card, [*plain, *parameters()]), build(card, [*strided, *parameters()])
    third = build(card, [spread])
    alone = nn.Parameter(plain[0].detach().clone())
    fourth = build(card, [alone])
    for step in range(4):
        for param, other, grad in zip(plain, strided, gradients(step, plain)):
            param.grad, other.grad = grad, grad.clone().expand_as(grad)
        spread.grad = alone.grad = gradients(step, plain)[0]
        for optimizer in (first, second, third, fourth):
            take_step(optimizer)
    assert_same(plain, strided, exact=False)
    assert_same([alone], [spread], exact=False)
    assert strided[1].is_contiguous(memory_format=torch.channels_last)


@separate
def test_packing_changes_nothing(card: Any) -> None:
    """All together give what each gives alone, small and large."""
    shapes = [*SHAPES, (300, 200), (40000,), (3, 5)]
    joint, single = parameters(shapes=shapes), parameters(shapes=shapes)
    together, alone = build(card, joint), [build(card, [param]) for param in single]
    for step in range(3):
        for a, b, grad in zip(joint, single, gradients(step, joint)):
            a.grad, b.grad = grad, grad.clone()
        take_step(together)
        for optimizer in alone:
            take_step(optimizer)
    assert_same(joint, single, exact=False)


@every
def test_maximize_is_minimising_the_negative(card: Any) -> None:
    up, down = parameters(), parameters()
    climbing, descending = build(card, up, maximize=True), build(card, down)
    for step in range(4):
        for a, b, grad in zip(up, down, gradients(step, up)):
            a.grad, b.grad = -grad, grad
        take_step(climbing)
        take_step(descending)
    assert_same(up, down)


@differentiating
def test_closures_see_gradients_and_their_loss_is_returned(card: Any) -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = build(card, [x])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x**2).sum()
        if getattr(optimizer, "takes", "gradients") != "loss":
            loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert optimizer.step(closure) is not None


@every
def test_the_learning_rate_may_be_a_tensor(card: Any) -> None:
    lr = rate(card).get("lr", 1.0)
    number, tensor = parameters(), parameters()
    scalar = torch.tensor(lr, dtype=torch.float64)
    left, right = build(card, number, lr=lr), build(card, tensor, lr=scalar)
    steps(left, number)
    steps(right, tensor)
    assert_same(number, tensor, exact=False)
    scalar.zero_()
    before = [param.clone() for param in tensor]
    steps(right, tensor, 4, 6)
    assert_same(before, tensor)


@every
def test_schedulers_reach_the_rule(card: Any) -> None:
    params = parameters()
    optimizer = build(card, params)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 3 else 0.0)
    for step in range(6):
        if step == 3:
            before = [param.clone() for param in params]
        steps(optimizer, params, step, step + 1)
        scheduler.step()
    assert_same(before, params)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision(card: Any, dtype: torch.dtype) -> None:
    params, reference = parameters(dtype=dtype), parameters()
    optimizer = build(card, params)
    steps(optimizer, params, last=2)
    assert all(param.dtype == dtype and torch.isfinite(param).all() for param in params)
    if rate(card):
        assert any(not torch.equal(param, before.to(dtype)) for param, before in zip(params, reference))
    if isinstance(optimizer, RuleOptimizer):
        for param in params:
            names = optimizer.shapes(optimizer.param_groups[0], param.shape) if param.numel() else ()
            assert all(optimizer.state[param][name].dtype == torch.float32 for name in names)


@ours
def test_sparse_gradients_are_refused_by_name(card: Any) -> None:
    if card not in DIFFERENTIATING:
        return
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    optimizer = build(card, model.named_parameters())
    model(torch.tensor([1, 2])).sum().backward()
    before = [param.clone() for param in model.parameters()]
    with pytest.raises(InputError, match=r"'0\.weight'.*sparse"):
        take_step(optimizer, lambda: model(torch.tensor([1, 2])).sum())
    assert_same(before, model.parameters())
    unnamed = build(card, model.parameters())
    with pytest.raises(InputError, match="parameter 0 of group 0"):
        take_step(unnamed, lambda: model(torch.tensor([1, 2])).sum())


@ours
def test_complex_parameters_are_pairs_of_reals_or_refused(card: Any) -> None:
    value = torch.randn(3, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    number, pair = nn.Parameter(value.clone()), nn.Parameter(torch.view_as_real(value).clone())
    if not card.load().takes_complex:
        with pytest.raises(InputError, match=r"parameter 0 of group 0.*complex"):
            build(card, [number])
        return
    left, right = build(card, [number]), build(card, [pair])
    for step in range(3):
        (grad,) = gradients(step, [pair])
        number.grad, pair.grad = torch.view_as_complex(grad), grad.clone()
        take_step(left)
        take_step(right)
    assert_same([torch.view_as_real(number)], [pair])


@ours
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_non_finite_gradients(card: Any, bad: float) -> None:
    params = parameters()
    named = [(f"layer.{index}", param) for index, param in enumerate(params)]
    strict = build(card, named, on_nonfinite="raise")
    lenient = build(card, params, on_nonfinite="skip")
    steps(strict, params, last=2)
    before = [param.clone() for param in params]
    saved = copy.deepcopy(strict.state_dict())
    for param, grad in zip(params, gradients(2, params)):
        param.grad = grad
    params[3].grad.view(-1)[4] = bad  # type: ignore[union-attr]
    with pytest.raises(
        NonFiniteGradientError, match=r"'layer\.3'" if card in DIFFERENTIATING else "nothing was changed"
    ):
        take_step(strict)
    take_step(lenient)
    assert_same(before, params)
    assert lenient.skipped == 1
    for param, state in strict.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(saved["state"][param][name]))


@ours
def test_large_finite_gradients_are_not_taken_for_infinite(card: Any) -> None:
    x = nn.Parameter(torch.ones(8))
    optimizer = build(card, [x], on_nonfinite="raise")
    x.grad = torch.full((8,), 3e38)
    take_step(optimizer)


def assert_continues(card: Any, dtype: torch.dtype, resume: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    params = parameters(dtype=dtype)
    optimizer = build(card, params)
    steps(optimizer, params)
    twins = [nn.Parameter(param.detach().clone()) for param in params]
    fresh = build(card, twins)
    fresh.load_state_dict(resume(optimizer.state_dict()))
    steps(fresh, twins, 4, 8)
    steps(optimizer, params, 4, 8)
    assert_same(params, twins)


def _by_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every
def test_training_resumes_from_a_file_bit_for_bit(card: Any) -> None:
    assert_continues(card, torch.float32, _by_file)


@ours
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("resume", [_by_file, lambda state: state], ids=["file", "memory"])
def test_state_keeps_its_precision_and_shares_nothing(card: Any, dtype: torch.dtype, resume: Any) -> None:
    assert_continues(card, dtype, resume)


@ours
def test_loaded_state_is_a_copy(card: Any) -> None:
    params = parameters()
    optimizer = build(card, params)
    steps(optimizer, params)
    saved = optimizer.state_dict()
    twins = [nn.Parameter(param.detach().clone()) for param in params]
    fresh = build(card, twins)
    fresh.load_state_dict(saved)
    kept = copy.deepcopy(saved["state"])
    steps(fresh, twins, 4, 6)
    for index, state in kept.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state_dict()["state"][index][name]))


@every
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_independent_and_continue(card: Any, duplicate: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = build(card, params)
    steps(optimizer, params)
    twins, twin = duplicate((params, optimizer))
    steps(twin, twins, 4, 8)
    steps(optimizer, params, 4, 8)
    assert_same(params, twins)


@every
def test_state_replaced_from_outside_is_used(card: Any) -> None:
    params = parameters()
    optimizer = build(card, params)
    steps(optimizer, params)
    for state in optimizer.state.values():
        for name, value in list(state.items()):
            if torch.is_tensor(value):
                state[name] = value.clone()
    twins, twin = copy.deepcopy((params, optimizer))
    steps(twin, twins, 4, 6)
    steps(optimizer, params, 4, 6)
    assert_same(params, twins)


@every
def test_parameters_replaced_under_the_optimizer_are_used(card: Any) -> None:
    params = parameters()
    optimizer = build(card, params)
    steps(optimizer, params)
    for param in params:
        param.data = param.data.clone()
    before = [param.clone() for param in params]
    steps(optimizer, params, 4, 6)
    assert any(not torch.equal(param, old) for param, old in zip(params, before))


@every
def test_grad_scaler(card: Any) -> None:
    params, reference = parameters(), parameters()
    optimizer, plain = build(card, params), build(card, reference)
    if not takes_gradients(optimizer):
        return  # PyTorch's scaler takes no closures
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(3):
        for a, b, grad in zip(params, reference, gradients(step, params)):
            a.grad, b.grad = grad * 2.0**8, grad
        scaler.scale(torch.zeros(1))
        scaler.step(optimizer)
        scaler.update(2.0**8)
        plain.step()
    assert_same(params, reference)
    params[0].grad.view(-1)[0] = math.inf  # type: ignore[union-attr]
    before = [param.clone() for param in params]
    scaler.step(optimizer)
    assert_same(before, params)


@every
def test_step_hooks_run_once_per_step(card: Any) -> None:
    params = parameters()
    optimizer = build(card, params)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    steps(optimizer, params, last=2)
    assert seen == ["before", "after"] * 2


@ours
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"backend": "cuda"}, "backend"),
        ({"on_nonfinite": "hide"}, "on_nonfinite"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_bad_options_are_refused_by_name(card: Any, options: dict[str, Any], message: str) -> None:
    if message == "weight_decay" and message not in inspect.signature(card.load()).parameters:
        return  # the rule has none
    with pytest.raises(InputError, match=message):
        build(card, parameters(), **options)
    if message == "lr":
        optimizer = build(card, parameters())
        with pytest.raises(InputError, match=message):
            optimizer.add_param_group({"params": parameters(1), **options})
        assert len(optimizer.param_groups) == 1
