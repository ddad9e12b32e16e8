"""Claims of the 8-bit optimizers (Dettmers et al. 2022): small errors, isolated outliers, Adam's steps."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.claims.optim.digits import ADAM, ratio, state_ratio, steps
from hasten.core.claim import claim
from hasten.optim.memory.blockwise import dequantize_blockwise, quantize_blockwise
from hasten.optim.memory.quantized import Adam8bit

METHOD = "optim.adam-8bit"


def _stored(x: Tensor, block: int) -> Tensor:
    return dequantize_blockwise(*quantize_blockwise(x, block), block)


def _linear(x: Tensor, block: int) -> Tensor:
    """Evenly spaced codes from -127 to 127 in each block."""
    rows = x.view(-1, block)
    scale = rows.abs().amax(1, keepdim=True) / 127
    return ((rows / scale).round() * scale).view_as(x)


def _normal(seed: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _spread(seed: int) -> Tensor:
    """Values of both signs, evenly spread over the logarithms of five decades."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (-5 * torch.rand(2**18, generator=generator))
    return torch.where(torch.rand(2**18, generator=generator) < 0.5, -size, size)


def _relative(x: Tensor, stored: Tensor) -> float:
    return float(((stored - x).abs() / x.abs()).mean())


@claim(
    method=METHOD,
    paper_id=409,
    baseline="the tensor in 32 bits",
    statement="Stored normal values are off by 1.2 % of their mean size or less.",
    quantity="mean error over mean size",
    threshold=0.012,
    note="Blocks of 256. Evenly spaced codes do better on plain normal values, 0.7 %.",
)
def error_on_normal_values(seed: int) -> float:
    """A million normal values."""
    x = _normal(seed, 2**20)
    return float((_stored(x, 256) - x).abs().mean() / x.abs().mean())


@claim(
    method=METHOD,
    paper_id=409,
    baseline="the tensor in 32 bits",
    statement="Values spread over five decades are off by 10 % of themselves or less, on average.",
    quantity="mean relative error",
    threshold=0.1,
)
def error_over_five_decades(seed: int) -> float:
    """A quarter of a million values, blocks of 256."""
    x = _spread(seed)
    return _relative(x, _stored(x, 256))


@claim(
    method=METHOD,
    paper_id=409,
    baseline="evenly spaced 8-bit codes in the same blocks",
    statement="On values spread over five decades the error is 0.2 times that of evenly spaced codes or less.",
    quantity="mean relative error, ratio",
    threshold=0.2,
)
def error_against_linear_codes(seed: int) -> float:
    """A quarter of a million values, blocks of 256."""
    x = _spread(seed)
    return _relative(x, _stored(x, 256)) / _relative(x, _linear(x, 256))


@claim(
    method=METHOD,
    paper_id=409,
    baseline="one block for the whole tensor",
    statement="With an outlier of 1000 among 8192 normal values, blocks have a fifth of one scale's error or less.",
    quantity="mean error outside the outlier's block, ratio",
    threshold=0.2,
)
def outlier_against_one_scale(seed: int) -> float:
    """The outlier lies in the first of 32 blocks."""
    x = _normal(seed, 8192)
    x[0] = 1000.0
    errors = [(_stored(x, block) - x).abs()[256:].mean() for block in (256, 8192)]
    return float(errors[0] / errors[1])


@claim(
    method=METHOD,
    paper_id=409,
    baseline="the same tensor without the outlier",
    statement="An outlier changes nothing outside its block.",
    quantity="largest change of a stored value",
    threshold=0.0,
)
def outlier_stays_in_its_block(seed: int) -> float:
    """One value of 1000 in the first of 32 blocks of normal values."""
    x = _normal(seed, 8192)
    before = _stored(x, 256)
    x[0] = 1000.0
    return float((_stored(x, 256) - before)[256:].abs().max())


@claim(
    method=METHOD,
    paper_id=409,
    baseline=ADAM,
    statement="Adam in 8 bits needs 1.1 times the steps of Adam or fewer on digits, at the same learning rate.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.1,
    note="All state in 8 bits, learning rate 3e-3. The paper's claim is of GLUE, WMT, ImageNet and a language model.",
)
def steps_at_equal_rate(seed: int) -> float:
    """Digits MLP."""
    return ratio(steps(METHOD, seed, lr=3e-3, min_size=0), steps(ADAM, seed, lr=3e-3))


@claim(
    method=METHOD,
    paper_id=409,
    baseline=ADAM,
    statement="Its state takes 0.27 times the bytes of Adam's.",
    quantity="bytes of state, ratio to Adam",
    threshold=0.27,
    seeds=(0,),
    note="On the 64x64 layers of digits MLP.",
)
def memory(seed: int) -> float:
    """The matrices of digits MLP."""
    return state_ratio(lambda parameters: Adam8bit(parameters, min_size=0))
