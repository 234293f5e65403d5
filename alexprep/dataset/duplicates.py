"""Images that a data set holds more than once, by the SHA-256 of their source files.

The same file in two splits makes a test of what was learned by heart; under two labels it is wrong
at least once; twice in a class it counts double. Equal pixels in different files are not seen.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 32
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
    places = {
        "across_splits": "in more than one split",
        "across_classes": "under more than one label",
        "within_class": "more than once in a class of a split",
    }
    return [
        f"{counts[kind]:,} image{'s' * (counts[kind] != 1)} {'is' if counts[kind] == 1 else 'are'} "
        f"{place}."
        for kind, place in places.items()
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
