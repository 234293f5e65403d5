"""Which image is next: pure functions of (seed, epoch), the same for every rank and backend.

The index of a sample is its number in the split: shard by shard, tar order. An epoch is a
permutation of the indices 0..n-1. A position is a number in that permutation, and all chance of an
image is drawn from its position. Positions are cut into global batches of `batch` images. Rank r of
`world` ranks takes the positions r, r + world, r + 2 world, ... of each global batch, so the number
of ranks does not change which images make up a step.

The end of an epoch: no image is dropped, repeated or padded. When `batch` does not divide n, the
last two global batches share what is left as evenly as they can: a training step is never smaller
than half a batch, every rank takes the same number of steps, and no rank comes away empty as long
as batch >= 2 world.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import AugmentSpec, Draws, centre, draw

Order = Literal["global", "window", "shards"]
Indices = NDArray[np.int64]


def global_order(samples: int, seed: int, epoch: int) -> Indices:
    """Every permutation of 0..samples-1 is equally likely; 1.28 million take about 0.15 s.

    A sort of raw Philox words is used, not Generator.permutation: NumPy keeps the words for good
    but may change the method.
    """
    words = np.random.Philox(key=_key(seed, epoch)).random_raw(samples)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def _key(seed: int, epoch: int) -> NDArray[np.uint64]:
    # NumPy would make floats of a list with a seed from 2**63 on, which have fewer digits.
    return np.array([seed, epoch], np.uint64)


def window_order(lengths: Sequence[int], seed: int, epoch: int, window: int) -> Indices:
    """Shards in random order, their samples mixed `window` shards at a time: for cold disks.

    Args:
        lengths: samples of each shard.
        seed: as in `global_order`.
        epoch: as in `global_order`.
        window: how many shards are read at the same time, each of them once and from its start.
    """
    order = global_order(len(lengths), seed, epoch)
    rank_of_shard = np.empty(len(lengths), np.int64)
    rank_of_shard[order] = np.arange(len(lengths)) // window
    chance = np.random.Philox(key=_key(seed, epoch), counter=[0, 1, 0, 0])
    words = chance.random_raw(sum(lengths))
    indices: Indices = np.argsort(words, kind="stable")
    return indices[np.argsort(np.repeat(rank_of_shard, lengths)[indices], kind="stable")]


def shard_order(lengths: Sequence[int], seed: int, epoch: int) -> Indices:
    """Shards in random order, each in tar order: for storage that can only be streamed."""
    ends = list(accumulate(lengths))
    runs = [
        np.arange(ends[shard] - lengths[shard], ends[shard], dtype=np.int64)
        for shard in map(int, global_order(len(lengths), seed, epoch))
    ]
    return np.concatenate(runs)


def batch_bounds(samples: int, batch: int) -> Indices:
    """Positions at which the global batches of an epoch begin, and the end: (steps + 1,)."""
    bounds = np.append(np.arange(0, samples, batch, dtype=np.int64), samples)
    if samples > batch and samples % batch:
        bounds[-2] = bounds[-3] + (samples - bounds[-3] + 1) // 2
    return bounds


def rank_positions(bounds: Indices, step: int, rank: int, world: int) -> Indices:
    """Positions that one rank takes of one global batch."""
    return np.arange(int(bounds[step]) + rank, int(bounds[step + 1]), world)


class BatchPlan(NamedTuple):
    """One batch of one rank before anything is read."""

    epoch: int
    step: int
    indices: Indices  # (N,) of samples in the split's own order
    draws: Draws


class RowRange(NamedTuple):
    """Rows start..stop-1 of one shard, to be read in one go."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class BatchSchedule:
    """The endless sequence of batches of one rank; a pure function of these fields.

    `train` False is evaluation: the split's own order, centre draws, every epoch alike.
    """

    lengths: Sequence[int]  # samples of each shard
    spec: AugmentSpec
    train: bool
    seed: int
    batch: int
    rank: int
    world: int
    order: Order
    window: int

    @property
    def samples(self) -> int:
        return sum(self.lengths)

    @cached_property
    def bounds(self) -> Indices:
        """Where the global batches of an epoch begin: (steps + 1,)."""
        return batch_bounds(self.samples, self.batch)

    @cached_property
    def steps(self) -> int:
        """Batches of this rank in an epoch; in training the same for every rank."""
        return int(np.count_nonzero(np.diff(self.bounds) > self.rank))

    @property
    def smallest(self) -> int:
        """Images that the rank with the least gets in the smallest step."""
        return int(np.diff(self.bounds).min()) // self.world

    def positions(self, step: int) -> Indices:
        """Positions in the epoch's order that make up one batch of this rank.

        Order "shards" gives each rank one run of positions, so that it opens only its own shards.
        """
        if self.order != "shards":
            return rank_positions(self.bounds, step, self.rank, self.world)
        return np.arange(int(self._own_bounds[step]), int(self._own_bounds[step + 1]))

    def order_of(self, epoch: int) -> Indices:
        """Indices of all samples in the order they are read in `epoch`."""
        if not self.train:
            return np.arange(self.samples)
        if self.order == "global":
            return global_order(self.samples, self.seed, epoch)
        if self.order == "window":
            return window_order(self.lengths, self.seed, epoch, self.window)
        return shard_order(self.lengths, self.seed, epoch)

    def batches(self, epoch: int, step: int) -> Iterator[BatchPlan]:
        """All batches from here on, epoch after epoch."""
        while True:
            order = self.order_of(epoch)
            for number in range(step, self.steps):
                positions = self.positions(number)
                draws = (
                    draw(self.spec, self.seed, epoch, positions)
                    if self.train
                    else centre(self.spec, len(positions))
                )
                yield BatchPlan(epoch, number, order[positions], draws)
            epoch, step = epoch + 1, 0

    def row_ranges(self, epoch: int, step: int) -> Iterator[RowRange]:
        """What `batches` reads, as ranges of rows; for order "shards" alone, which has such."""
        ends = np.cumsum(self.lengths)
        while True:
            order = self.order_of(epoch)
            for number, indices in self._by_shard(order, ends, step):
                start = int(indices[0] - ends[number] + self.lengths[number])
                yield RowRange(number, start, start + len(indices))
            epoch, step = epoch + 1, 0

    def _by_shard(self, order: Indices, ends: Indices, step: int) -> Iterator[tuple[int, Indices]]:
        positions = [self.positions(number) for number in range(step, self.steps)]
        indices = order[np.concatenate([np.zeros(0, np.int64), *positions])]
        numbers = np.searchsorted(ends, indices, side="right")
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        for stretch, shards in zip(np.split(indices, cuts), np.split(numbers, cuts), strict=True):
            if len(stretch):
                yield int(shards[0]), stretch

    @cached_property
    def _own_bounds(self) -> Indices:
        """Where the batches of this rank begin in order "shards", behind those of lower ranks."""
        shares = [
            (np.diff(self.bounds) - rank + self.world - 1) // self.world
            for rank in range(self.rank + 1)
        ]
        first = sum(int(share.sum()) for share in shares[:-1])
        return first + np.concatenate([[0], np.cumsum(shares[-1])])
