"""OnlineSubspace: published code, any base, and what is kept."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import DoG, OnlineSubspace

SHAPES = ((7, 5), (5, 7), (4,))


def start(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.cos(torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape).to(dtype))


def stream(t: int, param: Tensor) -> Tensor:
    i = torch.arange(param.numel(), dtype=torch.float64)
    return (torch.sin(0.7 * t + 1.3 * i * (1 + i % 3)) * (1 + 0.1 * i)).reshape(param.shape).to(param.dtype)


def walk(optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for t in range(first, last):
        for param in params:
            param.grad = stream(t, param)
        optimizer.step()
    return [param.detach().clone() for param in params]


def digest(param: Tensor) -> tuple[float, float]:
    flat = param.flatten().double()
    return float(flat.sum()), float((flat * torch.arange(1, len(flat) + 1)).sum())


# Sums of entries, and of entries times 1, 2, ..., of a 7x5 and a 5x7 matrix after 15 steps of the optimizers of
# kyleliang919/Online-Subspace-Descent, commit e36dbdd; rank 3, lr 1e-2 and from step 10 on 5e-3, betas (0.9, 0.99),
# scale 0.25; "continuous" for online_pca (which decays its basis by 0.01), "std" with gap 200 for svd.
PUBLISHED = {
    ("adamw", "online_pca"): ((0.4994162, -1.0781406), (0.5463089, -0.0131354)),
    ("adamw", "svd"): ((0.4988258, -1.0922059), (0.5459211, -0.0119909)),
    ("lion", "online_pca"): ((0.3899545, -4.8822279), (0.3799545, -3.1222279)),
    ("lion", "svd"): ((0.4299545, -4.2922279), (0.4499545, -2.3822279)),
}


@pytest.mark.parametrize(("base", "kind"), list(PUBLISHED))
def test_published_code(base: str, kind: str) -> None:
    params = [start(shape) for shape in SHAPES[:2]]
    optimizer = OnlineSubspace(
        params, base, lr=1e-2, betas=(0.9, 0.99), eps=1e-12, rank=3, kind=kind, proj_reg=0.0, proj_decay=0.01
    )
    walk(optimizer, 1, 10)
    optimizer.param_groups[0]["lr"] = 5e-3
    for param, golden in zip(walk(optimizer, 10, 16), PUBLISHED[base, kind]):
        assert digest(param) == pytest.approx(golden, abs=2e-5)


@pytest.mark.parametrize(
    ("base", "options", "reference"),
    [
        ("adamw", {"eps": 1e-8}, functools.partial(torch.optim.AdamW, weight_decay=0.1)),
        ("sgdm", {}, functools.partial(torch.optim.SGD, momentum=0.9)),
        (torch.optim.RMSprop, {}, torch.optim.RMSprop),
    ],
)
def test_without_a_rank_it_is_its_base(base: Any, options: dict[str, Any], reference: Any) -> None:
    decay = 0.1 if base == "adamw" else 0.0
    ours = OnlineSubspace(map(start, SHAPES), base, lr=1e-2, rank=None, weight_decay=decay, **options)
    theirs = reference(map(start, SHAPES), lr=1e-2)
    for left, right in zip(walk(ours, 1, 12), walk(theirs, 1, 12)):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["online_pca", "svd", "random"])
def test_projected_momentum_is_the_projection_of_momentum(kind: str) -> None:
    """In a fixed subspace, momentum of the projected gradients is the projection of their momentum."""
    param, plain = start((7, 5)), start((7, 5))
    optimizer = OnlineSubspace([param], "sgdm", lr=1e-2, rank=3, kind=kind, proj_lr=0.0, scale=1.0)
    before = param.detach().clone()
    (after,) = walk(optimizer, 1, 8)
    (whole,) = walk(torch.optim.SGD([plain], lr=1e-2, momentum=0.9), 1, 8)
    basis = optimizer.state[param]["basis"]
    torch.testing.assert_close(after - before, (whole - before) @ basis.T @ basis)


@pytest.mark.parametrize("base", ["adamw", "lion", "adafactor", "sgdm", torch.optim.RMSprop, DoG])
@pytest.mark.parametrize("kind", ["online_pca", "svd", "random"])
def test_resumes_bit_for_bit_on_any_base(base: Any, kind: str) -> None:
    options = {"rank": 3, "kind": kind, "update_gap": 3}
    optimizer, fresh = (OnlineSubspace(map(start, SHAPES), base, lr=1e-2, **options) for _ in range(2))
    walk(optimizer, 1, 6)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for target, source in zip(fresh.param_groups[0]["params"], optimizer.param_groups[0]["params"]):
        target.data.copy_(source.data)
    copied = copy.deepcopy(optimizer)
    pickled = pickle.loads(pickle.dumps(optimizer))
    expected = walk(optimizer, 6, 11)
    for other in (fresh, copied, pickled):
        assert all(map(torch.equal, expected, walk(other, 6, 11)))


def test_lion_takes_signs_after_projecting_back() -> None:
    param = start((7, 5))
    before = param.detach().clone()
    (after,) = walk(OnlineSubspace([param], "lion", lr=1e-2, rank=2), 1, 2)
    torch.testing.assert_close((after - before).abs(), torch.full((7, 5), 1e-2, dtype=torch.float64))


def test_state_is_of_the_rank() -> None:
    param = start((40, 20), torch.bfloat16)
    optimizer = OnlineSubspace([param], rank=4)
    walk(optimizer, 1, 3)
    state = optimizer.state[param]
    shapes = {name: tuple(value.shape) for name, value in state.items() if torch.is_tensor(value) and value.ndim}
    basis = dict.fromkeys(("basis", "basis_exp_avg", "basis_exp_avg_sq"), (4, 20))
    assert shapes == {**basis, "base.exp_avg": (40, 4), "base.exp_avg_sq": (40, 4)}
    assert all(state[name].dtype == torch.float32 for name in shapes)


def test_the_basis_learns_at_the_pace_of_the_schedule() -> None:
    still, moving = start((7, 5)), start((7, 5))
    for param, factor in ((still, 0.0), (moving, 1.0)):
        optimizer = OnlineSubspace([param], rank=2, lr=1e-2)
        walk(optimizer, 1, 2)
        basis = optimizer.state[param]["basis"].clone()
        optimizer.param_groups[0]["lr"] = 1e-2 * factor
        walk(optimizer, 2, 5)
        assert torch.equal(optimizer.state[param]["basis"], basis) == (factor == 0.0)


def test_a_base_may_look_at_the_parameters() -> None:
    """Its own weight decay shrinks what lies in the subspace, and nothing else."""
    param = start((7, 5))
    before = param.detach().clone()
    base = functools.partial(torch.optim.SGD, weight_decay=1.0)
    optimizer = OnlineSubspace([param], base, lr=0.1, rank=2, kind="svd", scale=1.0)
    (after,) = walk(optimizer, 1, 2)
    basis = optimizer.state[param]["basis"]
    inside = basis.T @ basis
    torch.testing.assert_close(after, before - 0.1 * (before + stream(1, param)) @ inside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "adam"}, "base"),
        ({"base": torch.optim.LBFGS}, "LBFGS"),
        ({"base": lambda params, lr: None}, "base"),
        ({"kind": "columns"}, "kind"),
        ({"rank": 0}, "rank"),
        ({"scale": -1.0}, "scale"),
        ({"update_gap": 0}, "update_gap"),
        ({"proj_opt": "lion"}, "proj_opt"),
        ({"proj_reg": -1.0}, "proj_reg"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnlineSubspace([start((3, 2))], **options)


def test_state_of_another_base_is_refused() -> None:
    saved = OnlineSubspace([start((3, 2))], "lion").state_dict()
    with pytest.raises(InputError, match="lion"):
        OnlineSubspace([start((3, 2))], "adamw").load_state_dict(saved)


def test_a_refused_group_leaves_no_trace() -> None:
    optimizer = OnlineSubspace([start((3, 2))])
    with pytest.raises(InputError, match="rank"):
        optimizer.add_param_group({"params": [start((4, 2))], "rank": 0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [start((4, 2))], "rank": None})
    assert all(torch.isfinite(param).all() for param in walk(optimizer, 1, 3))
