"""Late constraint: the rule by hand, its limits, counting, training of the aligner, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.diffusion import (
    CFG,
    ConditionAligner,
    Denoiser,
    FlowMatching,
    GuidedDenoiser,
    LateConstraint,
    VPLinear,
    fit_aligner,
    sample,
)
from hasten.diffusion.conditioning.features import Taps, like, submodule, to_map
from hasten.problems.networks.dit import TinyDiT


class Net(nn.Module):
    """`eps = a conv(x)`, with a stronger answer under a condition, whose middle is heard."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Conv2d(1, 4, 3, padding=1, dtype=torch.float64)
        self.out = nn.Conv2d(4, 1, 1, dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        answer = self.out(torch.tanh(self.middle(x)))
        return answer if cond is None else answer * (1.0 + cond.reshape(-1, 1, 1, 1))


class Reader(nn.Module):
    """Reads the mean of the channels, whatever the time."""

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        return features.mean(1, keepdim=True)


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


TARGET = torch.zeros(3, 1, 4, 4, dtype=torch.float64) + 0.5


def slope_of(net: Net, x: Tensor) -> Tensor:
    """By hand: gradient of each sample's mean square error, features resized to the target's size."""
    total = []
    for i in range(len(x)):
        at = x[i : i + 1].clone().requires_grad_(True)
        heard = F.interpolate(net.middle(at), size=(4, 4), mode="bilinear", align_corners=False).mean(1)
        total += torch.autograd.grad((heard - 0.5).square().mean(), at)
    return torch.cat(total)


def test_rule_by_hand(net, x) -> None:
    """`eps + scale g |eps - x|/|g|`, per sample, and the clean data that belong to it."""
    schedule, g = VPLinear(), slope_of(net, x)
    found = GuidedDenoiser(Denoiser(net, schedule), LateConstraint(Reader(), TARGET, ["middle"], scale=0.7))
    x0, eps = found.split(x, 0.8)
    free = net(x, torch.zeros(3))
    size = [float((free[i] - x[i]).norm() / g[i].norm()) for i in range(3)]
    expected = torch.stack([free[i] + 0.7 * size[i] * g[i] for i in range(3)])
    torch.testing.assert_close(eps, expected)
    torch.testing.assert_close(x0, (x - schedule.sigma(0.8) * expected) / schedule.alpha(0.8))
    raw = LateConstraint(Reader(), TARGET, ["middle"], scale=0.7, rescale=False)
    torch.testing.assert_close(GuidedDenoiser(Denoiser(net, schedule), raw).eps(x, 0.8), free + 0.7 * g)


def test_adds_to_classifier_free_guidance(net, x) -> None:
    denoiser = Denoiser(net, VPLinear()).given(torch.full((3,), 0.5, dtype=torch.float64))
    rule = LateConstraint(Reader(), TARGET, ["middle"], scale=0.7, w=3.0)
    g, given = slope_of(net, x), 1.5 * net(x, torch.zeros(3))
    strength = 0.7 * (given - x).flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1)
    expected = GuidedDenoiser(denoiser, CFG(3.0)).eps(x, 0.8) + strength.reshape(-1, 1, 1, 1) * g
    torch.testing.assert_close(GuidedDenoiser(denoiser, rule).eps(x, 0.8), expected)
    with pytest.raises(InputError, match="conditional model"):
        GuidedDenoiser(Denoiser(net, VPLinear()), rule)


def test_loss_falls_and_truncation_frees(net, x) -> None:
    def draw(guidance: Any) -> Tensor:
        return sample(Denoiser(net, VPLinear()), noise=x, sampler="ddim", steps=10, guidance=guidance)

    def loss(samples: Tensor) -> float:
        return float((F.avg_pool2d(net.middle(samples), 2).mean(1) - 0.5).square().mean())

    free = draw(None)
    guided = draw(LateConstraint(Reader(), TARGET, ["middle"], scale=0.5, truncation=0.2))
    assert loss(guided) < 0.7 * loss(free)
    assert loss(draw(LateConstraint(Reader(), TARGET, ["middle"], scale=-0.5))) > loss(free)
    for off in ({"truncation": 1.0}, {"scale": 0.0}):
        torch.testing.assert_close(draw(LateConstraint(Reader(), TARGET, ["middle"], **off)), free)


def test_rows_at_different_times_are_constrained_one_by_one(net, x) -> None:
    rule = LateConstraint(Reader(), TARGET, ["middle"], truncation=0.5)
    denoiser = Denoiser(net, VPLinear())
    eps = GuidedDenoiser(denoiser, rule).eps(x, torch.tensor([0.9, 0.3, 0.6], dtype=torch.float64))
    torch.testing.assert_close(eps[1], denoiser.eps(x, 0.3)[1])
    torch.testing.assert_close(eps[0], GuidedDenoiser(denoiser, rule).eps(x, 0.9)[0])
    one = LateConstraint(Reader(), TARGET[:1], ["middle"])
    torch.testing.assert_close(GuidedDenoiser(denoiser, one).eps(x, 0.9)[0], eps[0])


def test_backward_passes_are_counted(net, x) -> None:
    costs: dict[str, int] = {}
    rule = LateConstraint(Reader(), TARGET, ["middle"], truncation=0.5)
    options: dict[str, Any] = {"noise": x, "sampler": "ddim", "grid": (0.9, 0.7, 0.4, 0.1), "costs": costs}
    sample(Denoiser(net, VPLinear()), guidance=rule, **options)
    assert costs["nfe"] == 3 + 2
    given = Denoiser(net, VPLinear()).given(torch.ones(3, dtype=torch.float64))
    sample(given, guidance=LateConstraint(Reader(), TARGET, ["middle"], truncation=0.0, w=2.0), **options)
    assert costs["nfe"] == 3 * 3
    assert not net._modules["middle"]._forward_hooks  # type: ignore[union-attr]


def test_aligner_learns_maps_from_a_transformers_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    spots = torch.rand(64, 1, 4, 4, generator=generator).round()
    pictures = F.interpolate(spots, scale_factor=2.0) * 2.0 - 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TinyDiT(width=16, depth=2, heads=2)
        nn.init.normal_(net.blocks[0].modulation.weight, std=0.1)
        denoiser = Denoiser(net, FlowMatching(), "velocity")
        before = {key: value.clone() for key, value in net.state_dict().items()}
        aligner = fit_aligner(denoiser, ("embed", "blocks.1"), pictures, spots, steps=70, generator=generator)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not aligner.training
    t = torch.full((64,), 0.2)
    x = 0.8 * pictures + 0.2 * torch.randn(pictures.shape, generator=generator)
    with torch.no_grad(), Taps(net, ("embed", "blocks.1")) as taps:
        net(x, t)
    error = float((aligner(taps.maps((4, 4)), t) - spots).square().mean())
    assert error < 0.4 * float(spots.var())


def test_aligner_is_the_published_network() -> None:
    """Seven convolutions, 1x1, 1x1, four 3x3, 1x1; its channels are those of the released code at width 64."""
    made = ConditionAligner(2048, 4)
    convolutions = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    assert [part.kernel_size[0] for part in convolutions] == [1, 1, 3, 3, 3, 3, 1]
    assert [part.out_channels for part in convolutions] == [1024, 512, 512, 256, 128, 64, 4]
    assert len([part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]) == 6
    early, late = (ConditionAligner(8, width=2).eval()(torch.ones(1, 8, 4, 4), torch.tensor([t])) for t in (0.9, 0.1))
    assert early.shape == (1, 1, 4, 4)
    assert not torch.equal(early, late)


def test_features_as_maps() -> None:
    tokens = torch.arange(24.0).reshape(1, 4, 6)
    maps = to_map(tokens)
    assert maps.shape == (1, 6, 2, 2)
    assert maps[0, :, 1, 0].tolist() == tokens[0, 2].tolist()
    torch.testing.assert_close(like(tokens, maps), tokens)
    with pytest.raises(InputError, match="square number"):
        to_map(torch.zeros(1, 5, 6))


def test_taps_leave_no_trace(net, x) -> None:
    with pytest.raises(RuntimeError), Taps(net, ["middle"]):
        raise RuntimeError
    assert not net.middle._forward_hooks
    with Taps(net, ["middle", "out"]) as taps:
        net.middle(x)
        with pytest.raises(InputError, match="only 1 of 2"):
            taps.maps((4, 4))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("truncation", {"truncation": 1.5}),
        ("scale", {"scale": float("nan")}),
        ("target must be maps", {"target": torch.zeros(3)}),
        ("no module 'end'", {"blocks": ["end"]}),
        ("non-empty sequence", {"blocks": "middle"}),
        ("target must hold maps", {"target": torch.zeros(2, 1, 4, 4)}),
        ("target must hold maps", {"target": torch.zeros(3, 2, 4, 4)}),
    ],
)
def test_refusals(net, x, match: str, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"aligner": Reader(), "target": TARGET, "blocks": ["middle"], **options}
    with pytest.raises(InputError, match=match):
        sample(Denoiser(net, VPLinear()), noise=x, guidance=LateConstraint(**given))


def test_networks_without_names_are_refused(net, x) -> None:
    wrapped = Denoiser(lambda x, t: net(x, t), VPLinear())
    with pytest.raises(InputError, match="torch module"):
        sample(wrapped, noise=x, guidance=LateConstraint(Reader(), TARGET, ["middle"]))
    inside = LateConstraint(Reader(), TARGET, ["middle"], network=net)
    plain = LateConstraint(Reader(), TARGET, ["middle"])
    options: dict[str, Any] = {"noise": x, "sampler": "ddim", "steps": 4}
    torch.testing.assert_close(
        sample(wrapped, guidance=inside, **options), sample(Denoiser(net, VPLinear()), guidance=plain, **options)
    )
    with pytest.raises(InputError, match="no module ''"):
        submodule(net, "")


def test_training_at_the_door(net) -> None:
    denoiser, pictures = Denoiser(net, VPLinear()), torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    for match, options in (
        ("one per image", {"maps": torch.zeros(3, 1, 4, 4)}),
        ("steps", {"maps": pictures, "steps": 0}),
        ("batch", {"maps": pictures, "batch": 1}),
    ):
        with pytest.raises(InputError, match=match):
            fit_aligner(denoiser, ["middle"], pictures, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="even"):
        ConditionAligner(8, time_channels=3)
