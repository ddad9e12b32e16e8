"""State in 8 bits: the map, the codes, and training with it, on our rules and on PyTorch's optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core.errors import InputError
from hasten.optim import (
    ADOPT,
    CAME,
    Adam8bit,
    AdamW8bit,
    AdEMAMix,
    DoG,
    GrokfastEMA,
    Lion8bit,
    Momentum8bit,
    QuantizedState,
    StableEmbedding,
    compose,
    dequantize_blockwise,
    dynamic_map,
    quantize_blockwise,
)
from hasten.optim.adaptive.adam import Adam, AdamW
from hasten.optim.memory.blockwise import decode_fused, encode_fused

SHAPES = [(300, 200), (40, 256), (3, 5), (513,), (70001,)]
MAKE: dict[str, Callable[..., Optimizer]] = {
    "torch": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "adam": lambda params: Adam(params, lr=1e-2),
    "adopt": lambda params: ADOPT(params, lr=1e-2),
    "ademamix": lambda params: AdEMAMix(params, lr=1e-2),
    "came": lambda params: CAME(params, lr=1e-3),
}

each = pytest.mark.parametrize("name", MAKE)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def train(optimizer: Optimizer, params: list[nn.Parameter], first: int = 0, last: int = 4) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def stored(optimizer: Optimizer, name: str = "exp_avg") -> Tensor:
    return next(iter(optimizer.state.values()))[name]


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def plain_map(signed: bool) -> Tensor:
    """The map as the paper builds it: midpoints of evenly spaced bins in each decade."""
    found = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2 ** (i + (not signed)) + 1, dtype=torch.float64)
        middles = (bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (i - 6)
        found += [middles, -middles] if signed else [middles]
    return torch.cat(found).sort().values


def nearest(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    values = plain_map(signed)
    edges = (values[1:] + values[:-1]) / 2
    return torch.bucketize(x.double(), edges, right=True), edges


def inputs(signed: bool) -> Tensor:
    """All values, the floats around all edges between them, and values of all sizes."""
    _, edges = nearest(torch.zeros(1), signed)
    found = [dynamic_map(signed), edges.float(), torch.tensor([0.0, 1.0])]
    for towards in (-2.0, 2.0):
        found.append(torch.nextafter(edges.float(), torch.tensor(towards)))
    spread = 10 ** (-8 * torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    x = torch.cat([*found, spread, *([-spread, -torch.ones(1)] if signed else [])])
    return x[x.abs() <= 1]


@pytest.mark.parametrize("signed", [True, False])
def test_the_map(signed: bool) -> None:
    values = dynamic_map(signed)
    torch.testing.assert_close(values.double(), plain_map(signed), rtol=1e-7, atol=0.0)
    assert len(values) == 256
    assert (values.diff() > 0).all()
    assert (values[0], values[-1]) == (pytest.approx(-0.9929687 if signed else 0.0), 1.0)
    assert values[128 if signed else 1].item() == pytest.approx(5.5e-7 if signed else 3.25e-7, rel=1e-6)
    assert len(dynamic_map(signed, bits=4)) == 16


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_nearest_values(signed: bool) -> None:
    x = inputs(signed)
    codes, absmax = quantize_blockwise(x, block=len(x), signed=signed)
    assert absmax.item() == 1.0
    wanted, edges = nearest(x, signed)
    off = codes != wanted
    assert torch.isin(x[off].double(), edges.float().double()).all(), "only ties may go either way"
    assert off.sum() < 100
    back = dequantize_blockwise(codes, absmax, block=len(x), signed=signed)
    assert torch.equal(back, dynamic_map(signed)[codes.long()])


@pytest.mark.parametrize("signed", [True, False])
def test_compiled_arithmetic_gives_the_same_codes_and_values(signed: bool) -> None:
    x = inputs(signed)
    codes = encode_fused(x[None], torch.ones(1), signed)[0].long()
    wanted, edges = nearest(x, signed)
    off = codes != wanted
    spaces = dynamic_map(signed).double().diff()
    place = torch.minimum(codes, wanted)[off]
    assert ((codes - wanted).abs() <= 1).all()
    assert ((x[off].double() - edges[place]).abs() / spaces[place]).max() < 5e-5
    every = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(
        decode_fused(every[None], torch.ones(1), signed)[0], dynamic_map(signed), rtol=3e-7, atol=0.0
    )


@pytest.mark.parametrize("shape", [(), (1,), (255,), (256,), (257,), (3, 5, 7), (0,)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, absmax = quantize_blockwise(x, block=64)
    assert codes.shape == x.shape
    assert (dequantize_blockwise(codes, absmax, block=64) - x).abs().sum() <= 0.03 * x.abs().sum()
    assert torch.equal(dequantize_blockwise(*quantize_blockwise(torch.zeros(shape))), torch.zeros(shape))


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="signed=False"):
        quantize_blockwise(torch.tensor([-1.0]), signed=False)
    with pytest.raises(InputError, match=r"int64"):
        quantize_blockwise(torch.ones(3, dtype=torch.int64))
    with pytest.raises(InputError, match="absmax"):
        dequantize_blockwise(torch.zeros(300, dtype=torch.uint8), torch.ones(1))
    with pytest.raises(InputError, match="codes"):
        dequantize_blockwise(torch.zeros(3), torch.ones(1))
    with pytest.raises(InputError, match="block"):
        QuantizedState(block=0)
    with pytest.raises(InputError, match="names"):
        QuantizedState(names="exp_avg")
    with pytest.raises(InputError, match="DoG"):
        QuantizedState(DoG(parameters()))
    with pytest.raises(InputError, match="already"):
        QuantizedState(Adam8bit(parameters()))


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_is_that_of_pytorch(decoupled: bool) -> None:
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
    train((AdamW if decoupled else Adam)(ours, **options), ours, last=20)
    train((torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, **options), theirs, last=20)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


def test_momentum_is_that_of_pytorch() -> None:
    ours, theirs = parameters(), parameters()
    train(Momentum8bit(ours, lr=0.1, weight_decay=0.1, min_size=10**9), ours, last=8)
    train(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.1), theirs, last=8)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@each
def test_stays_near_training_with_state_in_32_bits(name: str) -> None:
    params, plain = parameters(), parameters()
    optimizer = MAKE[name](params)
    QuantizedState(optimizer, min_size=100)
    train(optimizer, params, last=6)
    train(MAKE[name](plain), plain, last=6)
    assert stored(optimizer).dtype == torch.uint8
    for param, other, start in zip(params, plain, parameters()):
        off = torch.linalg.vector_norm(param - other) / torch.linalg.vector_norm(other - start)
        assert off < (0.12 if param.numel() >= 100 else 1e-6)


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_steps_are_those_of_eager_ones(dtype: torch.dtype) -> None:
    ended = []
    for backend in ("eager", "compile"):
        params = parameters(dtype)
        train(Adam8bit(params, lr=1e-2, backend=backend, min_size=100), params, last=5)
        ended.append(params)
    for left, right in zip(*ended):
        # An entry on the edge between two codes may take either.
        assert ((left - right).abs() > 1e-6).float().mean() < 1e-2
        torch.testing.assert_close(left, right, rtol=0.0, atol=2e-2)


@each
@pytest.mark.parametrize("way", ["file", "copy", "pickle"])
def test_codes_are_saved_and_training_continues_bit_for_bit(name: str, way: str) -> None:
    params = parameters()
    optimizer = MAKE[name](params)
    storage = QuantizedState(optimizer, min_size=100)
    train(optimizer, params)
    if way == "file":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        assert saved["state"][0]["exp_avg"].dtype == torch.uint8
        others = [nn.Parameter(param.detach().clone()) for param in params]
        other = MAKE[name](others)
        QuantizedState(other, min_size=100)
        other.load_state_dict(saved)
    else:
        group = (params, optimizer, storage)
        others, other, _ = copy.deepcopy(group) if way == "copy" else pickle.loads(pickle.dumps(group))
    assert torch.equal(stored(other), stored(optimizer))
    train(other, others, 4, 7)
    train(optimizer, params, 4, 7)
    assert same(params, others)
    assert torch.equal(stored(other), stored(optimizer))


@each
def test_state_in_32_bits_can_be_loaded_and_is_encoded(name: str) -> None:
    params = parameters()
    plain = MAKE[name](params)
    train(plain, params)
    saved = plain.state_dict()
    optimizer = MAKE[name](params)
    QuantizedState(optimizer, min_size=100)
    optimizer.load_state_dict(saved)
    train(optimizer, params, 4, 5)
    assert stored(optimizer).dtype == torch.uint8


def test_state_in_8_bits_needs_the_same_storage() -> None:
    params = parameters()
    optimizer = Adam8bit(params)
    train(optimizer, params)
    saved = optimizer.state_dict()
    with pytest.raises(InputError, match="8 bits"):
        Adam(params).load_state_dict(saved)
    for other in (Adam8bit(params, block=128), torch.optim.Adam(params)):
        if not isinstance(other, Adam8bit):
            QuantizedState(other, block=128)
        with pytest.raises(InputError, match="block"):
            other.load_state_dict(saved)


@each
def test_removed_storage_leaves_state_in_32_bits(name: str) -> None:
    params = parameters()
    optimizer = MAKE[name](params)
    storage = QuantizedState(optimizer, min_size=100)
    train(optimizer, params)
    storage.remove()
    storage.remove()
    train(optimizer, params, 4, 6)
    assert stored(optimizer).dtype == torch.float32
    assert "exp_avg_absmax" not in next(iter(optimizer.state.values()))


def test_only_the_named_state_is_stored() -> None:
    params = parameters()
    optimizer = Adam(params)
    QuantizedState(optimizer, names=("exp_avg",))
    train(optimizer, params)
    assert stored(optimizer).dtype == torch.uint8
    assert stored(optimizer, "exp_avg_sq").dtype == torch.float32
    assert optimizer.state[params[3]]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("make", [Adam8bit, AdamW8bit, Momentum8bit, Lion8bit])
def test_memory_and_later_parameters(make: type[Optimizer]) -> None:
    params = parameters()
    optimizer = make(params[:2], min_size=0)  # type: ignore[call-arg]
    train(optimizer, params)
    optimizer.add_param_group({"params": params[2:]})
    train(optimizer, params, 4, 6)
    held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    entries = sum(value.numel() for value in held if value.dtype == torch.uint8)
    assert sum(value.nbytes for value in held) <= 0.27 * 4 * entries


@pytest.mark.parametrize("strided", [False, True])
def test_order_of_memory_does_not_matter(strided: bool) -> None:
    plain = nn.Parameter(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))
    other = nn.Parameter(plain.detach().t().contiguous().t() if strided else plain.detach().clone())
    left, right = Adam8bit([plain]), Adam8bit([other])
    for step in range(3):
        plain.grad = torch.full_like(plain, 1.0 + step)
        other.grad = plain.grad.clone()
        left.step()
        right.step()
    right.load_state_dict(left.state_dict())
    plain.grad = torch.ones_like(plain)
    other.grad = plain.grad.clone()
    left.step()
    right.step()
    torch.testing.assert_close(plain, other)


@pytest.mark.parametrize("name", ["torch", "adam"])
def test_composes_with_filters(name: str) -> None:
    params = parameters()
    optimizer = compose(MAKE[name](params), GrokfastEMA(), QuantizedState())
    train(optimizer, params)
    assert stored(optimizer).dtype == torch.uint8
    others = [nn.Parameter(param.detach().clone()) for param in params]
    other = compose(MAKE[name](others), GrokfastEMA(), QuantizedState())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, 4, 6)
    train(other, others, 4, 6)
    assert same(params, others)


def test_stable_embedding() -> None:
    torch.manual_seed(0)
    table = StableEmbedding(50, 16, padding_idx=0)
    assert table.weight.abs().max() <= (6 / 66) ** 0.5
    assert torch.equal(table.weight[0], torch.zeros(16))
    out = table(torch.arange(1, 50))
    torch.testing.assert_close(out.mean(-1), torch.zeros(49), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(out.std(-1, unbiased=False), torch.ones(49), atol=1e-2, rtol=0.0)


@pytest.mark.parametrize("name", ["torch", "adam"])
def test_a_small_second_moment_does_not_blow_up_the_step(name: str) -> None:
    """Beside a gradient of 1, the square of 1e-5 is below half of the smallest value; the momentum is not."""
    x = nn.Parameter(torch.zeros(256))
    optimizer = MAKE[name]([x])
    QuantizedState(optimizer, min_size=0)
    for grad in (1e-5, 0.0, 0.0):
        x.grad = torch.full_like(x, grad)
        x.grad[0] = 1.0
        optimizer.step()
    assert x.abs().max() <= 0.031
