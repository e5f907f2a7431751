"""Batches of a split: whole rows of an array at a time, in an order that depends on seed and epoch alone.

So a training that is continued sees the batches that it would have seen, and several processes share the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from bnfold.models.data import Split


class Batches(Sampler[list[int]]):
    """The rows of each step's batch for one of `world` processes: all batches of a step together are one of `size`."""

    def __init__(self, length: int, size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self._length, self._size, self._seed, self._rank, self._world = length, size, seed, rank, world
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self._epoch)
        order = torch.randperm(self._length, generator=generator).tolist()
        for start in range(0, len(self) * self._size, self._size):
            batch = order[start : start + self._size]
            # As many for every process, or they would wait for each other for ever.
            yield batch[self._rank : len(batch) // self._world * self._world : self._world]

    def __len__(self) -> int:
        whole, rest = divmod(self._length, self._size)
        # BN can't normalise a last batch of one example.
        return whole + (rest >= max(2, self._world))


def loader(split: Split, batches: Batches) -> DataLoader[tuple[Tensor, ...]]:
    """Tuples of examples and targets. A generator of its own: the global one is for the net alone."""
    data = TensorDataset(torch.from_numpy(split.images), torch.from_numpy(split.labels))
    return DataLoader(data, batch_size=None, sampler=batches, generator=torch.Generator())
