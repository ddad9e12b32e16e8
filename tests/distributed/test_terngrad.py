"""TernGrad: the ternary compressor, the integers on the way down, the method."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

import hasten
from hasten.core.errors import InputError
from hasten.distributed import DataParallelSGD, Ternary, TernGrad
from hasten.distributed.compressors import TernarySum
from hasten.distributed.compressors.quantise import ternarise
from hasten.numerics import keys

SIZES = (12, 1, 7)


def gradients(n: int = 4) -> torch.Tensor:
    return keys.normal(keys.fold(keys.key(0), torch.arange(n)), sum(SIZES), torch.float64)


def test_unbiased_for_the_clamped_gradient() -> None:
    codec = Ternary(clip_sigma=1.0, sizes=SIZES)
    g = gradients(1)[0]
    draws = 20_000
    read = codec(g.expand(draws, -1), keys.fold(keys.key(1), torch.arange(draws)))
    clamped = codec.clip(g)
    assert not torch.equal(clamped, g)
    assert clamped[12] == g[12]
    error = (read.mean(0) - clamped).abs()
    assert bool((error <= 4 * read.std(0) / draws**0.5 + 1e-12).all())
    assert float((read.mean(0) - g).abs().max()) > 0.1


def test_clamps_each_tensor_by_its_own_deviation() -> None:
    g = gradients(1)[0]
    clamped = Ternary(clip_sigma=1.0, sizes=SIZES).clip(g)
    for part, kept in zip(g.split(SIZES), clamped.split(SIZES)):
        if len(part) > 1:
            bound = (part - part.mean()).square().mean().sqrt()
            assert torch.allclose(kept, part.clamp(-bound, bound))


def test_agrees_with_the_published_scaler_on_given_noise() -> None:
    # Scale c sigma, clamp, sign times (noise < |g|/scale): worked by hand for g = (-2, -1, 0, 1, 2), sigma = sqrt(2),
    # c = 1: clamped (-1.41421, -1, 0, 1, 1.41421), |g|/s = (1, 0.70711, 0, 0.70711, 1).
    g = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    codec = Ternary(clip_sigma=1.0, scale="sigma")
    assert float(codec.scales(g)) == pytest.approx(2**0.5)
    noise = torch.tensor([0.9, 0.70, 0.0001, 0.71, 0.99], dtype=torch.float64)
    assert ternarise(codec.clip(g), codec.scales(g), noise).tolist() == [-1, -1, 0, 0, 1]


def test_the_way_down_carries_integers() -> None:
    g = gradients()
    codec = Ternary(2.5, SIZES)
    many = keys.fold(keys.key(2), torch.arange(4))
    scale = codec.scales(g).amax(0)
    up = vmap(lambda v, key: codec.compress(v, {"scale": scale}, key)[0])(g, many)
    down = TernarySum(codec, 4).add(up)
    sums = down.parts["sums"] - 4
    assert int(sums.abs().max()) <= 4
    assert torch.allclose(down.dense(), up.dense().mean(0))
    assert down.nbytes == (19 * 4 + 7) // 8 + 8
    own = vmap(lambda v, key: codec.compress(v, {}, key)[0])(g, many)
    assert not torch.allclose(TernarySum(codec, 4).add(own).dense(), own.dense().mean(0))


def test_bytes_of_a_round() -> None:
    problem = hasten.problem("digits-federated", clients=4, width=8, partition="iid")
    instance = problem.build(0)
    method = TernGrad()
    method.step(instance, method.init(instance, torch.Generator()))
    d, tensors = len(instance.x0), 4
    assert instance.up_bytes == 4 * ((2 * d + 7) // 8 + 4 * tensors + 4 * tensors)
    assert instance.down_bytes == 4 * ((4 * d + 7) // 8 + 4 * tensors)
    assert instance.calls["gradient"] == 4


def test_skipping_every_tensor_is_plain_sgd() -> None:
    problem = hasten.problem("digits-federated", clients=4, width=8)
    names = tuple(problem.build(0).tensors)
    plain = hasten.run(DataParallelSGD(lr=0.1, momentum=0.5), problem, budget=5, every=1)
    whole = hasten.run(TernGrad(lr=0.1, momentum=0.5, skip=names), problem, budget=5, every=1)
    assert whole.metric == pytest.approx(plain.metric, rel=1e-5)
    last = TernGrad(skip=("last",)).start
    wire = hasten.distributed.SimEngine().open(problem.build(0), keys.key(0), None)
    assert last(wire, torch.zeros(1))[0]["codec"].raw == (2, 3)


def test_own_scales_cost_a_dense_answer() -> None:
    problem = hasten.problem("digits-federated", clients=4, width=8, partition="iid")
    trace = hasten.run(TernGrad(lr=0.1, shared_scale=False), problem, budget=20)
    assert trace.final < trace.metric[0]
    instance = problem.build(0)
    method = TernGrad(shared_scale=False)
    method.step(instance, method.init(instance, torch.Generator()))
    assert instance.down_bytes == 4 * 4 * len(instance.x0)


def test_unknown_tensor() -> None:
    instance = hasten.problem("digits-federated", width=8).build(0)
    with pytest.raises(InputError, match=r"skip names \['head'\].*0\.weight"):
        TernGrad(skip=("head",)).init(instance, torch.Generator())
