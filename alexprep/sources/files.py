"""Folders of class folders, with or without splits, the extracted ILSVRC tree and Kaggle's."""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.ilsvrc import MAPPING, validation_truth
from alexprep.sources.items import Items, Places, chunks, read_announced
from alexprep.sources.listing import (
    SPLIT_FOLDERS,
    TRAIN,
    VALIDATION,
    WHAT_IS_LOOKED_FOR,
    Listing,
    Source,
    make_source,
)
from alexprep.sources.synsets import ilsvrc2012, named

# What file managers leave behind; nobody means these as images.
LITTER = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Files(Items):
    """Files in folders: a container is a folder, a name the path under it, a size in bytes."""

    sequential: ClassVar = "never"
    size: NDArray[np.int64]

    @property
    def fingerprint(self) -> NDArray[np.int64]:
        return self.size

    def neighbours(self) -> Iterator[Places]:
        yield from chunks(np.argsort(self.container, kind="stable"), self.size)

    def read(self) -> Generator[bytes]:
        def open_file(index: int) -> int:
            folder = os.fsencode(self.containers[int(self.container[index])])
            return os.open(folder + b"/" + self.name[index], os.O_RDONLY)

        def content(descriptor: int, index: int) -> bytes:
            # To its end, not to the size it was listed with: it may have been written to since.
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read()

        return read_announced(self, open_file, lambda index: (0, int(self.size[index])), content)


def folder_source(folder: Path) -> Source:
    """Class folders in FOLDER, or in FOLDER/train and FOLDER/val, validation or test."""
    return _tree("folder", folder, folder, _split_folders(folder) or {TRAIN: folder})


def kaggle_source(root: Path, images: Path) -> Source:
    """Kaggle's tree: `images` is ROOT/ILSVRC/Data/CLS-LOC, ROOT has LOC_val_solution.csv."""
    return _tree("kaggle", root, images, _split_folders(images))


def _tree(kind: str, root: Path, images: Path, splits: Mapping[str, Path]) -> Source:
    """`root` holds what tells about the images: synsets.txt, the devkit, Kaggle's lists."""
    by_split = {split: _folders(path) for split, path in splits.items()}
    flat = {split for split, folders in by_split.items() if not folders}
    # ILSVRC's test images have no labels; its validation images have theirs in a file.
    labelled = {split: path for split, path in splits.items() if split not in flat - {VALIDATION}}
    wnids = _classes(images, labelled, by_split)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    found: dict[str, Listing] = {}
    for split, path in labelled.items():
        if split in flat:
            found[split] = _flat_listing(path, root, labels)
        else:
            found[split] = listing((path / wnid, labels[wnid]) for wnid in by_split[split])
    return make_source(kind, root, named(wnids, root, MAPPING), found)


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


def _classes(
    folder: Path, splits: Mapping[str, Path], by_split: Mapping[str, list[str]]
) -> list[str]:
    """The classes of the training split, or of all where there is none; strangers are refused."""
    wnids = sorted(by_split.get(TRAIN) or set[str]().union(*by_split.values()))
    if not wnids and VALIDATION in splits and _has_files(splits[VALIDATION]):
        return [synset.wnid for synset in ilsvrc2012()]
    if not wnids:
        raise PrepareError(f"{folder} has no class folders. {WHAT_IS_LOOKED_FOR}")
    for split in splits:
        if strangers := sorted(set(by_split[split]) - set(wnids)):
            raise PrepareError(
                f"{splits[split]} has {len(strangers)} class folders that {splits[TRAIN]} has not, "
                f"the first is {strangers[0]!r}. Labels come from the training folders: add or "
                "remove them."
            )
    return wnids


def listing(folders: Iterable[tuple[Path, int]]) -> Listing:
    """Every file under each folder, with that folder's label; an empty folder is refused."""
    containers: list[str] = []
    counts: list[int] = []
    labels: list[int] = []
    files: list[tuple[bytes, int]] = []
    for folder, label in folders:
        before = len(files)
        files += walk(folder)
        if len(files) == before:
            raise PrepareError(
                f"{folder} has no files, so its class would have no images. "
                "Put images there or remove the folder."
            )
        containers.append(str(folder))
        labels.append(label)
        counts.append(len(files) - before)
    container = np.repeat(np.arange(len(containers), dtype=np.int32), counts)
    return Listing(np.array(labels, np.int32)[container], _items(containers, container, files))


def _flat_listing(folder: Path, root: Path, labels: Mapping[str, int]) -> Listing:
    """Validation images in one folder, their classes from the devkit or Kaggle's list."""
    files = list(walk(folder))
    if not files:
        raise PrepareError(f"{folder} has no files. Put the validation images there or remove it.")
    truth = validation_truth(root, [name for name, _ in files])
    wnids = [truth[name] for name, _ in files]
    if strangers := sorted(set(wnids) - set(labels)):
        raise PrepareError(
            f"{folder} has images of {strangers[0]!r}, a class that the training folders lack. "
            "Labels come from the training folders: add it there."
        )
    label = np.array([labels[wnid] for wnid in wnids], np.int32)
    return Listing(label, _items([str(folder)], np.zeros(len(files), np.int32), files))


def _items(
    containers: list[str], container: NDArray[np.int32], files: list[tuple[bytes, int]]
) -> Files:
    return Files(
        containers=tuple(containers),
        container=container,
        name=np.array([name for name, _ in files], dtype="S"),
        size=np.array([size for _, size in files], np.int64),
    )


def walk(folder: Path, below: str = "") -> Iterator[tuple[bytes, int]]:
    """(path under `folder`, bytes) of every file that is not hidden, in any order."""
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


def _has_files(folder: Path) -> bool:
    return next(walk(folder), None) is not None
