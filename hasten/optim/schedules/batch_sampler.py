"""Batches whose size may grow while they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized

import torch
from torch.utils.data import Sampler

from hasten.core import check
from hasten.core.errors import InputError


class AdaptiveBatchSampler(Sampler[list[int]]):
    """Shuffled batches whose size may grow while they are drawn: `DataLoader(dataset, batch_sampler=sampler)`.

        for inputs, labels in loader:
            ...
            if step % interval == 0:
                grads = per_sample_gradients(model, loss, inputs, labels)
                sampler.grow(test.next_batch_size(grads, sampler.batch_size, sampler.b_max))

    The order of an epoch follows from seed and epoch alone, and `state_dict` continues inside an epoch. With worker
    processes a new size reaches the batches that are not yet prefetched.

    Args:
        dataset: what is sampled; its length counts.
        b0: first batch size.
        b_max: largest batch size; the length of the dataset if not given.
        drop_last: leave out the last batch of an epoch if it is not full.
        seed: of the order.
    """

    def __init__(
        self, dataset: Sized, b0: int, b_max: int | None = None, drop_last: bool = False, seed: int = 0
    ) -> None:
        self.length = check.integer("the length of dataset", len(dataset), 1)
        self.b_max = check.integer("b_max", self.length if b_max is None else b_max, 1, self.length)
        self.batch_size = check.integer("b0", b0, 1, self.b_max)
        self.drop_last = drop_last
        self.seed = check.integer("seed", seed, 0)
        self.epoch = 0
        self.position = 0

    def grow(self, batch_size: int) -> int:
        """Use batches of this size from the next one on, at most `b_max` and never smaller than now; the size used."""
        self.batch_size = max(self.batch_size, min(check.integer("batch_size", batch_size, 1), self.b_max))
        return self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        least = self.batch_size if self.drop_last else 1
        while self.length - self.position >= least:
            start, self.position = self.position, min(self.position + self.batch_size, self.length)
            yield order[start : self.position]
            least = self.batch_size if self.drop_last else 1
        self.epoch, self.position = self.epoch + 1, 0

    def __len__(self) -> int:
        """Batches left in this epoch at the present size."""
        left = self.length - self.position
        return left // self.batch_size if self.drop_last else -(-left // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Size, epoch and place in it."""
        return {"batch_size": self.batch_size, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Continue where another sampler of the same dataset and seed was."""
        expected = self.state_dict()
        if set(state_dict) != set(expected):
            raise InputError(f"state_dict must have the keys {sorted(expected)}, got {sorted(state_dict)}")
        self.batch_size = check.integer("batch_size", state_dict["batch_size"], 1, self.b_max)
        self.epoch = check.integer("epoch", state_dict["epoch"], 0)
        self.position = check.integer("position", state_dict["position"], 0, self.length)
