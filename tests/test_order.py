"""Order: every image once, the same for any number of ranks, pinned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.augment import AugmentSpec
from pipelines.order import (
    BatchSchedule,
    batch_bounds,
    global_order,
    shard_order,
    window_order,
)


def schedule(lengths, *, batch, rank=0, world=1, order="global", train=True):
    spec = AugmentSpec(source=64, crop=56)
    return BatchSchedule(lengths, spec, train, 0, batch, rank, world, order, 2)


def epoch_of(plans, epoch=0):
    """Places of one epoch: for each step the share of every rank."""
    orders = [each.order_of(epoch) for each in plans]
    return [
        [order[each.positions(step)] for each, order in zip(plans, orders, strict=True)]
        for step in range(plans[0].steps)
    ]


def test_the_order_of_a_seed_is_pinned():
    # Stopped runs continue these sequences. Other numbers need another version of the state.
    assert global_order(10, 0, 0).tolist() == PINNED[0]
    assert global_order(10, 7, 3).tolist() == PINNED[1]
    assert window_order([4, 3, 3], 0, 0, 2).tolist() == PINNED[2]
    assert shard_order([4, 3, 3], 0, 0).tolist() == PINNED[3]


def test_every_seed_has_an_order_of_its_own():
    orders = {tuple(global_order(50, seed, 0)) for seed in (0, 2**63, 2**63 + 1, 2**64 - 1)}
    windows = {tuple(window_order([50], seed, 0, 1)) for seed in (0, 2**63, 2**63 + 1, 2**64 - 1)}
    assert len(orders) == len(windows) == 4


PINNED = (
    [0, 2, 9, 1, 8, 5, 4, 3, 6, 7],
    [2, 5, 9, 7, 3, 0, 6, 8, 4, 1],
    [0, 1, 9, 3, 7, 8, 2, 6, 5, 4],
    [0, 1, 2, 3, 7, 8, 9, 4, 5, 6],
)


def test_epochs_and_seeds_differ_and_every_place_is_about_as_likely():
    orders = np.stack([global_order(12, seed, epoch) for seed in range(60) for epoch in range(60)])
    assert len({tuple(order) for order in orders.tolist()}) == len(orders)
    counts = np.stack([np.bincount(column, minlength=12) for column in orders.T])
    chi_square = ((counts - 300) ** 2 / 300).sum()
    assert chi_square < 190  # 121 degrees of freedom: one in 10,000 by chance


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    batch=st.integers(1, 64),
    world=st.sampled_from([1, 2, 3, 4, 8]),
    order=st.sampled_from(["global", "window", "shards"]),
    train=st.booleans(),
)
def test_every_image_is_taken_once_an_epoch(lengths, batch, world, order, train):
    ranks = [
        schedule(lengths, batch=batch, rank=rank, world=world, order=order, train=train)
        for rank in range(world)
    ]
    taken = [each.order_of(2)[each.positions(step)] for each in ranks for step in range(each.steps)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(sum(lengths)))


@given(samples=st.integers(1, 500), batch=st.integers(1, 64), world=st.sampled_from([2, 3, 4, 8]))
def test_training_ranks_take_equal_steps_and_never_nothing(samples, batch, world):
    ranks = [schedule([samples], batch=batch, rank=rank, world=world) for rank in range(world)]
    if ranks[0].smallest < 1:
        assert batch < 2 * world or samples < world
        return
    assert len({each.steps for each in ranks}) == 1
    sizes = [[len(each.positions(step)) for each in ranks] for step in range(ranks[0].steps)]
    assert all(max(step) > 0 and max(step) - min(step) <= 1 for step in sizes)


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_another_number_of_ranks_makes_the_same_steps(world):
    alone = epoch_of([schedule([50, 51], batch=16)])
    shared = epoch_of([schedule([50, 51], batch=16, rank=r, world=world) for r in range(world)])
    for (whole,), parts in zip(alone, shared, strict=True):
        assert sorted(whole.tolist()) == sorted(np.concatenate(parts).tolist())
        for rank, part in enumerate(parts):
            assert part.tolist() == whole[rank::world].tolist()


@given(samples=st.integers(1, 2000), batch=st.integers(1, 300))
def test_no_batch_is_larger_than_asked_or_smaller_than_half(samples, batch):
    sizes = np.diff(batch_bounds(samples, batch))
    assert sizes.sum() == samples
    assert sizes.max() <= batch
    assert len(sizes) == -(-samples // batch)
    assert len(sizes) == 1 or sizes.min() >= batch // 2
    assert set(sizes[:-2].tolist()) <= {batch}


def test_a_window_is_read_before_the_next_one_begins():
    lengths = [5, 7, 6, 4, 5]
    shard_of = np.repeat(np.arange(5), lengths)[window_order(lengths, 3, 1, 2)]
    runs = [set(), set(), set()]
    sequence = shard_of.tolist()
    order = global_order(5, 3, 1).tolist()
    groups = [set(order[:2]), set(order[2:4]), set(order[4:])]
    start = 0
    for number, group in enumerate(groups):
        stop = start + sum(lengths[shard] for shard in group)
        runs[number] = set(sequence[start:stop])
        assert runs[number] == group
        start = stop


def test_the_steps_of_many_ranks_are_found_without_going_through_all_of_them():
    # 1.28 million images for 256 ranks: positions of a step are looked up, not added up anew.
    plan = schedule([1_281_167], batch=256, rank=255, world=256, order="shards")
    positions = [plan.positions(step) for step in range(plan.steps)]
    assert [len(own) for own in positions] == [1] * plan.steps
    assert positions[-1].tolist() == [1_281_166]


def test_ranks_of_shard_order_open_mostly_different_shards():
    lengths = [10] * 8
    ranks = [schedule(lengths, batch=16, rank=r, world=4, order="shards") for r in range(4)]
    for each in ranks:
        places = np.concatenate([each.order_of(0)[each.positions(s)] for s in range(each.steps)])
        assert len(set((places // 10).tolist())) == 2
