"""From SOURCE to a plan: list it, hold out a validation split, choose splits, cut shards."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexprep.dataset.duplicates import drop_duplicates, refuse_duplicates
from alexprep.dataset.shard_plan import ShardConfig, ShardPlan, held_out_share, make_plan
from alexprep.errors import PrepareError
from alexprep.machine import cores
from alexprep.sources.find import find_source
from alexprep.sources.listing import TRAIN, VALIDATION, Source, SourceOptions


def plan_source(
    path: Path,
    config: ShardConfig,
    *,
    splits: Sequence[str] = (),
    skip: bool = False,
    workers: int | None = None,
) -> ShardPlan:
    """List the source at `path` and plan its shards; PrepareError where it is not understood.

    `splits` takes these alone; `skip` leaves out what is no image.
    """
    options = SourceOptions(
        skip=skip,
        classes=None if config.classes is None else tuple(config.classes),
        image_column=config.image_column,
        label_column=config.label_column,
    )
    source = find_source(path, options)
    if config.validation is not None:
        source = held_out(source, config.validation, config.seed)
    source = chosen(source, splits)
    if config.on_duplicate == "fail":
        refuse_duplicates(source, workers or cores())
    elif config.on_duplicate == "drop-train":
        source = drop_duplicates(source, workers or cores())
    return make_plan(source, config)


def chosen(source: Source, splits: Sequence[str]) -> Source:
    """The source with only these splits, or as it is if none are named."""
    for split in splits:
        if split not in source.splits:
            raise PrepareError(
                f"{source.name} has no {split} split; it has {', '.join(sorted(source.splits))}."
            )
    if not splits:
        return source
    return replace(source, splits={name: source.splits[name] for name in splits})


def held_out(source: Source, validation: str | int, seed: int) -> Source:
    """Move training images to a validation split, the same share of every class.

    Which ones is a function of seed and keys: those of a class with the smallest sha256 of
    "SEED/validation/KEY". Every class keeps a training image, and gives one where there are as
    many to give as classes.
    """
    if VALIDATION in source.splits or TRAIN not in source.splits:
        raise PrepareError(
            f"{source.name} has {', '.join(sorted(source.splits))}: --validation is for sources "
            "with training images and no validation split."
        )
    samples = source.splits[TRAIN]
    counts = np.bincount(samples.label, minlength=len(source.classes))
    share, number = held_out_share(validation)
    number = number or max(1, round(share * len(samples.key)))
    limit = int((counts - 1).clip(0).sum())
    if number > limit:
        raise PrepareError(
            f"{source.name} has {len(samples.key):,} images of {len(source.classes):,} classes: "
            f"{limit:,} at most can be held out for validation, not {number:,}."
        )
    quota = stratified(counts, number)
    # A hash of the key, not a random number: images that are added or removed change no other.
    digests = [hashlib.sha256(b"%d/validation/%b" % (seed, key)) for key in samples.key.tolist()]
    rank = np.array([int.from_bytes(digest.digest()[:8], "big") for digest in digests], np.uint64)
    order = np.lexsort((rank, samples.label))
    # Of each sample among those of its class, by its hash.
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_held_out = np.zeros(len(order), bool)
    is_held_out[order] = position < np.repeat(quota, counts)
    splits = {
        TRAIN: samples.select(np.flatnonzero(~is_held_out)),
        VALIDATION: samples.select(np.flatnonzero(is_held_out)),
    }
    return replace(source, splits=splits | {s: v for s, v in source.splits.items() if s != TRAIN})


def stratified(counts: NDArray[np.intp], number: int) -> NDArray[np.intp]:
    """How many of each class to take so that they are `number` together, in proportion.

    No class gives its last sample; each that has two gives one, if `number` is as large.
    """
    exact = counts * (number / counts.sum())
    limit = (counts - 1).clip(0)
    least = np.minimum(limit, 1) if number >= np.count_nonzero(limit) else np.zeros_like(limit)
    quota = np.floor(exact).astype(np.intp).clip(least, limit)
    while (gap := number - int(quota.sum())) != 0:
        # The classes that are furthest from their share, on the side that closes the gap.
        want = np.sign(gap) * (exact - quota)
        want[(quota >= limit) if gap > 0 else (quota <= least)] = -np.inf
        chosen_classes = np.argsort(-want, kind="stable")[
            : min(abs(gap), int((want > -np.inf).sum()))
        ]
        quota[chosen_classes] += np.sign(gap)
    return quota
