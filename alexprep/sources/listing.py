"""What SOURCE holds: every sample of every split in one order, as arrays.

The order is that of the keys, so the official archives, their extracted tree, Kaggle's tree and
parquet files of the same images list the same samples in the same order and become the same shards.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.content import Stray, stem
from alexprep.sources.items import Items, Names, Places, distinct, join, text
from alexprep.sources.synsets import ilsvrc2012

Classes = tuple[tuple[str, str], ...]  # (wnid, names) in label order
TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Usual names of a split, in any case and with what people put around them (test_set, ILSVRC2012_
# img_val): see `split_of`.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "trainingset"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset"), VALIDATION),
    **dict.fromkeys(("validationset", "validset"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "testset", "testingset"), TEST),
}
AROUND_SPLIT = frozenset({"set", "img", "imgs", "image", "images", "data", "split", "folder"})
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
    `folders` says where each split was found, `left_out` what is no image and why, and `warnings`
    what is probably not as it was meant.
    """

    kind: str
    name: str
    root: str
    classes: Classes
    splits: Mapping[str, Samples]
    folders: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: tuple[Stray, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        return sum(len(samples.key) for samples in self.splits.values())

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(map("\t".join, self.classes)).encode())
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How a source is read.

    `skip`: leave out what is no image instead of refusing it. `classes`: keep these alone, in this
    order of labels. `image_column`, `label_column`: of parquet files.
    """

    skip: bool = False
    classes: tuple[str, ...] | None = None
    image_column: str | None = None
    label_column: str | None = None


def split_of(name: str) -> str | None:
    """The split that a folder or file is named after, if it is.

    The whole name counts, or one word of it with nothing but AROUND_SPLIT and numbers next to it.
    """
    words = _words(name)
    if words[:1] == ["ilsvrc"]:
        del words[0]
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    others = [word for word in words if word not in SPLIT_WORDS and word not in AROUND_SPLIT]
    return splits[0] if len(splits) == 1 and not others else None


def splits_in(name: str) -> set[str]:
    """The splits that words of a name stand for, whatever else is in it (imagenet_train, val.X)."""
    return {SPLIT_WORDS[word] for word in _words(name) if word in SPLIT_WORDS}


def _words(name: str) -> list[str]:
    """The words of a name in lower case: TestSet and test_set are two."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^a-z]+", spaced.lower()) if word]


class Listing(NamedTuple):
    """One split as listed, in any order: item i is of the class `names[name_of[i]]`."""

    items: Items
    names: tuple[str, ...]
    name_of: NDArray[np.int32]
    path: Path


def join_listings(listings: Sequence[Listing]) -> Listing:
    """One split that lies in several kinds of storage."""
    if len(listings) == 1:
        return listings[0]
    names = [name for listing in listings for name in listing.names]
    begins = np.cumsum([0, *(len(listing.names) for listing in listings[:-1])])
    name_of = [listing.name_of + begin for listing, begin in zip(listings, begins, strict=True)]
    items = join([listing.items for listing in listings])
    return Listing(items, tuple(names), np.concatenate(name_of).astype(np.int32), listings[0].path)


def list_by_name(items: Items, labels: Sequence[str], path: Path) -> Listing:
    """A split whose labels are the names of its classes."""
    names, name_of = np.unique(np.array(labels, object), return_inverse=True)
    return Listing(items, tuple(map(str, names)), name_of.astype(np.int32), path)


class Table(NamedTuple):
    """One split with the labels that it was stored with: all are numbers, or all are names."""

    items: Items
    labels: NDArray[Any] | list[str]
    path: Path

    @property
    def is_named(self) -> bool:
        return isinstance(self.labels, list)

    @property
    def is_unlabelled(self) -> bool:
        """Whether all labels are -1, which stands for none."""
        return not self.is_named and len(self.labels) > 0 and bool(np.all(self.labels == -1))


def are_named(tables: Mapping[str, Table], folder: Path) -> bool:
    """Whether labels are names; PrepareError where those of some splits are, and others not."""
    kinds = {table.is_named for table in tables.values() if len(table.labels)}
    if len(kinds) > 1:
        raise PrepareError(f"{folder} has splits with names and with numbers as labels.")
    return kinds == {True}


def list_named(tables: Mapping[str, Table]) -> dict[str, Listing]:
    """Splits whose labels are names."""
    return {
        split: list_by_name(table.items, cast(list[str], table.labels), table.path)
        for split, table in tables.items()
    }


def list_numbered(
    tables: Mapping[str, Table], classes: Classes, keep: Sequence[str] | None
) -> tuple[dict[str, Listing], Classes]:
    """Splits whose labels are numbers of `classes`, and those of the classes to `keep`."""
    wnids = tuple(wnid for wnid, _ in classes)
    listings = {
        split: Listing(table.items, wnids, np.asarray(table.labels, np.int32), table.path)
        for split, table in tables.items()
    }
    if keep is None:
        return listings, classes
    words = dict(classes)
    return listings, tuple((wnid, words[wnid]) for wnid in label_space(listings, keep))


def label_space(listings: Mapping[str, Listing], keep: Sequence[str] | None) -> list[str]:
    """The classes in label order: `keep`, else those of the training images by name, else all.

    PrepareError where another split has a class that training lacks, or `keep` one nothing has.
    """
    used = {split: _used_names(listing) for split, listing in listings.items()}
    everything = set[str]().union(*used.values())
    if keep is not None:
        if unknown := [name for name in keep if name not in everything]:
            raise PrepareError(
                f"--classes names {len(unknown):,} classes that no image has, the first is "
                f"{unknown[0]!r}. The source has {len(everything):,} classes, the first is "
                f"{min(everything, default='')!r}."
            )
        return list(keep)
    if TRAIN in used:
        refuse_unknown_classes(used, {split: each.path for split, each in listings.items()})
    return sorted(used.get(TRAIN) or everything)


def refuse_unknown_classes(names: Mapping[str, set[str]], paths: Mapping[str, Path]) -> None:
    """PrepareError where a split has a class that training lacks."""
    for split in names:
        if strangers := sorted(names[split] - names[TRAIN]):
            raise PrepareError(
                f"{paths[split]} has {len(strangers):,} classes that {paths[TRAIN]} does not have, "
                f"the first is {strangers[0]!r}. Labels come from the training images: add or "
                "remove them, or list the classes to keep in --classes FILE."
            )


def _used_names(listing: Listing) -> set[str]:
    return {listing.names[number] for number in distinct(listing.name_of).tolist()}


def integer_classes(
    folder: Path, names: Sequence[str], tables: Mapping[str, Table], warnings: list[str]
) -> Classes:
    """(wnid, names) in label order for labels that are numbers.

    `names` is the list that goes with them, or empty. Labels that no image has are refused, or
    named in a warning where the list names them.
    """
    used = {split: set(np.unique(table.labels).tolist()) for split, table in tables.items()}
    everything: set[int] = set[int]().union(*used.values())
    highest, lowest = max(everything, default=-1), min(everything, default=0)
    count = len(names) or highest + 1
    if lowest < 0 or highest >= count:
        raise PrepareError(
            f"{folder} has labels from {lowest} to {highest} for {count} classes. "
            "Labels must be 0..classes - 1."
        )
    trained = used.get(TRAIN, everything)
    if len(trained) < count and not names:  # before a list as long as the highest label
        first = next(label for label in range(count) if label not in trained)
        raise PrepareError(
            f"{folder} has labels from {lowest} to {highest}, but no {TRAIN} image of label "
            f"{first} ({count - len(trained):,} such labels). Number the classes from 0 without "
            "gaps."
        )
    classes = _as_ilsvrc(names or [str(number) for number in range(count)])
    missing = sorted(set(range(count)) - trained)
    if missing:
        shown = ", ".join(repr(classes[label][0]) for label in missing[:4])
        warnings.append(
            f"{folder} lists {len(classes):,} classes, of which {len(missing):,} have no {TRAIN} "
            f"images ({shown}{', ...' if len(missing) > 4 else ''})."
        )
    return classes


def _as_ilsvrc(names: Sequence[str]) -> Classes:
    """(wnid, names) of the 1000 classes where most names are theirs, else each name twice."""
    table = ilsvrc2012()
    same = sum(a.names.split(",")[0] == b.split(",")[0] for a, b in zip(table, names))  # noqa: B905
    if len(names) == len(table) and same > len(names) / 2:
        return tuple((synset.wnid, synset.names) for synset in table)
    return tuple((name, name) for name in names)


def make_source(
    kind: str, folder: Path, classes: Classes, listings: Mapping[str, Listing]
) -> Source:
    """Give every sample its label and key, refuse two of one key, and sort.

    Images of a class that is not in `classes` are not in the source.
    """
    if not listings:
        raise PrepareError(f"{folder} holds no images. {WHAT_IS_LOOKED_FOR}")
    samples = {split: _labelled(listing, classes) for split, listing in listings.items()}
    samples = {split: listed for split, listed in samples.items() if len(listed.label)}
    stems = {
        split: list(map(stem, listed.items.name.tolist())) for split, listed in samples.items()
    }
    if not _all_different(stems.values()):
        # cat/1.jpg and dog/1.jpg, or train/cat/1.jpg and val/cat/1.jpg
        stems = {
            split: [
                os.fsencode(f"{split}_{classes[label][0]}_") + name
                for label, name in zip(listed.label.tolist(), stems[split], strict=True)
            ]
            for split, listed in samples.items()
        }
    for split, listed in samples.items():
        keys = np.array([stem_key(name) for name in stems[split]], dtype="S")
        order = np.argsort(keys, kind="stable")
        samples[split] = Samples(keys, listed.label, listed.items).select(order)
        _refuse_twins(samples[split])
    return Source(
        kind=kind,
        name=dataset_name(folder, classes),
        root=str(folder),
        classes=classes,
        splits=samples,
        folders={split: str(listings[split].path) for split in samples},
    )


def _labelled(listing: Listing, classes: Classes) -> Samples:
    """Samples without keys yet; those of other classes are dropped."""
    labels = {name: label for label, (name, _) in enumerate(classes)}
    if listing.names == tuple(name for name, _ in classes):
        label = listing.name_of  # two classes of a list of Hugging Face may have one name
    else:
        numbers = [labels.get(name, -1) for name in listing.names]
        label = np.array(numbers, np.int32)[listing.name_of]
    if (label < 0).any():
        indices = np.flatnonzero(label >= 0)
        return Samples(np.array([], "S"), label[indices], listing.items.select(indices))
    return Samples(np.array([], "S"), label, listing.items)


def with_findings(source: Source, strays: Iterable[Stray], warnings: Iterable[str]) -> Source:
    """The source with what was found next to its images."""
    return replace(
        source,
        left_out=(*source.left_out, *strays),
        warnings=(*source.warnings, *warnings),
    )


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
    "ILSVRC2012_devkit_t12.tar.gz); other tars of images (a class each, or WebDataset shards); "
    "Kaggle's ILSVRC/Data/CLS-LOC; *.parquet; train/ and val/ (validation/, test/) with a folder a "
    "class; or folders of one class each."
)
