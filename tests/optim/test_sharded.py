"""Parameters spread over processes; here over one, the examples do it over two."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import hasten
from hasten.core.errors import InputError
from hasten.optim import NonFiniteGradientError
from hasten.optim.sharded import agree, full, is_sharded, local


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    store = dist.FileStore(os.fspath(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def pair(mesh: DeviceMesh) -> tuple[nn.Parameter, nn.Parameter]:
    value = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(value.clone()), nn.Parameter(distribute_tensor(value.clone(), mesh, [Shard(0)]))


@pytest.mark.parametrize("name", ["adopt", "adabelief", "came", "adafactor"])
def test_steps_are_those_of_a_plain_parameter(mesh: DeviceMesh, name: str) -> None:
    plain, spread = pair(mesh)
    left, right = hasten.optim.make(name, [plain]), hasten.optim.make(name, [spread])
    for step in range(4):
        grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        plain.grad, spread.grad = grad, distribute_tensor(grad, mesh, [Shard(0)])
        left.step()
        right.step()
    assert is_sharded(spread)
    torch.testing.assert_close(full(spread), plain.detach())
    saved = right.state_dict()
    spread_state = [isinstance(value, DTensor) for key, value in saved["state"][0].items() if key != "step"]
    assert set(spread_state) == {name in ("adopt", "adabelief")}
    other = hasten.optim.make(name, [pair(mesh)[1]])
    other.load_state_dict(saved)
    for key, value in right.state[spread].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(next(iter(other.state.values()))[key]))


def test_non_finite_gradients_are_seen(mesh: DeviceMesh) -> None:
    _, spread = pair(mesh)
    optimizer = hasten.optim.make("adopt", [("weight", spread)])
    spread.grad = distribute_tensor(torch.full((6, 4), float("nan")), mesh, [Shard(0)])
    with pytest.raises(NonFiniteGradientError, match="'weight'"):
        optimizer.step()


def test_rules_that_need_the_whole_group_say_so(mesh: DeviceMesh) -> None:
    _, spread = pair(mesh)
    with pytest.raises(InputError, match="spread over processes"):
        hasten.optim.make("dog", [spread])


def test_plain_tensors_are_left_as_they_are() -> None:
    plain = torch.ones(3)
    assert not is_sharded(plain)
    assert local(plain) is plain
    assert full(plain) is plain
    assert agree(False, [plain]) is False
