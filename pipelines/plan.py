"""From a position in the sequence to the work of one batch: which samples, with which draws."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from pipelines.augment import AugmentSpec, Draws, centre, draw
from pipelines.order import (
    Places,
    batch_bounds,
    global_order,
    rank_positions,
    shard_order,
    window_order,
)

Order = Literal["global", "window", "shards"]


class Task(NamedTuple):
    """One batch of one rank before anything is read."""

    epoch: int
    step: int
    places: Places  # (N,) places in the split's own order
    draws: Draws


class Run(NamedTuple):
    """Rows start..stop-1 of one shard, to be read in one go."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
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
    def bounds(self) -> Places:
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

    def positions(self, step: int) -> Places:
        """Positions in the epoch's order that make up one batch of this rank.

        Order "shards" gives each rank one run of positions, so that it opens only its own shards.
        """
        if self.order != "shards":
            return rank_positions(self.bounds, step, self.rank, self.world)
        shares = [self._share(rank) for rank in range(self.world)]
        first = sum(int(share.sum()) for share in shares[: self.rank])
        mine = shares[self.rank]
        start = first + int(mine[:step].sum())
        return np.arange(start, start + int(mine[step]))

    def order_of(self, epoch: int) -> Places:
        """Places in the order they are read in `epoch`."""
        if not self.train:
            return np.arange(self.samples)
        if self.order == "global":
            return global_order(self.samples, self.seed, epoch)
        if self.order == "window":
            return window_order(self.lengths, self.seed, epoch, self.window)
        return shard_order(self.lengths, self.seed, epoch)

    def tasks(self, epoch: int, step: int) -> Iterator[Task]:
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
                yield Task(epoch, number, order[positions], draws)
            epoch, step = epoch + 1, 0

    def runs(self, epoch: int, step: int) -> Iterator[Run]:
        """What `tasks` reads, as stretches of shards; for order "shards" and for evaluation."""
        ends = np.cumsum(self.lengths)
        while True:
            order = self.order_of(epoch)
            for number, places in self._stretches(order, ends, step):
                start = int(places[0] - ends[number] + self.lengths[number])
                yield Run(number, start, start + len(places))
            epoch, step = epoch + 1, 0

    def _stretches(self, order: Places, ends: Places, step: int) -> Iterator[tuple[int, Places]]:
        positions = [self.positions(number) for number in range(step, self.steps)]
        places = order[np.concatenate([np.zeros(0, np.int64), *positions])]
        numbers = np.searchsorted(ends, places, side="right")
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        for stretch, shards in zip(np.split(places, cuts), np.split(numbers, cuts), strict=True):
            if len(stretch):
                yield int(shards[0]), stretch

    def _share(self, rank: int) -> Places:
        """How many images a rank takes of each global batch: (steps,)."""
        return (np.diff(self.bounds) - rank + self.world - 1) // self.world
