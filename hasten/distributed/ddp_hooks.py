"""Communication hooks for `DistributedDataParallel`: compression that acts on gradients only.

model = DistributedDataParallel(network)
model.register_comm_hook(TernGradState(), terngrad_hook)
"""

# Annotations stay objects here: DistributedDataParallel compares the hook's with its own classes.
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from hasten.core import check
from hasten.distributed.compressors import Ternary
from hasten.numerics import keys


class TernGradState:
    """What `terngrad_hook` keeps between steps.

    Args:
        group: process group, the default one if not given.
        clip_sigma: clamp every tensor of the gradient to this many standard deviations; 0 for no clipping.
        skip: parameters whose gradients travel in full precision, e.g. those of the classifier.
        seed: source of the randomness; ranks may share it.

    Attributes:
        bytes_sent: bytes that this rank handed to the collectives so far.
    """

    def __init__(
        self, group: Any = None, clip_sigma: float = 2.5, skip: Iterable[nn.Parameter] = (), seed: int = 0
    ) -> None:
        self.group = group
        self.clip_sigma = float(check.nonnegative("clip_sigma", clip_sigma))
        self.skip = {id(parameter) for parameter in skip}
        self.key = keys.key(seed)
        self.step = 0
        self.bytes_sent = 0


def terngrad_hook(state: TernGradState, bucket: dist.GradBucket) -> Future[Tensor]:  # pyright: ignore
    """Average a bucket of gradients over the ranks as ternary numbers (TernGrad, Wen et al., 2017, arXiv 1705.07878).

    Per tensor of the bucket: clamp, agree on the largest scale (all-reduce), send 2 bits per entry (all-gather), and
    average the integers. Unbiased for the clamped gradients; every rank reads the same numbers. Cost O(d n) to read.
    """
    group = state.group if state.group is not None else dist.group.WORLD
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    buffer = bucket.buffer()
    sizes = tuple(gradient.numel() for gradient in bucket.gradients())
    raw = tuple(place for place, parameter in enumerate(bucket.parameters()) if id(parameter) in state.skip)
    codec = Ternary(state.clip_sigma, sizes, raw)
    scale = codec.scales(buffer)
    dist.all_reduce(scale, dist.ReduceOp.MAX, group=group)
    key = keys.fold(keys.fold(keys.fold(state.key, state.step), bucket.index()), rank).to(buffer.device)
    message, _ = codec.compress(buffer, {"scale": scale}, key)
    mine = message.to_tensor()
    received = mine.new_empty(world, mine.shape[1])
    state.bytes_sent += mine.nbytes + scale.nbytes
    state.step += bucket.is_last()

    def read(_: Future[Any]) -> Tensor:
        return buffer.copy_(message.from_tensor(received).dense().mean(0))

    work = dist.all_gather(list(received.unsqueeze(1).unbind(0)), mine, group=group, async_op=True)
    assert work is not None
    return work.get_future().then(read)
