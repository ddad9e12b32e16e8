"""Compressors keep what they declare: unbiasedness or contraction, and bytes to the last one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from hasten.core.errors import InputError
from hasten.distributed import QSGD, Compose, Compressor, Identity, LowRank, PermK, RandK, Sign, Ternary, TopK
from hasten.numerics import keys

DRAWS = 10_000
D = 24
ALL: list[Compressor] = [
    Identity(),
    Identity(wire=torch.float32),
    TopK(5),
    TopK(0.5, wire=torch.float32),
    RandK(5),
    RandK(0.25, shared_seed=False),
    RandK(5, scaled=False),
    PermK(4),
    PermK(5),
    Sign(),
    QSGD(3),
    Ternary(0.0),
    Ternary(2.5),
    Ternary(2.5, sizes=(10, 1, 13), raw=(0,)),
    Ternary(2.5, scale="sigma"),
    LowRank(2, warm=False),
    LowRank(2),
    Compose(QSGD(4), TopK(6)),
    Compose(QSGD(4), RandK(6)),
    Compose(QSGD(4), RandK(6, scaled=False)),
]
IDS = [str(codec) for codec in ALL]


def vectors() -> list[Tensor]:
    """A spread-out, a spiked and a constant vector."""
    plain = keys.normal(keys.key(5), D, torch.float64)
    return [plain, plain.pow(5), torch.ones(D, dtype=torch.float64)]


@pytest.mark.parametrize("codec", ALL, ids=IDS)
def test_declared_bias_and_error(codec: Compressor) -> None:
    for v in vectors():
        many = keys.fold(keys.key(1), torch.arange(DRAWS))
        state = codec.init(D)
        read = vmap(lambda key: codec.compress(v, state, key)[0].dense())(many)  # noqa: B023
        square = (read - v).square().sum(-1)
        whole = float(v.square().sum())
        error, slack = float(square.mean()), 4 * float(square.std()) / DRAWS**0.5 + 1e-12 * whole
        if codec.unbiased:
            # Rare events: a dozen of the largest size more or less than expected must not count as bias.
            rare = 12 * float(read.abs().amax()) / DRAWS if error > 1e-9 * whole else 0.0
            spread = read.std(0) / DRAWS**0.5
            assert bool(((read.mean(0) - v).abs() <= 4.5 * spread + rare + 1e-7 * whole**0.5).all())
        delta, omega = codec.delta(D), codec.omega(D)
        if delta is not None:
            assert error <= (1 - delta) * whole + slack
        if omega is not None:
            assert error <= omega * whole + slack
        assert codec.unbiased == (omega is not None)


@pytest.mark.parametrize("codec", ALL, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [D, 25, 37])
def test_bytes_are_what_is_serialised_and_survive_the_trip(codec: Compressor, dtype: torch.dtype, d: int) -> None:
    if isinstance(codec, Ternary) and codec.sizes:
        codec = Ternary(codec.clip_sigma, (10, 1, d - 11), codec.raw)
    v = keys.normal(keys.key(2), 3 * d, dtype).view(3, d)
    for row, key in zip(v, keys.fold(keys.key(3), torch.arange(3))):
        sent, _ = codec.compress(row, codec.init(d, 2), key)
        data = sent.to_bytes()
        assert len(data) == sent.nbytes
        empty = codec.compress(torch.zeros_like(row), codec.init(d, 0), keys.key(9))[0]
        read = empty.from_bytes(data).dense()
        assert read.dtype == dtype
        assert torch.equal(read, sent.dense())


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        (Identity(), 4 * 100),
        (TopK(7), 7 * (4 + 4)),
        (RandK(7), 7 * 4 + 8),
        (RandK(7, shared_seed=False), 7 * (4 + 4)),
        (PermK(8), 4 * 13 + 8),
        (Ternary(), 100 // 4 + 4),
        (Ternary(sizes=(60, 1, 39)), 25 + 2 * 4 + 4),
        (Sign(), 13 + 4),
        (QSGD(4), 50 + 4),
        (LowRank(2), 4 * 2 * (10 + 10)),
        (Compose(QSGD(1), TopK(8)), 2 + 4 + 8 * 4),
    ],
)
def test_wire_sizes(codec: Compressor, nbytes: int) -> None:
    v = torch.randn(100)
    assert codec.compress(v, codec.init(100), keys.key(0))[0].nbytes == nbytes


@pytest.mark.parametrize("codec", ALL, ids=IDS)
def test_stacked_and_mapped_messages_are_those_of_each_alone(codec: Compressor) -> None:
    v = keys.normal(keys.key(2), 3 * D, torch.float64).view(3, D)
    many = keys.fold(keys.key(3), torch.arange(3))
    ranks = torch.arange(3)

    def send(row: Tensor, rank: Tensor, key: Tensor) -> Any:
        return codec.compress(row, codec.init(D, rank), key)[0]

    alone = [send(row, rank, key) for row, rank, key in zip(v, ranks, many)]
    mapped = vmap(send)(v, ranks, many)
    assert mapped.nbytes == sum(message.nbytes for message in alone)
    assert torch.allclose(mapped.dense(), torch.stack([message.dense() for message in alone]), atol=1e-12)
    assert mapped.from_tensor(mapped.to_tensor()).dense().equal(mapped.dense())


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_top_k_is_the_best_choice_of_k_entries(d: int, share: float, seed: int) -> None:
    v = keys.normal(keys.key(seed), d, torch.float64)
    kept = TopK(share)(v)
    k = max(1, round(share * d))
    assert int((kept != 0).sum()) == k
    assert torch.allclose((v - kept).square().sum(), v.square().sort().values[: d - k].sum())


def test_perm_k_of_equal_vectors_is_exact() -> None:
    v = keys.normal(keys.key(0), 23, torch.float64)
    codec = PermK(5)
    read = [codec.compress(v, codec.init(23, rank), keys.key(4))[0].dense() for rank in range(5)]
    assert torch.allclose(torch.stack(read).mean(0), v, atol=1e-14)


def test_low_rank_finds_a_low_rank_matrix_and_stays_warm() -> None:
    v = torch.outer(torch.arange(1.0, 7), torch.arange(2.0, 9)).flatten().double()
    codec = LowRank(1, rows=6)
    assert torch.allclose(codec(v), v)
    flat = keys.normal(keys.key(0), 400, torch.float64)
    codec, state = LowRank(2), LowRank(2).init(400)
    zero, state = codec.compress(torch.zeros_like(flat), state)
    assert not zero.dense().any()
    errors = []
    for _ in range(30):
        message, state = codec.compress(flat, state)
        errors.append(float((message.dense() - flat).norm()))
    best = torch.linalg.svdvals(flat.view(20, 20))[2:].norm()
    assert errors[-1] < errors[0]
    assert errors[-1] == pytest.approx(float(best), rel=1e-2)


@pytest.mark.parametrize("codec", [c for c in ALL if not isinstance(c, (Compose, PermK, RandK))], ids=str)
def test_zero_vectors_stay_zero_and_nan_shows(codec: Compressor) -> None:
    zero = torch.zeros(D, dtype=torch.float64)
    assert torch.equal(codec(zero, keys.key(0)), zero)
    if not isinstance(codec, LowRank):
        bad = torch.ones(D, dtype=torch.float64)
        bad[3] = torch.nan
        assert bool(codec(bad, keys.key(0)).isnan().any())


def test_random_ones_ask_for_a_key() -> None:
    with pytest.raises(InputError, match=r"RandK is random.*keys\.key"):
        RandK(3)(torch.ones(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), r"k \(entries to keep\) must be an integer of at least 1, got 0"),
        (lambda: TopK(1.5), r"fraction of the entries.*got 1\.5"),
        (lambda: RandK(0.0), r"got 0\.0"),
        (lambda: PermK(0), "workers"),
        (lambda: QSGD(0), "levels"),
        (lambda: Ternary(-1.0), "clip_sigma"),
        (lambda: Ternary(0.0, scale="sigma"), "needs clipping"),
        (lambda: Ternary(sizes=(3, 4))(torch.ones(8), keys.key(0)), "add up to the vector's length 8"),
        (lambda: LowRank(0), "rank"),
        (lambda: Compose(Sign(), TopK(3)), "outer must be unbiased"),
        (lambda: Compose(QSGD(), Sign()), "inner must be"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
