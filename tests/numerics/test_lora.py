"""Low-rank adapters: nothing at the start, the written-out correction, merging, and no trace after detaching."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.numerics.lora import LoRA, named_layers


class Net(nn.Module):
    """Convolutions of every sort, then blocks with `attn` and `mlp`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(4, 8, (3, 1), padding="same", dilation=(2, 1), groups=2)
        block = {"attn": nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8)), "mlp": nn.Linear(8, 8)}
        self.blocks = nn.ModuleList(nn.ModuleDict(copy.deepcopy(block)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(self.stem(x)).flatten(2).mT
        for block in self.blocks:
            h = h + block["mlp"](block["attn"](h).tanh())  # type: ignore[index]
        return h


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def trained(net: nn.Module, *args: object, **options: object) -> LoRA:
    """Adapters that are no longer zero."""
    lora = LoRA(net, *args, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return lora


def test_changes_nothing_at_the_start(net: Net, x: Tensor) -> None:
    before = net(x)
    assert torch.equal(LoRA(net, rank=2).attach()._module[0](x), before)


def test_acts_like_the_corrected_weights(net: Net, x: Tensor) -> None:
    other = copy.deepcopy(net)
    lora = trained(net, None, 2, 6.0, scale=0.5).attach()
    for name, layer in other.named_modules():
        if name.endswith("grouped"):
            a, b = (lora.get_parameter(f"adapters.grouped.{part}.weight") for part in ("down", "up"))
            correction = torch.cat([b[4 * j : 4 * j + 4] * a[[j]] for j in range(2)])
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            key = "adapters." + name.replace(".", "/")
            a, b = (lora.get_parameter(f"{key}.{part}.weight") for part in ("down", "up"))
            correction = torch.einsum("or,r...->o...", b.flatten(1), a)
        else:
            continue
        layer.weight.data += 0.5 * (6.0 / 2) * correction.data  # type: ignore[union-attr, operator]
    torch.testing.assert_close(net(x), other(x), rtol=1e-10, atol=1e-10)


def test_merging_changes_no_output_and_is_undone_bit_for_bit(net: Net, x: Tensor) -> None:
    weights = copy.deepcopy(net.state_dict())
    plain = net(x)
    lora = trained(net, rank=2).attach()
    acting = net(x)
    assert not torch.allclose(acting, plain)
    lora.merge()
    torch.testing.assert_close(net(x), acting, rtol=1e-10, atol=1e-10)
    lora.scale = 0.25
    faded = net(x)
    lora.unmerge()
    torch.testing.assert_close(net(x), faded, rtol=1e-10, atol=1e-10)
    lora.scale = 0.0
    assert torch.equal(net(x), plain)
    lora.merge().detach()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_detaching_leaves_no_trace(net: Net, x: Tensor) -> None:
    net.stem.bias.requires_grad_(False)  # type: ignore[union-attr]
    flags = [parameter.requires_grad for parameter in net.parameters()]
    names, plain = list(net.state_dict()), net(x)
    lora = trained(net, "attn", 2)
    for _ in range(2):
        with lora:
            assert list(net.state_dict()) == names
            assert not any(parameter.requires_grad for parameter in net.parameters())
            assert not torch.equal(net(x), plain)
        assert torch.equal(net(x), plain)
        assert [parameter.requires_grad for parameter in net.parameters()] == flags
        assert not any(layer._forward_hooks for layer in net.modules())


def test_only_adapters_are_trained(net: Net, x: Tensor) -> None:
    lora = LoRA(net, "attn", rank=3, generator=torch.Generator().manual_seed(0)).attach()
    assert sum(parameter.numel() for parameter in lora.parameters()) == 2 * 3 * (8 + 24) * 2
    weights = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.Adam(lora.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(net(x).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.9 * losses[0].item()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    again = LoRA(net, "attn", rank=3)
    again.load_state_dict(lora.state_dict())
    output = net(x)
    lora.detach()
    assert torch.equal(again.attach()._module[0](x), output)


def test_two_sets_add_up(net: Net, x: Tensor) -> None:
    one, two = trained(net.blocks[0], "mlp", 2), trained(net.blocks[0], "mlp", 4)  # type: ignore[arg-type]
    h = torch.randn(5, 8, dtype=torch.float64)
    layer = net.blocks[0]["mlp"]  # type: ignore[index]
    plain = layer(h)
    with one:
        first = layer(h) - plain
        with two:
            both = layer(h) - plain
    with two:
        second = layer(h) - plain
    torch.testing.assert_close(both, first + second)


def test_layers_are_found_by_parts_of_their_names(net: Net) -> None:
    attention = ["blocks.0.attn.0", "blocks.0.attn.1", "blocks.1.attn.0", "blocks.1.attn.1"]
    assert list(named_layers(net, "attn")) == attention
    assert list(named_layers(net, ["blocks.1", "stem"])) == ["stem", *attention[2:], "blocks.1.mlp"]
    assert len(named_layers(net)) == 8
    assert list(named_layers(nn.Linear(2, 2))) == [""]


def test_generator_makes_the_same_adapters(net: Net) -> None:
    one, two = (LoRA(net, rank=2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_refusals(net: Net) -> None:
    for match, make in {
        "no Linear or Conv2d layer is called 'atn'.*'stem'": lambda: LoRA(net, "atn"),
        "multiple of its 2 groups, got 3": lambda: LoRA(net, rank=3),
        "rank must be an integer of at least 1": lambda: LoRA(net, rank=0),
        "alpha": lambda: LoRA(net, rank=2, alpha=-1.0),
        "scale": lambda: LoRA(net, rank=2, scale=float("nan")),
        "attach": lambda: LoRA(net, rank=2).merge(),
        "no Linear": lambda: LoRA(nn.ReLU()),
        "MultiheadAttention": lambda: LoRA(nn.MultiheadAttention(8, 2), "out_proj"),
    }.items():
        with pytest.raises(InputError, match=match):
            make()
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="share one weight"), LoRA(tied, rank=2) as lora:
        lora.merge()
