"""The official archives as downloaded, read where they are: every image is a byte range."""

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.ilsvrc import TRAIN_TAR, VALIDATION_TAR, validation_truth
from alexprep.sources.items import Items, Places, chunks, read_announced
from alexprep.sources.listing import TRAIN, VALIDATION, Listing, Source, make_source
from alexprep.sources.synsets import ilsvrc2012, named
from alexprep.tar import Entry, scan_tar

# A disk answers several scattered header reads at once better than one after the other.
THREADS = 8
CLASS_TAR = b".tar"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Tars(Items):
    """Byte ranges of tars: a container is a tar, and data of `size` bytes begins at `offset`."""

    sequential: ClassVar = "probe"
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    @property
    def fingerprint(self) -> NDArray[np.int64]:
        return self.size

    def neighbours(self) -> Iterator[Places]:
        yield from chunks(np.lexsort((self.offset, self.container)), self.size)

    def read(self) -> Generator[bytes]:
        # Every tar is opened once; each item gets a duplicate that its reader may close.
        tars: dict[int, int] = {}

        def open_file(index: int) -> int:
            container = int(self.container[index])
            if container not in tars:
                tars[container] = os.open(self.containers[container], os.O_RDONLY)
            return os.dup(tars[container])

        def byte_range(index: int) -> tuple[int, int]:
            return int(self.offset[index]), int(self.size[index])

        def content(descriptor: int, index: int) -> bytes:
            begin, size = byte_range(index)
            data = os.pread(descriptor, size, begin)
            if len(data) != size:
                raise OSError(EIO, f"it ends {size - len(data):,} bytes early")
            return data

        try:
            yield from read_announced(self, open_file, byte_range, content)
        finally:
            for descriptor in tars.values():
                os.close(descriptor)


def archive_source(folder: Path) -> Source:
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or both, with the devkit beside them."""
    train, validation = folder / TRAIN_TAR, folder / VALIDATION_TAR
    found: dict[str, Listing] = {}
    wnids = [synset.wnid for synset in ilsvrc2012()]
    if train.is_file():
        by_class = _scan_train(train)
        wnids = sorted(by_class)
        found[TRAIN] = _listing(train, by_class, wnids)
    if validation.is_file():
        found[VALIDATION] = _listing(validation, _scan_validation(validation), wnids)
    return make_source("archives", folder, named(wnids, folder), found)


def _scan_train(path: Path) -> dict[str, list[Entry]]:
    """The images of every class tar in the outer tar."""
    file = os.open(path, os.O_RDONLY)
    try:
        outer = scan_tar(path, file)
        for entry in outer:
            if not entry.name.endswith(CLASS_TAR):
                raise PrepareError(
                    f"{path} holds {entry.name!r}; expected a tar a class, as nWNID.tar. "
                    "Download it again."
                )

        def scan(entry: Entry) -> list[Entry]:
            return scan_tar(path, file, entry.offset, entry.size)

        with ThreadPoolExecutor(THREADS) as pool:
            inner = list(pool.map(scan, outer))
    finally:
        os.close(file)
    by_class: dict[str, list[Entry]] = {}
    for entry, images in zip(outer, inner, strict=True):
        wnid = entry.name.removesuffix(CLASS_TAR).rpartition(b"/")[2].decode("utf-8", "replace")
        if not images:
            raise PrepareError(f"{path} has no images in {wnid}.tar. Download it again.")
        by_class[wnid] = [
            Entry(f"{wnid}/".encode() + image.name, image.offset, image.size) for image in images
        ]
    return by_class


def _scan_validation(path: Path) -> dict[str, list[Entry]]:
    file = os.open(path, os.O_RDONLY)
    try:
        entries = scan_tar(path, file)
    finally:
        os.close(file)
    truth = validation_truth(path.parent, [entry.name for entry in entries])
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(truth[entry.name], []).append(entry)
    return by_class


def _listing(path: Path, by_class: Mapping[str, list[Entry]], wnids: list[str]) -> Listing:
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    if strangers := sorted(set(by_class) - set(labels)):
        raise PrepareError(
            f"{path} has images of {strangers[0]!r}, a class that the training images lack. "
            "Take archives that belong together."
        )
    entries = [entry for images in by_class.values() for entry in images]
    label = np.repeat(
        np.array([labels[wnid] for wnid in by_class], np.int32),
        [len(images) for images in by_class.values()],
    )
    items = Tars(
        containers=(str(path),),
        container=np.zeros(len(entries), np.int32),
        name=np.array([entry.name for entry in entries], dtype="S"),
        offset=np.array([entry.offset for entry in entries], np.int64),
        size=np.array([entry.size for entry in entries], np.int64),
    )
    return Listing(label, items)
