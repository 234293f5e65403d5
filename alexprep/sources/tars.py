"""Images in tars, read where they are: every image is a byte range, nothing is extracted."""

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import ENODATA
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.content import (
    HEAD_BYTES,
    LARGEST_FILE,
    LFS_POINTER,
    Stray,
    both_names,
    has_image_ending,
    is_litter,
    is_side_car,
    objection,
    too_large,
)
from alexprep.sources.items import Items, Places, ReadAhead, Unreadable, chunks, concatenate, text
from alexprep.sources.listing import Listing, split_of
from alexprep.tar import Entry, scan_tar

# A disk answers several scattered header reads at once better than one after the other.
THREADS = 8
CLASS_TAR = b".tar"
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}


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


@contextmanager
def opened(path: Path) -> Generator[int]:
    """A descriptor of a tar; PrepareError for what plainly is none."""
    file = os.open(path, os.O_RDONLY)
    try:
        begin = os.pread(file, HEAD_BYTES, 0)
        kind = next((name for magic, name in COMPRESSED.items() if begin.startswith(magic)), None)
        if kind is not None:
            raise PrepareError(
                f"{path} is compressed ({kind}), and its images cannot be read one by one. Unpack "
                "it and give the folder that holds what was in it."
            )
        if not begin:
            raise PrepareError(f"{path} is empty (0 bytes). Download it again.")
        if begin.startswith(LFS_POINTER):
            raise PrepareError(f"{path} {objection(begin)}.")
        yield file
    finally:
        os.close(file)


def scan_images(
    path: Path, file: int, begin: int = 0, size: int | None = None
) -> tuple[list[Entry], list[Stray]]:
    """The images of the tar at `begin`, by their endings or else their content, and the others.

    What file managers leave behind is in neither, and no file that describes an image.
    """
    images: list[Entry] = []
    suspects: list[Entry] = []
    for entry in scan_tar(path, file, begin, size):
        plain = b"/" not in entry.name and entry.name[:1] != b"."
        if plain and has_image_ending(entry.name):
            images.append(entry)
        elif not _in_litter(entry.name):
            (images if has_image_ending(entry.name) else suspects).append(entry)
    suspects += [entry for entry in images if entry.size > LARGEST_FILE]
    if not suspects:
        return images, []
    images = [entry for entry in images if entry.size <= LARGEST_FILE]
    known = {name for entry in images for name in both_names(entry.name)}
    strays: list[Stray] = []
    for entry in suspects:
        head = os.pread(file, min(HEAD_BYTES, entry.size), entry.offset)
        reason = objection(head, entry.name) or too_large(entry.size)
        if reason is None:
            images.append(entry)
        elif not is_side_car(entry.name, known):
            strays.append(Stray(f"{path}/{text(entry.name)}", reason, _digest(file, entry)))
    return images, strays


def _digest(file: int, entry: Entry) -> str:
    if entry.size > LARGEST_FILE:
        return ""
    return hashlib.sha256(os.pread(file, entry.size, entry.offset)).hexdigest()


def _in_litter(name: bytes) -> bool:
    # Not every hidden name: some archive may hold an image of such a name.
    parts = text(name).split("/")
    return any(
        is_litter(part) and (not part.startswith(".") or part.startswith(("._", ".DS_Store")))
        for part in parts
    )


class ClassTars(dict[str, Tars]):
    """The images of every class, and what is no image in its tar."""

    def __init__(self) -> None:
        super().__init__()
        self._strays: dict[str, list[Stray]] = {}

    @property
    def strays(self) -> list[Stray]:
        return [stray for strays in self._strays.values() for stray in strays]

    def keep(self, names: Sequence[str]) -> None:
        """Forget what is wrong with the other classes: those without images, and strays."""
        for name in set(self) - set(names):
            self._strays.pop(name)
            if not len(self[name]):
                del self[name]

    def add(self, name: str, images: Tars, strays: list[Stray]) -> None:
        """Take in a class; PrepareError where it is there already."""
        if name in self:
            first, second = self[name].containers[0], images.containers[0]
            where = "twice" if first == second else f"and so does {second}"
            raise PrepareError(
                f"{first} has the class {name!r} {where}. Remove one of the two, or download the "
                "archive again."
            )
        self[name] = images
        self._strays[name] = strays

    def listing(self, path: Path) -> Listing:
        """All images; PrepareError for a class without any."""
        for name, images in self.items():
            if not len(images):
                raise PrepareError(
                    f"{images.containers[0]} has no images in {name}.tar. Download it again."
                )
        items = list(self.values())
        class_of = np.repeat(np.arange(len(items)), [len(images) for images in items])
        return Listing(concatenate(items), tuple(self), class_of.astype(np.int32), path)


def members_of(path: Path, entries: list[Entry], prefix: bytes = b"") -> Tars:
    """Members of one tar as items."""
    return Tars(
        containers=(str(path),),
        container=np.zeros(len(entries), np.int32),
        name=np.array([prefix + entry.name for entry in entries], dtype="S"),
        offset=np.array([entry.offset for entry in entries], np.int64),
        size=np.array([entry.size for entry in entries], np.int64),
    )


def tar_of_class_tars(path: Path) -> ClassTars:
    """The images of every class tar in an outer tar, as ILSVRC and ImageNet-21k are packed."""
    classes = ClassTars()
    with opened(path) as file:
        outer = [entry for entry in scan_tar(path, file) if not _in_litter(entry.name)]
        for entry in outer:
            if not entry.name.endswith(CLASS_TAR):
                raise PrepareError(
                    f"{path} holds {text(entry.name)!r}; expected a tar a class, as nWNID.tar. "
                    "Download it again."
                )
        if not outer:
            raise PrepareError(f"{path} holds no class tars. Download it again.")
        names = [entry.name.removesuffix(CLASS_TAR).rpartition(b"/")[2] for entry in outer]

        def scan(name: bytes, entry: Entry) -> tuple[Tars, list[Stray]]:
            # Arrays at once: a million entries of Python would take a third of the memory.
            images, strays = scan_images(path, file, entry.offset, entry.size)
            return members_of(path, images, name + b"/"), strays

        with ThreadPoolExecutor(THREADS) as pool:
            for name, (images, strays) in zip(names, pool.map(scan, names, outer), strict=True):
                classes.add(text(name), images, strays)
    return classes


def folder_of_class_tars(paths: Sequence[Path]) -> ClassTars:
    """The images of class tars, each named after its class."""

    def scan(path: Path) -> tuple[Tars, list[Stray]]:
        with opened(path) as file:
            images, strays = scan_images(path, file)
        return members_of(path, images), strays

    _refuse_splits(paths)
    classes = ClassTars()
    with ThreadPoolExecutor(THREADS) as pool:
        for path, (images, strays) in zip(paths, pool.map(scan, paths), strict=True):
            _refuse_tree(path, images, strays)
            classes.add(path.stem, images, strays)
    return classes


def _refuse_splits(paths: Sequence[Path]) -> None:
    """PrepareError for train.tar and val.tar, of which each would be a class."""
    named = [path.name for path in paths if split_of(path.stem)]
    if named and len(named) == len(paths):
        raise PrepareError(
            f"{paths[0].parent} has {', '.join(named)}, which are splits and no classes. Unpack "
            "each into a folder of its name, with a folder or a tar a class in it."
        )


def _refuse_tree(path: Path, images: Tars, strays: Sequence[Stray]) -> None:
    """PrepareError for a tar of class folders or class tars where a class was expected.

    A class may have folders, in a tar with one folder of its own name (ant.tar: ant/new/1.jpg).
    """
    folders = {name.rpartition(b"/")[0] for name in images.name.tolist()}
    folders = {text(name).removeprefix("./").removesuffix(".") for name in folders}
    inside = [f"{name}/" for name in sorted(folders)]
    if len(inside) == 1 or all(name.startswith(f"{path.stem}/") for name in inside):
        inside = [s.path.rpartition("/")[2] for s in strays if s.path.endswith(text(CLASS_TAR))]
    if inside:
        raise PrepareError(
            f"{path} would be one class, but holds {' and '.join(inside[:2])}. Unpack it, and give "
            "the folder with what was in it; if it is unpacked already, move it away."
        )


def replace_images(items: Tars, patch: Path, images: Sequence[Entry]) -> Tars:
    """The items, those with a namesake in the tar `patch` as they are there."""
    entries = {entry.name.rpartition(b"/")[2]: entry for entry in images}
    names = [name.rpartition(b"/")[2] for name in items.name.tolist()]
    indices = [index for index, name in enumerate(names) if name in entries]
    container, offset, size = items.container.copy(), items.offset.copy(), items.size.copy()
    container[indices] = len(items.containers)
    offset[indices] = [entries[names[index]].offset for index in indices]
    size[indices] = [entries[names[index]].size for index in indices]
    return replace(
        items,
        containers=(*items.containers, str(patch)),
        container=container,
        offset=offset,
        size=size,
    )


def kind_of_tar(path: Path) -> str:
    """What a tar holds: "classes" (tars), "shard" (images with labels), "images", or "tree"."""
    with opened(path) as file:
        names = [entry.name for entry in scan_tar(path, file) if not _in_litter(entry.name)]
    if names and all(name.endswith(CLASS_TAR) for name in names):
        return "classes"
    stems = {name.rpartition(b".")[0] for name in names if has_image_ending(name)}
    labelled = {name.rpartition(b".")[0] for name in names if name.lower().endswith(LABEL_ENDINGS)}
    if stems & labelled:
        return "shard"
    folders = {name.rpartition(b"/")[0] for name in names if has_image_ending(name)}
    return "tree" if len(folders) > 1 else "images"


LABEL_ENDINGS = (b".cls", b".txt", b".json")
