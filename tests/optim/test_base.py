"""The machinery under the rules: layout, backends, hooks for rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hasten
from hasten.core.errors import EngineError, InputError, UnknownNameError
from hasten.optim import ADOPT, Lion, LionK, RuleOptimizer, backends, layout


class Momentum(RuleOptimizer):
    """The smallest rule: SGD with momentum, its step shortened to norm 1 over the group on request."""

    buffers = ("momentum",)

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, unit: bool = False, **options: Any):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "unit": unit}, **options)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {**self.decay(group), "lr": group["lr"]}

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> dict[str, float | Tensor]:
        if not group["unit"]:
            return {"scale": 1.0}
        return {"scale": 1.0 / torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads]))}

    @staticmethod
    def update(p: Tensor, g: Tensor, momentum: Tensor, *, lr: Any, scale: Any) -> None:
        momentum.mul_(0.5).add_(g * scale)
        p.sub_(momentum * lr)


def slope(x: Tensor) -> Tensor:
    return torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x) + 0.1 * x


@pytest.mark.parametrize("backend", ["eager", pytest.param("compile", id="compile")])
def test_a_rule_may_use_numbers_of_the_whole_group(backend: str) -> None:
    params = [nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(4, dtype=torch.float64))]
    optimizer = Momentum(params, lr=1.0, unit=True, backend=backend)
    for _ in range(2):
        for param in params:
            param.grad = torch.full_like(param, 3.0)
        optimizer.step()
    step = 1 / math.sqrt(7)
    for param in params:
        torch.testing.assert_close(param.detach(), torch.full_like(param, 1 - step - 1.5 * step))


@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6),
    small=st.integers(1, 40),
    pack=st.integers(1, 60),
    chunk=st.integers(1, 30),
    missing=st.sets(st.integers(0, 5)),
)
def test_layout_changes_nothing(
    shapes: list[tuple[int, ...]], small: int, pack: int, chunk: int, missing: set[int]
) -> None:
    """However parameters are packed and cut, each ends where the plain rule takes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SMALL", small)
        patch.setattr(layout, "PACK", pack)
        patch.setattr(backends, "CHUNK", chunk)
        params = [nn.Parameter(torch.linspace(-1, 1, math.prod(s), dtype=torch.float64).reshape(s)) for s in shapes]
        plain = [(param.detach().clone(), torch.zeros_like(param)) for param in params]
        optimizer = Momentum(params, weight_decay=0.1)
        for step in range(4):
            for index, param in enumerate(params):
                idle = index in missing and step % 2 == 1
                param.grad = None if idle else slope(param.detach())
                if not idle:
                    x, m = plain[index]
                    m = 0.5 * m + slope(x)
                    plain[index] = (x * (1 - 0.1 * 0.1) - 0.1 * m, m)
            optimizer.step()
        for param, (x, _) in zip(params, plain):
            torch.testing.assert_close(param.detach(), x, rtol=0.0, atol=1e-12)


def test_gradients_are_left_as_they_are() -> None:
    for rule in (Momentum, ADOPT, Lion, hasten.optim.AdaBelief, hasten.optim.AdEMAMix, hasten.optim.CAME):
        params = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(300, 200))]
        optimizer = rule(params, weight_decay=0.1)
        for _ in range(3):
            grads = [torch.randn(param.shape) for param in params]
            for param, grad in zip(params, grads):
                param.grad = grad.clone()
            optimizer.step()
            assert all(torch.equal(param.grad, grad) for param, grad in zip(params, grads))  # type: ignore[arg-type]


def count_programs(optimizer: torch.optim.Optimizer, param: nn.Parameter, steps: int) -> int:
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()
    return len(backends._programs)


def test_auto_compiles_once_enough_work_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_programs", {})
    monkeypatch.setattr(backends, "PAYS_AFTER", 50)
    x = nn.Parameter(torch.ones(10))
    optimizer = Lion([x])
    assert count_programs(optimizer, x, 4) == 0
    assert count_programs(optimizer, x, 1) == 1


def test_one_program_serves_every_step_and_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_programs", {})
    x = nn.Parameter(torch.ones(10))
    optimizer = ADOPT([x], backend="compile")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(4):
        count_programs(optimizer, x, 1)
        scheduler.step()
    (program,) = backends._programs.values()
    assert len(program._steps) == 1


def test_without_a_compiler_auto_stays_eager_and_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_programs", {})
    monkeypatch.setattr(backends, "PAYS_AFTER", 1)
    monkeypatch.setattr(backends, "compiler_missing", lambda device: "no C++ compiler was found")
    x = nn.Parameter(torch.ones(10))
    assert count_programs(Lion([x]), x, 3) == 0
    strict = Lion([x], backend="compile")
    with pytest.raises(EngineError, match=r"no C\+\+ compiler"):
        count_programs(strict, x, 2)


def test_the_search_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    backends.compiler_missing.cache_clear()
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    assert "C++" in backends.compiler_missing("cpu")
    assert "'mps'" in backends.compiler_missing("mps")
    backends.compiler_missing.cache_clear()


def test_what_cannot_be_compiled_runs_eagerly_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_programs", {})

    def odd(c: Tensor) -> Tensor:
        return torch.tensor(c.tolist()).sign()

    params = [nn.Parameter(torch.ones(200, 200)), nn.Parameter(torch.ones(200, 200))]
    compiled, eager = LionK([params[0]], kappa=odd, backend="compile"), LionK([params[1]], kappa=odd, backend="eager")
    for param in params:
        param.grad = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    compiled.step()
    eager.step()
    with pytest.warns(RuntimeWarning, match="runs eagerly instead"):
        compiled.step()
    eager.step()
    compiled.step()
    eager.step()
    assert torch.equal(*params)


def test_the_compiled_step_goes_past_the_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The direct way leans on names inside the compiler; without it steps are right but slower."""
    monkeypatch.setattr(backends, "_programs", {})
    x = nn.Parameter(torch.ones(50))
    count_programs(Lion([x], backend="compile"), x, 3)
    (program,) = backends._programs.values()
    assert all(step is not None and step._direct is not None for step in program._steps.values())


def test_make_builds_an_optimizer_by_name() -> None:
    x = nn.Parameter(torch.ones(2))
    assert isinstance(hasten.optim.make("adopt", [x], lr=0.1), ADOPT)
    assert isinstance(hasten.optim.make("optim.adamw", [x]), torch.optim.AdamW)
    with pytest.raises(UnknownNameError, match="adopt"):
        hasten.optim.make("adoptt", [x])
    with pytest.raises(InputError, match="not an optimizer by itself"):
        hasten.optim.make("lawa", [x])


def test_every_public_name_can_be_imported() -> None:
    for name in hasten.optim.__all__:
        assert getattr(hasten.optim, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        hasten.optim.nothing  # noqa: B018


def test_integer_parameters_are_refused() -> None:
    with pytest.raises(InputError, match=r"int64"):
        Momentum([torch.ones(3, dtype=torch.int64)])
