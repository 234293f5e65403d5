"""WebDataset tars as a source: those of others, and a finished data set of ours.

A sample is what stands together under one name up to its first dot: an image, and a label in .cls,
.json or .txt, as a number or as the name of a class.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from alexprep.errors import PrepareError
from alexprep.machine import cores
from alexprep.sources.content import IMAGE_ENDINGS, has_image_ending, is_litter
from alexprep.sources.items import concatenate, text
from alexprep.sources.listing import (
    TRAIN,
    Classes,
    Listing,
    Source,
    SourceOptions,
    Table,
    are_named,
    integer_classes,
    label_space,
    list_named,
    list_numbered,
    make_source,
    split_of,
    splits_in,
    with_findings,
)
from alexprep.sources.synsets import ilsvrc2012, named
from alexprep.sources.tables import decode_text
from alexprep.sources.tars import Tars, kind_of_tar, members_of, opened
from alexprep.tar import Entry, scan_tar
from alexprep.workers import run_tasks
from pipelines.format import BLOCK, MANIFEST, Manifest, Shard, ShardIndex

LABEL_BYTES = 65_536
# Fields of a .json that name the class, by number or by name.
NUMBER_FIELDS = ("label", "cls", "class_id", "label_id", "target")
NAME_FIELDS = ("wnid", "synset", "class_name", "label_name", "class")
NUMBER = re.compile(r"-?\d{1,99}(\.\d+)?", re.ASCII)  # of a class; what is longer is a name
DIGITS = 99
CLS_BYTES = 16  # of ours a label has four or eight digits, and zeros follow
# Fewer tars than this are listed faster than processes start.
FEW_TARS = 16


class Tar(NamedTuple):
    """A tar to list; `shard` is what the manifest of a finished data set of ours says of it."""

    path: Path
    shard: Shard | None = None
    index_path: Path | None = None


class Listed(NamedTuple):
    """The samples of a tar; labels are all numbers or all names."""

    items: Tars
    labels: list[int] | list[str]


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """WebDataset tars by split: in `folder`, or in folders named after splits; {} without any."""
    by_split: dict[str, list[Path]] = {}
    for path in _tars(folder):
        by_split.setdefault(_split_in_name(path), []).append(path)
    if not by_split:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
        for name in names:
            if (split := split_of(name)) is not None and (tars := _tars(folder / name)):
                by_split.setdefault(split, []).extend(tars)
    first = next(iter(by_split.values()), None)
    return by_split if first and kind_of_tar(first[0]) == "shard" else {}


def _tars(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.tar"))
    return [path for path in paths if path.is_file() and not is_litter(path.name)]


def _split_in_name(path: Path) -> str:
    splits = splits_in(path.stem)
    return splits.pop() if len(splits) == 1 else TRAIN


def shard_source(
    folder: Path, by_split: Mapping[str, list[Path]], options: SourceOptions
) -> Source:
    """The samples of WebDataset tars, labelled as they are.

    Numbers go with the classes of a manifest of ours, or with the wnids that the keys begin with;
    names are classes in their order. Tars of a split whose labels are all -1 are left out.
    """
    warnings: list[str] = []
    manifest = _finished(folder)
    if manifest is not None:
        tars = _tars_of(manifest, folder)
    else:
        tars = {split: [Tar(path) for path in paths] for split, paths in by_split.items()}
    listed = {split: _list_tars(some) for split, some in tars.items()}
    # Test splits, whose labels nobody knows, are stored with -1 for all.
    listed = {split: table for split, table in listed.items() if not table.is_unlabelled}
    if are_named(listed, folder):
        listings = list_named(listed)
        classes = named(label_space(listings, options.classes), folder)
        warnings += _captions(folder, listings)
    else:
        names = manifest.classes if manifest else _class_names(folder, listed, warnings)
        classes = names if names else integer_classes(folder, [], listed, warnings)
        if any(np.max(table.labels, initial=-1) >= len(classes) for table in listed.values()):
            raise PrepareError(f"{folder} has labels beyond its {len(classes):,} classes.")
        listings, classes = list_numbered(listed, classes, options.classes)
    if manifest:
        warnings.append(
            f"{folder} is a finished data set: its images are {manifest.dimensions}, "
            f"{'resized' if manifest.keep_aspect else 'cropped'} and compressed once already."
        )
    source = make_source("shards", folder, classes, listings)
    return with_findings(source, (), warnings)


def _finished(folder: Path) -> Manifest | None:
    """The manifest of a finished data set of ours."""
    path = folder / MANIFEST
    # Others have a file of this name, too.
    return Manifest.load(folder) if path.is_file() and b'"alexprep"' in path.read_bytes() else None


def _tars_of(manifest: Manifest, folder: Path) -> dict[str, list[Tar]]:
    tars = {
        split: [Tar(folder / shard.name, shard, folder / shard.index) for shard in listed.shards]
        for split, listed in manifest.splits.items()
    }
    for tar in (tar for some in tars.values() for tar in some):
        if not tar.path.is_file():
            raise PrepareError(f"{tar.path} is missing: {folder} is not whole. Copy it again.")
    return tars


def _list_tars(tars: Sequence[Tar]) -> Table:
    workers = min(cores(), len(tars)) if len(tars) >= FEW_TARS else 1
    lists: list[Listed | None] = [None] * len(tars)
    with closing(run_tasks(list_tar, tars, workers=workers)) as results:
        for number, listed in results:
            lists[number] = listed
    complete = [listed for listed in lists if listed is not None]
    kinds = {type(listed.labels[0]) for listed in complete if listed.labels}
    if len(kinds) > 1:
        raise PrepareError(f"{tars[0].path.parent} has tars with names and with numbers as labels.")
    labels: list[Any] = [label for listed in complete for label in listed.labels]
    items = concatenate([listed.items for listed in complete])
    # Numbers of any size: which of them are classes is found out for all splits together.
    return Table(items, labels if kinds == {str} else np.array(labels, object), tars[0].path.parent)


def list_tar(tar: Tar) -> Listed:
    """The samples of one tar. Runs in a worker."""
    with opened(tar.path) as file:
        if tar.shard is not None and tar.index_path is not None and tar.index_path.is_file():
            return _list_by_index(file, tar.path, tar.shard, tar.index_path)
        return _list_by_headers(file, tar.path)


def _list_by_index(file: int, path: Path, shard: Shard, index_path: Path) -> Listed:
    """The samples of a shard of ours: of the tar itself, the labels alone are read."""
    index = ShardIndex.parse(index_path.read_bytes(), shard, str(index_path))
    # KEY.cls follows KEY.jpg: its data begins after the padding and one header.
    begins = index.offsets + -(-index.sizes // BLOCK) * BLOCK + BLOCK
    labels = [os.pread(file, CLS_BYTES, begin).strip(b"\0") for begin in begins.tolist()]
    if not all(label.isdigit() for label in labels):
        raise PrepareError(
            f"{path} does not have its labels where {index_path} says. Run `alexprep verify` on "
            "the data set."
        )
    items = Tars(
        containers=(str(path),),
        container=np.zeros(len(labels), np.int32),
        name=np.char.add(index.keys, b".jpg"),
        offset=index.offsets,
        size=index.sizes,
    )
    return Listed(items, list(map(int, labels)))


def _list_by_headers(file: int, path: Path) -> Listed:
    images: list[Entry] = []
    labels: list[int | str] = []
    for members in _samples(scan_tar(path, file)):
        image = [entry for ending, entry in members.items() if ending in IMAGE_ENDINGS]
        if len(image) != 1:
            image = [entry for ending, entry in members.items() if has_image_ending(ending)]
        if len(image) != 1:
            key = next(iter(members.values())).name
            raise PrepareError(
                f"{path}: the sample of {text(key)} has {len(image)} images; expected one, "
                "with a label in .cls, .json or .txt."
            )
        images += image
        labels.append(_label(path, file, members, image[0].name))
    return Listed(members_of(path, images), _of_one_kind(path, labels))


def _samples(entries: list[Entry]) -> Iterator[dict[bytes, Entry]]:
    """Members by ending, in groups of a sample."""
    members: dict[bytes, Entry] = {}
    current = None
    for entry in entries:
        begin = entry.name.rfind(b"/") + 1
        dot = entry.name.find(b".", begin)
        if dot <= begin:
            continue  # hidden, or without an ending: no part of a sample to any reader
        if entry.name[:dot] != current:
            if members:
                yield members
            members, current = {}, entry.name[:dot]
        members[entry.name[dot + 1 :].lower()] = entry
    if members:
        yield members


def _label(path: Path, file: int, members: dict[bytes, Entry], image: bytes) -> int | str:
    for ending in (b"cls", b"json", b"txt"):
        if ending not in members:
            continue
        entry = members[ending]
        data = os.pread(file, min(entry.size, LABEL_BYTES), entry.offset)
        if ending != b"json" and data.isdigit() and len(data) <= DIGITS:
            return int(data)  # as nearly all do
        label = _label_in_json(data) if ending == b"json" else decode_text(data, str(path)).strip()
        if label is None or label == "":
            continue
        number = NUMBER.fullmatch(str(label))
        if isinstance(label, float) or (number and number[1]):
            raise PrepareError(
                f"{path}: the sample of {text(image)} has the label {label}. Labels are whole "
                "numbers or names."
            )
        return int(label) if number else str(label)
    raise PrepareError(
        f"{path}: the sample of {text(image)} has no label. Expected one in .cls, .txt, or .json "
        f"({', '.join((*NUMBER_FIELDS, *NAME_FIELDS))})."
    )


def _label_in_json(data: bytes) -> int | float | str | None:
    try:
        fields: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    values = cast(dict[str, Any], fields)
    for name in (*NUMBER_FIELDS, *NAME_FIELDS):
        value = values.get(name)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return value
    return None


def _of_one_kind(path: Path, labels: list[int | str]) -> list[int] | list[str]:
    numbers = [label for label in labels if isinstance(label, int)]
    if 0 < len(numbers) < len(labels):
        raise PrepareError(f"{path} has names and numbers as labels.")
    return numbers if numbers else [str(label) for label in labels]


def _captions(folder: Path, listings: Mapping[str, Listing]) -> Iterator[str]:
    """A warning where texts next to images are no classes: nearly every image has its own."""
    for split, listing in listings.items():
        texts = sum(" " in name for name in listing.names)
        if 2 * texts > len(listing.names) and 2 * len(listing.names) > len(listing.name_of):
            yield (
                f"{folder} has {len(listing.names):,} classes for {len(listing.name_of):,} {split} "
                f"images, such as {listing.names[0][:60]!r}: are these captions?"
            )


def _class_names(folder: Path, listed: Mapping[str, Table], warnings: list[str]) -> Classes:
    """(wnid, names) in label order, as far as something says them; () if nothing does."""
    if TRAIN not in listed:
        return ()
    table = listed[TRAIN]
    labels: list[int] = np.asarray(table.labels).tolist()
    wnid_of: dict[int, bytes] = {}
    for name, label in zip(table.items.name.tolist(), labels, strict=True):
        match = re.match(rb"(n\d{8})_", name[name.rfind(b"/") + 1 :])
        if match is None or wnid_of.setdefault(label, match[1]) != match[1]:
            return ()
    highest = max(wnid_of, default=-1)
    gaps = highest >= max(len(wnid_of), len(ilsvrc2012()))
    if gaps or len(set(wnid_of.values())) < len(wnid_of):
        return ()
    wnids = [wnid_of[n].decode() if n in wnid_of else None for n in range(highest + 1)]
    table = [synset.wnid for synset in ilsvrc2012()]
    if all(wnid in (None, name) for wnid, name in zip(wnids, table, strict=False)):
        if len(wnid_of) < len(table):
            warnings.append(
                f"{folder} has labels of ILSVRC2012, of which {len(table) - len(wnid_of):,} have "
                "no training images."
            )
        return named(table, folder) if highest < len(table) else ()
    return named([str(wnid) for wnid in wnids], folder) if None not in wnids else ()
