"""D-Adaptation against the authors' package, and the estimate where it must not go wrong."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from recorded_stream import digests, parameters, set_gradients
from torch import nn

from hasten.core.errors import InputError
from hasten.optim.step_size.dadapt import DAdaptAdaGrad, DAdaptAdam, DAdaptSGD

ALL = pytest.mark.parametrize("rule", [DAdaptSGD, DAdaptAdam, DAdaptAdaGrad])

# Digests after 1, 2, 10, 100 steps of facebookresearch/dadaptation at commit c984980, float64.
GOLDEN: list[tuple[type, dict[str, Any], list[list[float]]]] = [
    (
        DAdaptSGD,
        {},
        [
            [-0.6274433481146626, -13.769000198005239],
            [-0.6274433866783217, -13.768997762482588],
            [-0.6274434195365033, -13.76900259338534],
            [-0.6274434528302797, -13.769001811923992],
        ],
    ),
    (
        DAdaptSGD,
        {"momentum": 0.9, "weight_decay": 0.1, "d0": 1e-3},
        [
            [-0.6274582020861563, -13.76881784753439],
            [-0.6274733476615798, -13.768359929757594],
            [-0.6272062551206294, -13.765442621169067],
            [-0.6242236330450277, -13.701035332732943],
        ],
    ),
    (
        DAdaptSGD,
        {"growth_rate": 1.1, "d0": 0.1},
        [
            [-0.6447044219962026, -13.634343309717192],
            [-0.64856078790931, -13.390791044889596],
            [-0.6489452990108305, -13.742676120845445],
            [-0.6516757695404058, -13.678587352571402],
        ],
    ),
    (
        DAdaptAdam,
        {"use_bias_correction": True, "weight_decay": 0.1, "d0": 1e-3},
        [
            [-0.6284431747915951, -13.77300153184478],
            [-0.6283697962665028, -13.762969029733844],
            [-0.61622379484765, -13.717479116810141],
            [-0.6258702599969361, -12.953504137858063],
        ],
    ),
    (
        DAdaptAdam,
        {"weight_decay": 0.1, "decouple": True, "growth_rate": 1.02, "betas": (0.8, 0.99), "d0": 1e-2},
        [
            [-0.6468157261532261, -13.835232454931948],
            [-0.6446495833430823, -13.583347176469266],
            [-0.5746401251001381, -12.868863079416162],
            [-0.5164514018829839, -11.524922143543302],
        ],
    ),
    (
        DAdaptAdaGrad,
        {"momentum": 0.9, "weight_decay": 0.1, "d0": 1e-3},
        [
            [-0.6275431749436159, -13.769401529657086],
            [-0.6275121891825893, -13.768024222543863],
            [-0.6271650373628528, -13.762369391945672],
            [-0.627511236238331, -13.756260687326268],
        ],
    ),
]


@pytest.mark.parametrize(("rule", "hyper", "expected"), GOLDEN)
def test_trajectory_of_the_package(rule: type, hyper: dict[str, Any], expected: list[list[float]]):
    params = parameters()
    found = digests(params, rule(params, **hyper).step)
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-12)


def descend(rule: type, distance: float, length: int, **hyper: Any) -> tuple[float, float]:
    """Least `|x - x*|` and last `d`, over the distance."""
    x = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    solution = torch.tensor([0.5, -0.5, 0.5, 0.5], dtype=torch.float64) * distance
    optimizer, best = rule([x], **hyper), distance
    for _ in range(length):
        away = x.detach() - solution
        best = min(best, float(away.norm()))
        x.grad = away / away.norm()
        optimizer.step()
    return best / distance, optimizer.d / distance


@ALL
@pytest.mark.parametrize("distance", [0.01, 100.0])
def test_finds_the_scale_of_the_problem(rule: type, distance: float):
    nearest, d = descend(rule, distance, 300)
    assert nearest < 0.6
    assert 0.1 < d < 2.0


@ALL
def test_d_grows_no_faster_than_allowed(rule: type):
    x = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = rule([x], growth_rate=1.05)
    seen = [optimizer.d]
    for _ in range(80):
        x.grad = torch.ones(4, dtype=torch.float64)
        optimizer.step()
        seen.append(optimizer.d)
    ratios = [after / before for before, after in itertools.pairwise(seen)]
    assert all(1.0 <= ratio <= 1.05 * (1 + 1e-12) for ratio in ratios)
    assert max(ratios) > 1.04


@ALL
def test_zero_first_gradients_are_left_out(rule: type):
    late, prompt = parameters(), parameters()
    a, b = rule(late), rule(prompt)
    for param in late:
        param.grad = torch.zeros_like(param)
    a.step()
    a.step()
    assert all(torch.equal(x, y) for x, y in zip(late, parameters()))
    for t in range(1, 9):
        set_gradients(late, t)
        set_gradients(prompt, t)
        a.step()
        b.step()
    assert all(torch.equal(x, y) for x, y in zip(late, prompt))


@ALL
def test_d_is_one_number_for_all_groups_and_a_group_with_lr_0_rests(rule: type):
    joint, split = parameters(), parameters()
    a, b = rule(joint), rule([{"params": split[:1]}, {"params": split[1:]}])
    resting = nn.Parameter(torch.ones(3, dtype=torch.float64))
    b.add_param_group({"params": [resting], "lr": 0.0})
    for t in range(1, 30):
        set_gradients(joint, t)
        set_gradients(split, t)
        resting.grad = torch.full((3,), 100.0, dtype=torch.float64)
        a.step()
        b.step()
    for x, y in zip(joint, split):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    assert torch.equal(resting, torch.ones(3, dtype=torch.float64))
    assert a.d == pytest.approx(b.d, rel=1e-12)


@ALL
def test_several_learning_rates_are_refused(rule: type):
    groups = [{"params": [param], "lr": 0.5 * index} for index, param in enumerate(parameters())]
    with pytest.raises(InputError, match=r"lr must be the same.*0\.5, 1\.0"):
        rule(groups)
    params = parameters()
    optimizer = rule([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.param_groups[1]["lr"] = 0.3
    set_gradients(params, 1)
    with pytest.raises(InputError, match="lr must be the same"):
        optimizer.step()


@ALL
def test_d_survives_a_round_trip(rule: type):
    params = parameters()
    optimizer = rule([{"params": params[:1]}, {"params": params[1:]}], d0=1e-3)
    for t in range(1, 12):
        set_gradients(params, t)
        optimizer.step()
    twins = [nn.Parameter(param.detach().clone()) for param in params]
    again = rule([{"params": twins[:1]}, {"params": twins[1:]}])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(12, 30):
        for group in (params, twins):
            set_gradients(group, t)
        optimizer.step()
        again.step()
    assert optimizer.d == again.d
    assert all(torch.equal(x, y) for x, y in zip(params, twins))


@ALL
@pytest.mark.parametrize("hyper", [{"d0": 0.0}, {"growth_rate": 0.9}, {"growth_rate": math.nan}, {"lr": -1.0}])
def test_bad_arguments_are_named(rule: type, hyper: dict[str, float]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        rule(parameters(), **hyper)
    with pytest.raises(InputError, match="momentum"):
        DAdaptSGD(parameters(), momentum=1.0)
