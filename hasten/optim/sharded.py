"""Parameters that are spread over processes (`DTensor`, as FSDP2 and tensor parallelism make them).

An elementwise rule works on the local part of each. A whole-tensor rule gathers gradient and parameter, takes the same
step in every process, and keeps its part of the result; its state is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Any) -> bool:
    """Whether the tensor is a `DTensor`."""
    # Asked before the import: a process that has no DTensor need not load the distributed package.
    if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__ or not torch.distributed.is_available():  # type: ignore[attr-defined]
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor) or isinstance(getattr(tensor, "data", None), DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of this process, sharing its memory; any other tensor as it is."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(part: Tensor, owner: Tensor) -> DTensor:
    """A local part as a `DTensor` that is spread as `owner` is; shares its memory."""
    from torch.distributed.tensor import DTensor

    assert isinstance(owner, DTensor)
    return DTensor.from_local(
        part, owner.device_mesh, owner.placements, run_check=False, shape=owner.shape, stride=owner.stride()
    )


@torch.no_grad()
def keep_own_part(owner: Tensor, whole: Tensor) -> None:
    """Write this process's part of `whole` into `owner`."""
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(owner, DTensor)
    mesh = owner.device_mesh
    spread = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    owner.to_local().copy_(spread.redistribute(mesh, owner.placements).to_local())


def total(part: Tensor, owner: Tensor) -> Tensor:
    """Sum of a number over the processes among which `owner` is spread."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    assert isinstance(owner, DTensor)
    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in owner.placements]
    return DTensor.from_local(part, owner.device_mesh, kinds, run_check=False).full_tensor()


def agree(good: bool, owners: Sequence[Tensor]) -> bool:
    """Whether it is so in all processes; all must ask."""
    owner = next((owner for owner in owners if is_sharded(owner)), None)
    if owner is None:
        return good
    bad = torch.tensor(0.0 if good else 1.0, device=owner.device)
    return bool(total(bad, owner) == 0)
