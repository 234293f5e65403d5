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
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.machine import cores
from alexprep.sources.content import has_image_ending, is_litter
from alexprep.sources.items import text
from alexprep.sources.listing import (
    SPLIT_WORDS,
    TRAIN,
    Listing,
    Source,
    SourceOptions,
    integer_classes,
    label_space,
    make_source,
    split_of,
    with_findings,
)
from alexprep.sources.synsets import ilsvrc2012, named
from alexprep.sources.tars import Tars, kind_of_tar, opened
from alexprep.tar import Entry, scan_tar
from alexprep.workers import run_tasks
from pipelines.format import MANIFEST, Manifest

LABEL_BYTES = 65_536
# Fields of a .json that name the class, by number or by name.
NUMBER_FIELDS = ("label", "cls", "class_id", "label_id", "target")
NAME_FIELDS = ("wnid", "synset", "class_name", "label_name", "class")
# Fewer tars than this are listed faster than processes start.
FEW_TARS = 16


class Shard(NamedTuple):
    """What a tar lists: arrays over samples, and labels that are all numbers or all names."""

    name: NDArray[np.bytes_]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
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
    words = re.split(r"[^a-z]+", path.stem.lower())
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else TRAIN


def shard_source(
    folder: Path, by_split: Mapping[str, list[Path]], options: SourceOptions
) -> Source:
    """The samples of WebDataset tars, labelled as they are.

    Numbers go with the classes of a manifest of ours, or with the wnids that the keys begin with;
    names are classes in their order. Tars of a split whose labels are all -1 are left out.
    """
    warnings: list[str] = []
    listed = {split: _list_tars(paths) for split, paths in by_split.items()}
    listed = {s: table for s, table in listed.items() if set(table[1]) != {-1}}
    kinds: set[type] = {type(label) for _, labels in listed.values() for label in labels[:1]}
    if len(kinds) > 1:
        raise PrepareError(f"{folder} has splits with names and with numbers as labels.")
    paths = {split: by_split[split][0].parent for split in listed}
    if kinds == {str}:
        listings = {split: _by_name(*table, paths[split]) for split, table in listed.items()}
        classes = named(label_space(listings, options.classes), folder)
    else:
        used = {split: {int(label) for label in labels} for split, (_, labels) in listed.items()}
        names = _class_names(folder, listed, warnings)
        classes = names if names else integer_classes(folder, [], used, warnings)
        wnids = tuple(wnid for wnid, _ in classes)
        if max(map(max, used.values()), default=0) >= len(wnids):
            raise PrepareError(f"{folder} has labels beyond its {len(wnids):,} classes.")
        listings = {
            split: Listing(items, wnids, np.array(labels, np.int32), paths[split])
            for split, (items, labels) in listed.items()
        }
        if options.classes is not None:
            words = dict(classes)
            classes = tuple((w, words[w]) for w in label_space(listings, options.classes))
    source = make_source("shards", folder, classes, listings)
    return with_findings(source, (), warnings)


def _list_tars(paths: Sequence[Path]) -> tuple[Tars, list[Any]]:
    workers = min(cores(), len(paths)) if len(paths) >= FEW_TARS else 1
    shards: list[Shard | None] = [None] * len(paths)
    with closing(run_tasks(list_shard, paths, workers=workers)) as results:
        for number, shard in results:
            shards[number] = shard
    whole = [shard for shard in shards if shard is not None]
    kinds = {type(shard.labels[0]) for shard in whole if shard.labels}
    if len(kinds) > 1:
        raise PrepareError(f"{paths[0].parent} has tars with names and with numbers as labels.")
    counts = [len(shard.labels) for shard in whole]
    items = Tars(
        containers=tuple(map(str, paths)),
        container=np.repeat(np.arange(len(paths), dtype=np.int32), counts),
        name=np.concatenate([shard.name for shard in whole]),
        offset=np.concatenate([shard.offset for shard in whole]),
        size=np.concatenate([shard.size for shard in whole]),
    )
    return items, [label for shard in whole for label in shard.labels]


def list_shard(path: Path) -> Shard:
    """The samples of one tar. Runs in a worker."""
    images: list[Entry] = []
    labels: list[int | str] = []
    with opened(path) as file:
        for members in _samples(scan_tar(path, file)):
            image = [entry for ending, entry in members.items() if has_image_ending(ending)]
            if len(image) != 1:
                key = next(iter(members.values())).name
                raise PrepareError(
                    f"{path}: the sample of {text(key)} has {len(image)} images; expected one, "
                    "with a label in .cls, .json or .txt."
                )
            images += image
            labels.append(_label(path, file, members, image[0].name))
    return Shard(
        np.array([entry.name for entry in images], "S"),
        np.array([entry.offset for entry in images], np.int64),
        np.array([entry.size for entry in images], np.int64),
        _of_one_kind(path, labels),
    )


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
        label = (
            _label_in_json(data) if ending == b"json" else data.strip().decode("utf-8", "replace")
        )
        if label is not None and label != "":
            return int(label) if re.fullmatch(r"-?\d+", str(label)) else str(label)
    raise PrepareError(
        f"{path}: the sample of {text(image)} has no label. Expected one in .cls, .txt, or .json "
        f"({', '.join((*NUMBER_FIELDS, *NAME_FIELDS))})."
    )


def _label_in_json(data: bytes) -> int | str | None:
    try:
        fields: Any = json.loads(data)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    values = cast(dict[str, Any], fields)
    for name in (*NUMBER_FIELDS, *NAME_FIELDS):
        value = values.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool):
            return value
    return None


def _of_one_kind(path: Path, labels: list[int | str]) -> list[int] | list[str]:
    numbers = [label for label in labels if isinstance(label, int)]
    if 0 < len(numbers) < len(labels):
        raise PrepareError(f"{path} has names and numbers as labels.")
    return numbers if numbers else [str(label) for label in labels]


def _by_name(items: Tars, labels: list[Any], folder: Path) -> Listing:
    names, name_of = np.unique(np.array(labels, object), return_inverse=True)
    return Listing(items, tuple(map(str, names)), name_of.astype(np.int32), folder)


def _class_names(
    folder: Path, listed: Mapping[str, tuple[Tars, list[Any]]], warnings: list[str]
) -> tuple[tuple[str, str], ...]:
    """(wnid, names) in label order, as far as something says them; () if nothing does."""
    if (folder / MANIFEST).is_file():
        manifest = Manifest.load(folder)
        warnings.append(
            f"{folder} is a finished data set: its images are {manifest.size} x {manifest.size} "
            "pixels, cropped and compressed once already."
        )
        return manifest.classes
    if TRAIN not in listed:
        return ()
    items, labels = listed[TRAIN]
    wnid_of: dict[int, bytes] = {}
    for name, label in zip(items.name.tolist(), labels, strict=True):
        match = re.match(rb"(n\d{8})_", name[name.rfind(b"/") + 1 :])
        if match is None or wnid_of.setdefault(label, match[1]) != match[1]:
            return ()
    highest = max(wnid_of, default=-1)
    if len(set(wnid_of.values())) < len(wnid_of):
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
