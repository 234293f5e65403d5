"""The official archives as downloaded, read where they are: every image is a byte range."""

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import ENODATA
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.ilsvrc import TRAIN_TAR, VALIDATION_TAR, find_truth
from alexprep.sources.items import Items, Places, ReadAhead, Unreadable, chunks
from alexprep.sources.listing import (
    TRAIN,
    VALIDATION,
    Listing,
    Source,
    SourceOptions,
    label_space,
    make_source,
)
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

    def read(self, limit: int | None = None) -> Generator[bytes | Unreadable]:
        # Every tar is opened once; each item gets a duplicate that its reader may close.
        tars: dict[int, int] = {}

        def open_file(index: int) -> int:
            container = int(self.container[index])
            if container not in tars:
                tars[container] = os.open(self.containers[container], os.O_RDONLY)
            return os.dup(tars[container])

        def byte_range(index: int) -> tuple[int, int]:
            size = int(self.size[index])
            return int(self.offset[index]), size if limit is None else min(size, limit)

        def content(descriptor: int, index: int) -> bytes:
            begin, size = byte_range(index)
            data = os.pread(descriptor, size, begin)
            if len(data) != size:
                raise OSError(ENODATA, f"it ends {size - len(data):,} bytes early")
            return data

        try:
            reader = ReadAhead(items=self, open_file=open_file, byte_range=byte_range, read=content)
            yield from reader.contents()
        finally:
            for descriptor in tars.values():
                os.close(descriptor)


def archive_source(folder: Path, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, or both, with the devkit next to them."""
    train, validation = folder / TRAIN_TAR, folder / VALIDATION_TAR
    listings: dict[str, Listing] = {}
    if train.is_file():
        listings[TRAIN] = _listing(train, _scan_train(train))
    if validation.is_file():
        listings[VALIDATION] = _listing(validation, _scan_validation(validation))
    if TRAIN in listings or options.classes is not None:
        wnids = label_space(listings, options.classes)
    else:
        wnids = [synset.wnid for synset in ilsvrc2012()]
    return make_source("archives", folder, named(wnids, folder), listings)


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
    truth = find_truth([path.parent], [entry.name for entry in entries])
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(truth[entry.name], []).append(entry)
    return by_class


def _listing(path: Path, by_class: Mapping[str, list[Entry]]) -> Listing:
    entries = [entry for images in by_class.values() for entry in images]
    counts = [len(images) for images in by_class.values()]
    items = Tars(
        containers=(str(path),),
        container=np.zeros(len(entries), np.int32),
        name=np.array([entry.name for entry in entries], dtype="S"),
        offset=np.array([entry.offset for entry in entries], np.int64),
        size=np.array([entry.size for entry in entries], np.int64),
    )
    index = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Listing(items, tuple(by_class), index, path)
