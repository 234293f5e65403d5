"""Images that a data set holds more than once, by the SHA-256 of their source files.

The same file in two splits makes a test of what was learned by heart; under two labels it is wrong
at least once; twice in a class it counts double. Equal pixels in different files are not seen.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError, counted, listed
from alexprep.sources.content import Stray
from alexprep.sources.items import Items, Unreadable
from alexprep.sources.listing import TRAIN, Source
from alexprep.workers import run_tasks

DIGEST_BYTES = 32
MOST_NAMED = 20
UNKNOWN = bytes(DIGEST_BYTES)  # of a file that could not be read, and is equal to no other
Groups = list[NDArray[np.intp]]


class Hashed(NamedTuple):
    """SHA-256, split and label of images: arrays of one length; splits are numbers."""

    digest: NDArray[np.bytes_]
    split: NDArray[np.intp]
    label: NDArray[np.intp]


def digest_array(digests: bytes) -> NDArray[np.bytes_]:
    """An array of what was written one after the other."""
    return np.frombuffer(digests, f"S{DIGEST_BYTES}")


def join(parts: Sequence[tuple[bytes, int, NDArray[np.integer]]]) -> Hashed:
    """All of many (digests, number of the split, labels)."""
    return Hashed(
        digest_array(b"".join(digests for digests, _, _ in parts)),
        np.repeat([split for _, split, _ in parts], [len(labels) for *_, labels in parts]),
        np.concatenate([np.zeros(0, np.intp), *(labels for *_, labels in parts)]).astype(np.intp),
    )


def equal_groups(images: Hashed) -> Groups:
    """Indices of equal images, two or more a group, ascending in each."""
    order = np.argsort(images.digest, kind="stable")
    ordered = images.digest[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.append(starts, len(order)))
    # Digests that are all zero compare as empty: they are of files that could not be read.
    repeated = (lengths > 1) & (ordered[starts] != b"")
    pairs = zip(starts[repeated].tolist(), lengths[repeated].tolist(), strict=True)
    return [order[start : start + length] for start, length in pairs]


def count_duplicates(images: Hashed, groups: Groups) -> dict[str, int]:
    """Files, each counted once, that are there more than once; {} if there is none.

    within_class: twice in one class of a split. across_classes: under several labels.
    across_splits: in several splits.
    """
    counts = {"within_class": 0, "across_classes": 0, "across_splits": 0}
    for group in groups:
        splits, labels = images.split[group].tolist(), images.label[group].tolist()
        counts["within_class"] += len(set(zip(splits, labels, strict=True))) < len(group)
        counts["across_classes"] += len(set(labels)) > 1
        counts["across_splits"] += len(set(splits)) > 1
    return counts if groups else {}


def describe_duplicates(counts: Mapping[str, int]) -> list[str]:
    """A sentence for each kind that there is."""
    phrases = {
        "across_splits": "in more than one split",
        "across_classes": "under more than one label",
        "within_class": "more than once in a class of a split",
    }
    return [
        f"{counted(counts[kind], 'image')} {'is' if counts[kind] == 1 else 'are'} {phrase}."
        for kind, phrase in phrases.items()
        if counts.get(kind)
    ]


def surplus(images: Hashed, groups: Groups, train: int) -> list[tuple[int, int]]:
    """(image of the split `train` that can be spared, the one that stays) for every such image.

    Of equal images one stays: that of another split, else the first.
    """
    pairs: list[tuple[int, int]] = []
    for group in groups:
        is_train = images.split[group] == train
        stays = int(group[~is_train][0] if not is_train.all() else group[0])
        pairs += [(int(index), stays) for index in group[is_train] if index != stays]
    return pairs


def hash_source(source: Source, workers: int) -> Hashed:
    """Hash every image of a source, its splits one after the other."""
    # Not at the top: the workers of `shard` import this module, and draw no progress.
    from alexprep.progress import ProgressBar  # noqa: PLC0415

    hashed: list[tuple[bytes, int, NDArray[np.integer]]] = []
    with ProgressBar("hash", source.images) as progress:
        for number, samples in enumerate(source.splits.values()):
            digests = np.zeros(len(samples.key), f"S{DIGEST_BYTES}")
            chunks = list(samples.items.neighbours())
            tasks = (samples.items.select(chunk) for chunk in chunks)
            with closing(run_tasks(hash_items, tasks, workers=workers)) as results:
                for index, chunk_digests in results:
                    digests[chunks[index]] = digest_array(chunk_digests)
                    progress.advance(len(chunks[index]))
            hashed.append((digests.tobytes(), number, samples.label))
    return join(hashed)


def hash_items(items: Items) -> bytes:
    """The SHA-256 of each, one after the other; runs in a worker."""
    with closing(items.read()) as contents:
        return b"".join(
            UNKNOWN if isinstance(data, Unreadable) else hashlib.sha256(data).digest()
            for data in contents
        )


def refuse_duplicates(source: Source, workers: int) -> None:
    """PrepareError that names images which are in the source more than once."""
    images = hash_source(source, workers)
    groups = equal_groups(images)
    if not groups:
        return
    paths = _Paths(source)
    summary = " ".join(describe_duplicates(count_duplicates(images, groups)))
    raise PrepareError(
        f"{source.name} holds images more than once. {summary}",
        *listed(
            [" = ".join(map(paths.__getitem__, group.tolist())) for group in groups], MOST_NAMED
        ),
        "Remove them, keep them with --on-duplicate keep, or leave them out of training with "
        "--on-duplicate drop-train.",
    )


def drop_duplicates(source: Source, workers: int) -> Source:
    """The source without training images that another split or an earlier training image has.

    PrepareError if a class would lose its last training image.
    """
    splits = list(source.splits)
    if TRAIN not in splits:
        return source
    images, train, paths = hash_source(source, workers), splits.index(TRAIN), _Paths(source)
    pairs = surplus(images, equal_groups(images), train)
    if not pairs:
        return source
    samples = source.splits[TRAIN]
    # A class that would lose all its images is refused: it would be gone from training unseen.
    is_kept = np.ones(len(samples.key), bool)
    is_kept[[dropped - paths.starts[train] for dropped, _ in pairs]] = False
    emptied = np.setdiff1d(samples.label, samples.label[is_kept])
    if len(emptied):
        wnid = source.classes[int(emptied[0])][0]
        raise PrepareError(
            f"Dropping duplicates leaves {len(emptied):,} classes of {source.name} without "
            f"training images, the first is {wnid!r}. Use --on-duplicate keep, or leave these "
            "classes out with --classes."
        )
    strays = [
        Stray(
            paths[dropped],
            f"has the same bytes as {paths[stays].removeprefix(f'{source.root}/')}",
            images.digest[dropped].ljust(DIGEST_BYTES, b"\0").hex(),
        )
        for dropped, stays in pairs
    ]
    remaining = dict(source.splits) | {TRAIN: samples.select(np.flatnonzero(is_kept))}
    return replace(source, splits=remaining, left_out=(*source.left_out, *strays))


class _Paths:
    """Paths of the images of all splits, numbered through."""

    def __init__(self, source: Source) -> None:
        self._splits = list(source.splits.values())
        lengths = [len(samples.key) for samples in self._splits]
        self.starts: list[int] = np.cumsum([0, *lengths]).tolist()

    def __getitem__(self, index: int) -> str:
        split = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self._splits[split].items.path(index - self.starts[split])
