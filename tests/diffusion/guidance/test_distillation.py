"""Adapter guidance distillation: the untrained start, the teacher's states, training, both adapters, no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import AGD, CFG, Denoiser, FlowMatching, GuidedDenoiser, VPLinear, sample
from hasten.diffusion.guidance.adapters import AdditiveAdapter, BottleneckAdapter, CrossAttentionAdapter
from hasten.problems.networks.dit import TinyDiT

LABELS = torch.tensor([3, 0, 9, 3, 7, 5])


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with all its parameters drawn, so that nothing in it is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return net


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(lively(TinyDiT(width=16, depth=2, heads=2)), FlowMatching(), "velocity", null=10)


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def made(denoiser: Denoiser, **options: Any) -> AGD:
    """Adapters with drawn weights."""
    agd = AGD(denoiser, hidden=8, **options)
    lively(agd, 2)
    return agd


@pytest.mark.parametrize("adapter", ["bottleneck", "cross-attention", "additive"])
def test_begins_at_the_conditional_prediction(denoiser: Denoiser, noise: Tensor, adapter: str) -> None:
    plain, agd = denoiser.given(LABELS), AGD(denoiser, adapter=adapter, classes=10)
    assert agd.names == ("blocks.0.attn", "blocks.1.attn")
    assert torch.equal(agd.denoiser(4.0).given(LABELS).eps(noise, 0.6), plain.eps(noise, 0.6))
    other = made(denoiser, adapter=adapter, classes=10).denoiser(4.0).given(LABELS)
    assert not torch.allclose(other.eps(noise, 0.6), plain.eps(noise, 0.6))


def test_teacher_walks_guided_chains(denoiser: Denoiser, noise: Tensor) -> None:
    w = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    states = AGD(denoiser).record(noise, LABELS, w, steps=3)
    assert len(states) == 18
    for row in (0, 3, 5):
        alone, label = noise[row : row + 1], LABELS[row : row + 1]
        chain = [alone]
        options: dict[str, Any] = {"sampler": "ddim", "steps": 3, "guidance": CFG(float(w[row]))}
        sample(denoiser.given(label), noise=alone, callback=lambda state, c=chain: c.append(state.x), **options)
        part = states[torch.tensor([row, row + 6, row + 12])]
        torch.testing.assert_close(part.x, torch.cat(chain[:3]), rtol=1e-4, atol=1e-4)
        assert part.w.tolist() == [float(w[row])] * 3
        assert part.cond.tolist() == [int(label)] * 3
        guided = GuidedDenoiser(denoiser.given(part.cond), CFG(float(w[row]))).velocity(part.x, part.t)
        torch.testing.assert_close(part.output, guided, rtol=1e-4, atol=1e-4)


def test_trains_adapters_alone_and_halves_the_evaluations(denoiser: Denoiser, noise: Tensor) -> None:
    torch.manual_seed(0)
    net: Any = denoiser.fn
    net.embed.requires_grad_(False)
    weights, flags = copy.deepcopy(net.state_dict()), [parameter.requires_grad for parameter in net.parameters()]
    agd = AGD(denoiser, classes=10, w_range=(1.0, 4.0))
    states = agd.record(noise, LABELS, steps=4, generator=torch.Generator().manual_seed(0))

    def error() -> float:
        with torch.no_grad():
            return float((agd.predict(states) - states.output).square().mean())

    before = error()
    agd.fit(states, iterations=60, batch=24, lr=1e-2, generator=torch.Generator().manual_seed(0))
    assert error() < 0.5 * before
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert not any(layer._forward_hooks for layer in net.modules())
    costs: dict[str, int] = {}
    out = sample(agd.denoiser(3.0).given(LABELS), noise=noise, sampler="ddim", steps=5, costs=costs)
    assert costs["nfe"] == 5
    sample(denoiser.given(LABELS), noise=noise, sampler="ddim", steps=5, guidance=CFG(3.0), costs=costs)
    assert costs["nfe"] == 10
    again = AGD(denoiser, classes=10, w_range=(1.0, 4.0))
    again.load_state_dict(agd.state_dict())
    assert torch.equal(sample(again.denoiser(3.0).given(LABELS), noise=noise, sampler="ddim", steps=5), out)


def test_samples_do_not_see_each_other(denoiser: Denoiser, noise: Tensor) -> None:
    agd = made(denoiser)
    w = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    together = agd.denoiser(w).given(LABELS).eps(noise, 0.5)
    for row in range(6):
        alone = agd.denoiser(float(w[row])).given(LABELS[row : row + 1]).eps(noise[row : row + 1], 0.5)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)
    stacked = agd.denoiser(w).given(LABELS).eps(torch.cat([noise, noise]), torch.full((12,), 0.5))
    torch.testing.assert_close(stacked, torch.cat([together, together]), rtol=1e-4, atol=1e-5)


def test_rest_outside_of_their_times(denoiser: Denoiser, noise: Tensor) -> None:
    agd = made(denoiser, t_range=(0.2, 0.7))
    adapted, plain = agd.denoiser(3.0).given(LABELS), denoiser.given(LABELS)
    assert torch.equal(adapted.eps(noise, 0.8), plain.eps(noise, 0.8))
    assert not torch.equal(adapted.eps(noise, 0.5), plain.eps(noise, 0.5))
    late = agd.teacher.at(noise, torch.full((6,), 0.8), LABELS, torch.full((6,), 3.0))
    torch.testing.assert_close(late.output, plain.velocity(noise, 0.8), rtol=1e-4, atol=1e-5)


def test_adapters_are_the_written_out_maps() -> None:
    h, c = torch.randn(2, 5, 6), torch.randn(2, 3, 4)
    cross: Any = lively(CrossAttentionAdapter(6, 4))
    scores = (h @ cross.query.weight.T) @ (c @ cross.key.weight.T).mT / 4**0.5
    expected = cross.up(scores.softmax(-1) @ (c @ cross.value.weight.T))
    torch.testing.assert_close(cross(h, c), expected)
    narrow: Any = lively(BottleneckAdapter(6, 4))
    torch.testing.assert_close(narrow(h, c), narrow.up((narrow.down(h) + c.sum(1)[:, None]).relu()))
    additive: Any = lively(AdditiveAdapter(6, 4))
    torch.testing.assert_close(additive(h, c), additive.up(additive.layers(c.sum(1)))[:, None].expand(2, 5, 6))


def test_serves_a_transformer_of_diffusers(noise: Tensor) -> None:
    diffusers = pytest.importorskip("diffusers")
    options = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "num_layers": 2, "sample_size": 8}
    net = lively(diffusers.DiTTransformer2DModel(**options, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1))

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return net(x, (t * 1000).long(), class_labels=cond).sample

    denoiser = Denoiser(network, VPLinear(), null=10)
    net.eval()
    agd = AGD(denoiser, module=net)
    assert agd.names == ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")
    plain = denoiser.given(LABELS).eps(noise, 0.5)
    assert torch.equal(agd.denoiser(2.0).given(LABELS).eps(noise, 0.5), plain)
    agd.fit(agd.record(noise, LABELS, steps=2), iterations=2, batch=4)
    assert sample(agd.denoiser(2.0).given(LABELS), noise=noise, sampler="ddim", steps=2).shape == noise.shape
    assert not torch.equal(agd.denoiser(2.0).given(LABELS).eps(noise, 0.5), plain)
    assert torch.equal(denoiser.given(LABELS).eps(noise, 0.5), plain)
    assert not any(layer._forward_hooks for layer in net.modules())


class Tuples(nn.Module):
    """Attention that returns a tuple; fails at t = 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        found, weights = self.attn(x, x, x)
        if float(t[0]) == 0.5:
            raise RuntimeError("broken")
        return found + weights.sum()


def test_takes_layers_that_return_tuples_and_lets_go_after_a_failure() -> None:
    denoiser = Denoiser(lively(Tuples()), VPLinear()).given(torch.zeros(2))
    agd, x = made(denoiser), torch.randn(2, 3, 4)
    assert not torch.allclose(agd.denoiser(2.0).eps(x, 0.4), denoiser.eps(x, 0.4))
    with pytest.raises(RuntimeError, match="broken"):
        agd.denoiser(2.0).eps(x, 0.5)
    assert not any(layer._forward_hooks for layer in denoiser.fn.modules())  # type: ignore[union-attr]


def test_refusals(denoiser: Denoiser, noise: Tensor) -> None:
    fn = Denoiser(lambda x, t, cond: x, FlowMatching())
    agd = AGD(denoiser, classes=10)
    for match, make in {
        "give module=": lambda: AGD(fn),
        "called 'attention'": lambda: AGD(denoiser, "attention"),
        "width of what 'blocks.0.norm1' returns is not known": lambda: AGD(denoiser, "norm1"),
        "even": lambda: AGD(denoiser, hidden=7),
        "adapter must be one of": lambda: AGD(denoiser, adapter="lora"),
        "w_range": lambda: AGD(denoiser, w_range=(3.0, 3.0)),
        r"w must be a real number in \[1, 6\], got 7": lambda: agd.denoiser(7.0),
        "give denoiser.given": lambda: agd.denoiser(2.0).eps(noise, 0.5),
        "Denoiser, got int": lambda: AGD(3),  # type: ignore[arg-type]
        "iterations": lambda: agd.fit(agd.record(noise, LABELS, steps=1), iterations=0),
        "must return tokens": lambda: AGD(denoiser, "modulation").denoiser(2.0).eps(noise, 0.5),
    }.items():
        with pytest.raises(InputError, match=match):
            make()
