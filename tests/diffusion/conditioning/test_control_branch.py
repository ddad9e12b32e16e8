"""ControlNeXt: cross normalisation, the branch, injection and its absence of traces, training, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import (
    CFG,
    ControlNeXt,
    CrossNorm,
    Denoiser,
    FlowMatching,
    LightControl,
    ZeroConv,
    sample,
)
from hasten.problems.networks.dit import TinyDiT


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net() -> TinyDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = TinyDiT(width=16, depth=2, heads=2, classes=3)
        for layer in (made.final.out, made.final.modulation, *(block.modulation for block in made.blocks)):
            nn.init.normal_(layer.weight, std=0.2)  # type: ignore[arg-type]
    return made.requires_grad_(False)


def branch(channels: int = 16, **options: Any) -> LightControl:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LightControl(1, 8, out_channels=channels, **options)


CONTROL = draw(4, 1, 4, 4, seed=2)


def test_normalisation_is_the_published_one() -> None:
    """The four lines of the authors' U-Net, after the pooling."""
    sample_, control = 3.0 * draw(2, 5, 4, 4) + 1.0, 0.2 * draw(2, 5, 4, 4, seed=1) - 2.0
    std, mean = control.std((1, 2, 3), keepdim=True), control.mean((1, 2, 3), keepdim=True)
    joined = (control - mean) * (sample_.std((1, 2, 3), keepdim=True) / (std + 1e-12))
    joined = joined + sample_.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(CrossNorm(0.6)(sample_, control), sample_ + joined * 0.6, atol=1e-6, rtol=1e-6)


def test_normalised_control_has_the_moments_of_the_features() -> None:
    hidden = draw(3, 5, 4, 4).double() * torch.tensor([0.1, 1.0, 30.0]).reshape(-1, 1, 1, 1) + 7.0
    joined = CrossNorm().normalised(hidden, 1e-3 * draw(3, 5, 4, 4, seed=1).double() + 0.1).flatten(1)
    torch.testing.assert_close(joined.mean(1), hidden.flatten(1).mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined.std(1), hidden.flatten(1).std(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.3])
def test_constant_controls_are_not_blown_up(level: float) -> None:
    hidden = draw(2, 3, 4, 4)
    control = torch.full((2, 3, 4, 4), level, requires_grad=True)
    out = CrossNorm()(hidden, control)
    torch.testing.assert_close(out, hidden + hidden.mean((1, 2, 3), keepdim=True))
    out.sum().backward()
    assert control.grad is not None
    assert bool(control.grad.isfinite().all())


def test_zero_convolution_begins_with_nothing() -> None:
    hidden, control = draw(2, 5, 4, 4), draw(2, 3, 4, 4, seed=1)
    made = ZeroConv(3, 5)
    assert torch.equal(made(hidden, control), hidden)
    made(hidden, control).square().sum().backward()
    assert float(made.project.weight.grad.abs().sum()) > 0.0  # type: ignore[union-attr]


def test_both_kinds_have_equally_many_parameters() -> None:
    def count(*parts: nn.Module) -> int:
        return sum(value.numel() for part in parts for value in part.parameters())

    assert count(branch(64), CrossNorm()) == count(LightControl(1, 8), ZeroConv(8, 64))


@pytest.mark.parametrize(("halvings", "side"), [(0, 16), (1, 8), (2, 4)])
def test_branch_halves_the_size(halvings: int, side: int) -> None:
    assert branch(halvings=halvings)(draw(2, 1, 16, 16)).shape == (2, 16, side, side)


@pytest.mark.parametrize("place", ["embed", "blocks.0", "blocks.1.attn"])
def test_control_goes_in_at_one_place_and_leaves_no_trace(net, place: str) -> None:
    x, t, labels = draw(4, 1, 8, 8), torch.full((4,), 0.5), torch.tensor([0, 1, 2, 3])
    free = net(x, t, labels)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    encoder = branch()
    controlled = ControlNeXt(net, place, encoder)
    out = controlled(x, t, labels, control=CONTROL).detach()
    assert float((out - free).abs().max()) > 1e-3
    assert torch.equal(net(x, t, labels), free)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())
    silent = ControlNeXt(net, place, LightControl(1, 8), ZeroConv(8, 16))
    assert torch.equal(silent(x, t, labels, control=CONTROL), free)
    for row in range(4):
        alone = controlled(x[row : row + 1], t[:1], labels[row : row + 1], control=CONTROL[row : row + 1])
        torch.testing.assert_close(alone, out[row : row + 1], atol=1e-5, rtol=1e-4)


def test_hook_is_removed_after_an_error(net) -> None:
    controlled = ControlNeXt(net, "blocks.0", branch(5))
    with pytest.raises(InputError, match=r"16 channels of blocks\.0, got 5"):
        controlled(draw(4, 1, 8, 8), torch.full((4,), 0.5), control=CONTROL)
    assert not any(part._forward_hooks for part in net.modules())


def test_tokens_meet_the_pixels_they_stand_for(net) -> None:
    """A control at one place of the map changes that token alone, right after the injection."""

    class Spot(nn.Module):
        def forward(self, control: Tensor) -> Tensor:
            return control.repeat(1, 16, 1, 1)

    class Add(nn.Module):
        def forward(self, hidden: Tensor, control: Tensor) -> Tensor:
            return hidden + control

    seen: list[Tensor] = []
    handle = net.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    control = torch.zeros(1, 1, 8, 8)
    control[..., 2:4, 6:8] = 1.0
    controlled = ControlNeXt(net, "blocks.0", Spot(), Add())
    for level in (0.0, 1.0):
        controlled(draw(1, 1, 8, 8), torch.tensor([0.5]), control=level * control)
    handle.remove()
    changed = (seen[1] - seen[0])[0].mean(1)
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 3]
    assert float(changed[7]) == pytest.approx(1.0, rel=1e-5)


def test_modules_that_return_tuples(net) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = self.Inner()

        class Inner(nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, str]:
                return x, "kept"

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return self.part(x)

    out, kept = ControlNeXt(Pair(), "part", branch(3))(draw(4, 3, 4, 4), control=CONTROL)
    assert kept == "kept"
    assert not torch.equal(out, draw(4, 3, 4, 4))


def test_samples_under_a_control(net) -> None:
    controlled = ControlNeXt(net, "blocks.0", branch()).requires_grad_(False)
    denoiser = Denoiser(controlled.given(CONTROL), FlowMatching(), "velocity", null=3).given(torch.tensor([0, 1, 2, 0]))
    options: dict[str, Any] = {"noise": draw(4, 1, 8, 8), "sampler": "ddim", "steps": 3}
    out = sample(denoiser, guidance=CFG(2.0), **options)
    other = sample(
        Denoiser(controlled.given(-CONTROL), FlowMatching(), "velocity", null=3).given(torch.tensor([0, 1, 2, 0])),
        guidance=CFG(2.0),
        **options,
    )
    assert out.shape == (4, 1, 8, 8)
    assert float((out - other).abs().max()) > 1e-3
    assert controlled.control is None


def test_training_reaches_the_branch_and_the_chosen_part_only(net) -> None:
    controlled = ControlNeXt(net, "blocks.0", branch())
    parameters = controlled.trainable("blocks.1.attn", "blocks.1.attn.qkv")
    own = sum(1 for _ in controlled.parameters())
    assert len(parameters) == own + 4
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    controlled(draw(4, 1, 8, 8), torch.full((4,), 0.5), control=CONTROL).square().mean().backward()
    assert all(value.grad is not None for value in parameters)
    optimizer.step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("blocks.1.attn.") for key in changed)
    assert all(key.startswith(("branch.", "inject.")) for key in controlled.state_dict())


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("no module 'middle'", lambda net: ControlNeXt(net, "middle", branch())),
        ("torch module", lambda net: ControlNeXt(lambda x: x, "middle", branch())),
        ("scale", lambda net: CrossNorm(float("inf"))),
        ("eps", lambda net: CrossNorm(eps=0.0)),
        ("halvings", lambda net: LightControl(1, 8, blocks=1, halvings=2)),
        ("width", lambda net: LightControl(1, 0)),
        ("no control is given", lambda net: ControlNeXt(net, "embed", branch())(draw(4, 1, 8, 8), torch.ones(4))),
        (
            "control must have shape",
            lambda net: ControlNeXt(net, "embed", branch())(draw(4, 1, 8, 8), torch.ones(4), control=CONTROL[:3]),
        ),
        (
            "square number",
            lambda net: ControlNeXt(net, "time", branch())(draw(4, 1, 8, 8), torch.ones(4), control=CONTROL),
        ),
    ],
)
def test_refusals(net, match: str, call: Any) -> None:
    with pytest.raises(InputError, match=match):
        call(net)
