"""Folders of class folders, with or without splits, the extracted ILSVRC tree and Kaggle's."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from alexprep.errors import PrepareError
from alexprep.sources import (
    SPLIT_FOLDERS,
    TRAIN,
    WHAT_IS_LOOKED_FOR,
    Items,
    Listing,
    Source,
    make_source,
)
from alexprep.synsets import named

# What file managers leave behind; nobody means these as images.
LITTER = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})


def folder_source(folder: Path) -> Source:
    """Class folders in FOLDER, or in FOLDER/train and FOLDER/val, validation or test."""
    splits = _split_folders(folder) or {TRAIN: folder}
    classes = _classes(folder, splits)
    labels = {wnid: label for label, (wnid, _) in enumerate(classes)}
    found = {
        split: listing((path / wnid, labels[wnid]) for wnid in _folders(path))
        for split, path in splits.items()
    }
    return make_source("folder", folder, classes, found)


def _split_folders(folder: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for name in _folders(folder):
        split = SPLIT_FOLDERS.get(name.lower())
        if split is None:
            continue
        if split in splits:
            raise PrepareError(
                f"{folder} has both {splits[split].name}/ and {name}/ for the {split} split. "
                "Remove or rename one of them."
            )
        splits[split] = folder / name
    return splits


def _classes(folder: Path, splits: Mapping[str, Path]) -> tuple[tuple[str, str], ...]:
    """The classes of the training split, or of all where there is none; strangers are refused."""
    by_split = {split: set(_folders(path)) for split, path in splits.items()}
    wnids = by_split.get(TRAIN) or set[str]().union(*by_split.values())
    if not wnids:
        raise PrepareError(f"{folder} has no class folders. {WHAT_IS_LOOKED_FOR}")
    for split, there in by_split.items():
        if strangers := sorted(there - wnids):
            raise PrepareError(
                f"{splits[split]} has {len(strangers)} class folders that {splits[TRAIN]} has not, "
                f"the first is {strangers[0]!r}. Labels come from the training folders: add or "
                "remove them."
            )
    return named(sorted(wnids), folder)


def listing(folders: Iterable[tuple[Path, int]]) -> Listing:
    """Every file under each folder, with that folder's label; an empty folder is refused."""
    containers: list[str] = []
    counts: list[int] = []
    labels: list[int] = []
    names: list[bytes] = []
    sizes: list[int] = []
    for folder, label in folders:
        before = len(names)
        for name, size in walk(folder):
            names.append(name)
            sizes.append(size)
        if len(names) == before:
            raise PrepareError(
                f"{folder} has no files, so its class would have no images. "
                "Put images there or remove the folder."
            )
        containers.append(str(folder))
        labels.append(label)
        counts.append(len(names) - before)
    place = np.repeat(np.arange(len(containers), dtype=np.int32), counts)
    items = Items(
        "files",
        tuple(containers),
        place,
        np.array(names, dtype="S"),
        np.zeros(len(names), np.int64),
        np.array(sizes, np.int64),
    )
    return Listing(np.array(labels, np.int32)[place], items)


def walk(folder: Path, below: str = "") -> Iterator[tuple[bytes, int]]:
    """(path under `folder`, size in bytes) of every file that is not hidden, in any order."""
    with os.scandir(folder / below) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in LITTER:
                continue
            if entry.is_dir():
                yield from walk(folder, f"{below}{entry.name}/")
            else:
                yield os.fsencode(below + entry.name), entry.stat().st_size


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in LITTER
        )
