"""What SOURCE holds: every sample of every split in one order, as arrays.

The order is that of the keys, so the official archives, their extracted tree, Kaggle's tree and
parquet files of the same images list the same samples in the same order and become the same shards.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.items import Items, Names, Places, text
from alexprep.sources.synsets import ilsvrc2012

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLIT_FOLDERS = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}
SPLIT_FOLDERS["test"] = TEST
KEY_BYTES = 100 - len(".json")
PLAIN_KEY = re.compile(rb"[A-Za-z0-9_+=@~-]{1,%d}" % KEY_BYTES)


class Samples(NamedTuple):
    """The samples of one split, sorted by key: arrays of one length."""

    key: Names
    label: NDArray[np.int32]
    items: Items

    def select(self, indices: Places) -> "Samples":
        return Samples(self.key[indices], self.label[indices], self.items.select(indices))


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source that has been looked through.

    `classes` are (wnid, names) in label order. `identity` goes into the manifest: it tells two
    sources apart by the keys, labels and sizes of their files, not by where they lie.
    """

    kind: str
    name: str
    root: str
    classes: tuple[tuple[str, str], ...]
    splits: Mapping[str, Samples]

    @property
    def images(self) -> int:
        return sum(len(samples.key) for samples in self.splits.values())

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(f"{w}\t{n}" for w, n in self.classes).encode())
        for split, samples in sorted(self.splits.items()):
            digest.update(f"\n{split} {samples.key.dtype} {len(samples.key)}\n".encode())
            for column in (samples.key, samples.label, samples.items.fingerprint):
                digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        images = {split: len(samples.key) for split, samples in sorted(self.splits.items())}
        return {
            "kind": self.kind,
            "name": self.name,
            "images": images,
            "sha256": digest.hexdigest(),
        }


def dataset_name(folder: Path, classes: Sequence[tuple[str, str]]) -> str:
    """imagenet1k for the 1000 classes of ILSVRC2012, else the folder's name made safe for files."""
    if tuple(wnid for wnid, _ in classes) == tuple(synset.wnid for synset in ilsvrc2012()):
        return "imagenet1k"
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-")
    return safe[:60] or "images"


def stem_key(stem: bytes) -> bytes:
    """A stem as a key: ASCII, no dot, no space, at most 95 bytes; a changed one is told apart.

    Everything after the first dot of a member's name is the extension to all readers, DALI's index
    separates by spaces, and wids reads 100 bytes of name.
    """
    if PLAIN_KEY.fullmatch(stem):
        return stem
    safe = re.sub(rb"[^A-Za-z0-9_+=@~-]", b"_", stem)[: KEY_BYTES - 13]
    return safe + b"-" + hashlib.sha256(stem).hexdigest()[:12].encode()


class Listing(NamedTuple):
    """One split as found, in any order: names of files, their labels and places."""

    label: NDArray[np.int32]
    items: Items


def make_source(
    kind: str,
    folder: Path,
    classes: tuple[tuple[str, str], ...],
    found: Mapping[str, Listing],
) -> Source:
    """Give every sample its key, refuse two of one, and sort."""
    if not found:
        raise PrepareError(f"{folder} holds no images. {WHAT_IS_LOOKED_FOR}")
    stems = {split: _stems(listing.items.name) for split, listing in found.items()}
    if not _all_different(stems.values()):
        # cat/1.jpg and dog/1.jpg, or train/cat/1.jpg and val/cat/1.jpg
        stems = {
            split: [
                f"{split}_{classes[label][0]}_".encode() + stem
                for label, stem in zip(found[split].label.tolist(), stems[split], strict=True)
            ]
            for split in found
        }
    splits: dict[str, Samples] = {}
    for split, listing in found.items():
        keys = np.array([stem_key(stem) for stem in stems[split]], dtype="S")
        order = np.argsort(keys, kind="stable")
        splits[split] = Samples(keys, listing.label, listing.items).select(order)
        _refuse_twins(splits[split])
    return Source(
        kind=kind,
        name=dataset_name(folder, classes),
        root=str(folder),
        classes=classes,
        splits=dict(splits),
    )


def _stems(names: Names) -> list[bytes]:
    """File names without folders and without their last extension."""
    stems: list[bytes] = []
    for name in names.tolist():
        base = name[name.rfind(b"/") + 1 :]
        dot = base.rfind(b".")
        stems.append(base[:dot] if dot > 0 else base)
    return stems


def _all_different(lists: Any) -> bool:
    joined = [stem for stems in lists for stem in stems]
    return len(set(joined)) == len(joined)


def _refuse_twins(samples: Samples) -> None:
    same = np.flatnonzero(samples.key[1:] == samples.key[:-1])
    if len(same):
        first = int(same[0])
        raise PrepareError(
            f"{samples.items.path(first)} and {samples.items.path(first + 1)} would both be "
            f"sample {text(samples.key[first])} ({len(same):,} such pairs). Readers tell samples "
            "apart by this name: rename or remove one of them."
        )


WHAT_IS_LOOKED_FOR = (
    "Looked for: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (with "
    "ILSVRC2012_devkit_t12.tar.gz); Kaggle's ILSVRC/Data/CLS-LOC; *.parquet; train/ and val/ "
    "(validation/, test/) with a folder a class; or folders of one class each."
)
