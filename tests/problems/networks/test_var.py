"""The next-scale model: codes that explain the image, scales drawn as they were trained, equal draws; it learns."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.problems.networks.var import Memory, TinyVAR, large_digits, train_digits


def model() -> TinyVAR:
    torch.manual_seed(0)
    return TinyVAR(width=16, depth=2, heads=2)


def test_codes_explain_the_image_scale_by_scale() -> None:
    made, maps = model(), large_digits()[0]
    made.quantiser.learn(maps, rounds=3)
    codes, known = made.quantiser.encode(maps)
    known.append(known[-1] + made.quantiser.enlarge(4, codes[-1]))
    errors = [float((so_far - maps).square().mean()) for so_far in known]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * errors[0]
    assert [code.shape[1] for code in codes] == [1, 4, 16, 64, 256]


def test_a_scale_sees_the_smaller_ones_as_in_training() -> None:
    made = model()
    images, labels = large_digits()
    maps = images[:4]
    made.quantiser.learn(maps, rounds=1)
    _, known = made.quantiser.encode(maps)
    memories, parts = [Memory() for _ in made.blocks], []
    for index, so_far in enumerate(known):
        x = made.tokens(index, so_far, labels[:4])
        for block, memory in zip(made.blocks, memories):
            x = block(x, memory)
        parts.append(made.final(x))
    logits, codes = made(images[:4], labels[:4])
    torch.testing.assert_close(torch.cat(parts, 1), logits, rtol=1e-4, atol=1e-5)
    assert codes.shape == logits.shape[:2] == (4, 341)


def test_equal_generators_give_equal_images() -> None:
    made, labels = model(), torch.arange(5)

    def once(seed: int, **options: float) -> torch.Tensor:
        return made.generate(labels, torch.Generator().manual_seed(seed), **options)

    assert once(0).shape == (5, 1, 16, 16)
    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))
    assert torch.equal(once(0, temperature=0.0), once(1, temperature=0.0))
    with pytest.raises(InputError, match="temperature"):
        once(0, temperature=-1.0)


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    train_digits(model(), lambda step, steps, loss: losses.append(loss), steps=40, batch=8)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2


def test_refuses_bad_sizes() -> None:
    with pytest.raises(InputError, match="scales must grow from 1"):
        TinyVAR(scales=(1, 4, 2, 8))
    with pytest.raises(InputError, match="scales must grow from 1"):
        TinyVAR(size=8)
    with pytest.raises(InputError, match="multiple of heads"):
        TinyVAR(width=10, heads=4)
