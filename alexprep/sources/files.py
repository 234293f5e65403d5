"""Images as files in folders: what lies where, and what of it is no image."""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from errno import EFBIG
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from alexprep.sources.content import (
    ARCHIVES,
    HEAD_BYTES,
    LARGEST_FILE,
    Stray,
    both_names,
    has_image_ending,
    is_litter,
    is_side_car,
    objection,
    too_large,
)
from alexprep.sources.items import Items, Places, ReadAhead, Unreadable, chunks, concatenate, text
from alexprep.sources.listing import TRAIN, VALIDATION, WHAT_IS_LOOKED_FOR, Listing, split_of

CIRCLE = "is a link to a folder that contains it"
# Folders that hold the images of a split or class rather than being a class (Tiny-ImageNet).
IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs", "jpeg", "jpegs", "jpegimages"})


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

    def read(self, limit: int | None = None) -> Generator[bytes | Unreadable]:
        def open_file(index: int) -> int:
            folder = os.fsencode(self.containers[int(self.container[index])])
            # What has become a FIFO since it was listed must not block.
            return os.open(folder + b"/" + self.name[index], os.O_RDONLY | os.O_NONBLOCK)

        def byte_range(index: int) -> tuple[int, int]:
            return 0, int(self.size[index])

        def content(descriptor: int, index: int) -> bytes:
            # To its end, not to the size it was listed with: it may have been written to since.
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                data = file.read(LARGEST_FILE + 1 if limit is None else limit)
            if len(data) > LARGEST_FILE:
                raise OSError(EFBIG, os.strerror(EFBIG))
            return data

        reader = ReadAhead(items=self, open_file=open_file, byte_range=byte_range, read=content)
        return reader.contents()


@dataclass(slots=True)
class Folder:
    """Everything under a folder that stands for a class, or for a split without class folders.

    `files` are (path under it, bytes); `counts` has the number of files that are named like images
    directly in each of its folders, "" being itself; `folders` are those directly in it.
    """

    path: Path
    files: list[tuple[bytes, int]] = field(default_factory=list[tuple[bytes, int]])
    strays: list[Stray] = field(default_factory=list[Stray])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def folders(self) -> list[str]:
        return sorted(name for name in self.counts if name and "/" not in name)

    def holds_images(self, below: str) -> bool:
        """Whether a file in or under the folder `below` may be an image, by its ending."""
        prefix = os.fsencode(below + "/")
        return any(name.startswith(prefix) and has_image_ending(name) for name, _ in self.files)


class Branch(NamedTuple):
    """A split as it is stored: its class folders by name, and the files next to them."""

    path: Path
    classes: dict[str, Folder]
    loose: Folder


def walk(path: Path) -> Folder:
    """List everything under a folder; nothing is opened, and links in a circle are strays."""
    folder = Folder(path)
    _visit(folder, "")
    return folder


def _visit(folder: Folder, below: str) -> None:
    begin = len(folder.files)
    try:
        inner = _list(folder, below)
    except PermissionError as error:
        path = f"{folder.path}/{below}".rstrip("/")
        folder.strays.append(Stray(path, f"cannot be read ({error.strerror})"))
        inner = []
    images = sum(has_image_ending(name) for name, _ in folder.files[begin:])
    folder.counts[below.rstrip("/")] = images
    for name in inner:
        _visit(folder, f"{below}{name}/")


def _list(folder: Folder, below: str) -> list[str]:
    """Add what lies directly in one of its folders, `below`; the folders in that."""
    inner: list[str] = []
    with os.scandir(folder.path / below) as entries:
        for entry in entries:
            if is_litter(entry.name):
                continue
            if _is_circle(entry):
                folder.strays.append(Stray(entry.path, CIRCLE))
            elif _is_folder(entry):
                inner.append(entry.name)
            elif (reason := irregular(entry)) is not None:
                folder.strays.append(Stray(entry.path, reason))
            else:
                folder.files.append((os.fsencode(below + entry.name), entry.stat().st_size))
    return inner


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: `irregular` says so
        return False


def _is_circle(entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink():
        return False
    inside, target = os.path.realpath(Path(entry.path).parent), os.path.realpath(entry.path)
    return inside == target or inside.startswith(target.rstrip("/") + "/")


def irregular(entry: os.DirEntry[str]) -> str | None:
    """Why something that is no folder is no file either, as the end of a sentence."""
    try:
        if entry.is_file():
            image = has_image_ending(os.fsencode(entry.name))
            return too_large(entry.stat().st_size) if image else None
        entry.stat()
    except OSError as error:
        kind = "is a broken link" if entry.is_symlink() else "cannot be read"
        return f"{kind} ({error.strerror})"
    return "is not a regular file but a pipe, socket or device"


def read_branch(path: Path) -> Branch:
    """List the class folders of a split, each with all that is under it."""
    loose = Folder(path)
    classes = {name: walk(path / name) for name in sorted(_list(loose, ""))}
    loose.files.sort()
    return Branch(path, classes, loose)


def merged(branch: Branch) -> Folder:
    """A split without classes as one folder."""
    folder = Folder(branch.path, list(branch.loose.files))
    for name, inner in branch.classes.items():
        folder.files += [(os.fsencode(f"{name}/") + path, size) for path, size in inner.files]
        folder.strays += inner.strays
    return folder


def sort_out(folder: Folder, known: Sequence[str] = ()) -> None:
    """Take out of `files` what is no image: side-cars and `known` names, else it is a stray.

    Files that are named like an image are not opened.
    """
    suspects = [file for file in folder.files if not has_image_ending(file[0])]
    if not suspects:
        return
    kept = [file for file in folder.files if has_image_ending(file[0])]
    images = {name for path, _ in kept for name in both_names(path)}
    for file in suspects:
        path = os.path.join(os.fsencode(folder.path), file[0])  # noqa: PTH118 - names are bytes
        reason = _look(path) or too_large(file[1])
        if reason is None:
            kept.append(file)
        elif not is_side_car(file[0], images) and text(file[0]) not in known:
            folder.strays.append(Stray(text(path), reason))
    folder.files = kept


def _look(path: bytes) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - names are bytes
            return objection(file.read(HEAD_BYTES), path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder` that are named after a split; two of one split are refused."""
    splits: dict[str, Path] = {}
    for name in folder_names(folder):
        split = split_of(name)
        if split is None:
            continue
        if split in splits:
            raise PrepareError(
                f"{folder} has both {splits[split].name}/ and {name}/ for the {split} split. "
                "Remove or rename one of them."
            )
        splits[split] = folder / name
    return {} if _is_class(folder, splits) else splits


def _is_class(folder: Path, splits: Mapping[str, Path]) -> bool:
    """Whether the only "split" is a class of that name (bus, car, train) among others."""
    if len(splits) != 1:
        return False
    (path,) = splits.values()
    others = [folder / name for name in folder_names(folder) if name != path.name]
    return not folder_names(path) and any(
        not folder_names(other) and has_images(other) for other in others
    )


def folder_names(folder: Path) -> list[str]:
    """The folders directly in `folder` that may matter, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not is_litter(e.name) and _is_folder(e))


def has_images(folder: Path, most: int = 1000) -> bool:
    """Whether one of the first `most` files directly in `folder` is named like an image."""
    try:
        with os.scandir(folder) as entries:
            return any(
                has_image_ending(os.fsencode(entry.name)) and not is_litter(entry.name)
                for _, entry in zip(range(most), entries, strict=False)
            )
    except OSError:
        return False


def list_folders(folders: Mapping[str, Folder], path: Path) -> Listing:
    """Every file of each class folder; a class without any is refused."""
    for folder in folders.values():
        if not folder.files:
            others = f" but {len(folder.strays):,} that are no images" if folder.strays else ""
            raise PrepareError(
                f"{folder.path} has no files{others}, so its class would have no images. "
                "Put images there or remove the folder."
            )
    items = [files_of(folder) for folder in folders.values()]
    class_of = np.repeat(np.arange(len(items)), [len(each) for each in items])
    return Listing(concatenate(items), tuple(folders), class_of.astype(np.int32), path)


def files_of(folder: Folder) -> Files:
    """The files of one folder as items."""
    return Files(
        containers=(str(folder.path),),
        container=np.zeros(len(folder.files), np.int32),
        name=np.array([name for name, _ in folder.files], dtype="S"),
        size=np.array([size for _, size in folder.files], np.int64),
    )


def refuse_no_classes(folder: Path, branches: Mapping[str, Branch]) -> None:
    """PrepareError for a source without class folders, and for training images without."""
    loose = {split: branch for split, branch in branches.items() if not branch.classes}
    if TRAIN not in loose and any(branch.classes for branch in branches.values()):
        return
    train = branches.get(TRAIN)
    if train is not None and any(has_image_ending(name) for name, _ in train.loose.files):
        raise PrepareError(
            f"{train.path} holds images but no class folders, so nothing says their classes. "
            "Give the folder above it if that has a folder a class, or sort the images into such."
        )
    if train is not None or VALIDATION not in loose or not loose[VALIDATION].loose.files:
        paths = [
            path
            for parent in (folder, *(branch.path for branch in branches.values()))
            for path in sorted(parent.iterdir())
            if os.fsencode(path.name.lower()).endswith(ARCHIVES) and not is_litter(path.name)
        ]
        hint = f"It holds {paths[0].relative_to(folder)}: unpack it first. " if paths else ""
        raise PrepareError(f"{folder} has no class folders. {hint}{WHAT_IS_LOOKED_FOR}")
