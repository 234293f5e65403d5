"""Where the bytes of samples are, whatever they are stored in: arrays that run over samples.

Each kind of storage has its own class, next to the code that lists it: `files.Files`, `tars.Tars`
and `rows.Rows`. They are small to pickle, since workers on any machine get the part they read.
"""

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from errno import EACCES, EIO, EISDIR, ELOOP, EPERM
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError

Names = NDArray[np.bytes_]
Places = NDArray[np.intp]

# Sources are read in the order of the output, all over the disk: with this many reads announced
# ahead the device has a queue to work on while an image is decoded.
AHEAD = 16
# What a worker reads at a time in the order of the source: long enough for a disk to be at its
# sequential rate, short enough that several workers stay close together.
CHUNK_BYTES = 32_000_000
CHUNK_IMAGES = 512

# Errors of one file; with any other the source has changed or gone, and the run ends.
OWN_FAULTS = frozenset({EACCES, EPERM, EIO, ELOOP, EISDIR})


class Unreadable(NamedTuple):
    """What stands for the content of a sample that cannot be read: why, as a sentence's end."""

    reason: str


def distinct(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """As np.unique, which imports the .014 s of numpy.ma to ask whether they are masked."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Items:
    """Samples in containers: `name[i]` is stored in `containers[container[i]]`.

    `sequential` says whether reading in any other order than `neighbours()` costs more.
    """

    sequential: ClassVar[Literal["always", "probe", "never"]]

    containers: tuple[str, ...]
    container: NDArray[np.int32]
    name: Names

    def __len__(self) -> int:
        return len(self.name)

    def select(self, indices: Places) -> Self:
        """The samples at `indices`, with the containers that they use."""
        container = self.container[indices]
        used = distinct(container)
        containers: list[int] = used.tolist()
        return replace(
            self,
            containers=tuple(self.containers[number] for number in containers),
            container=np.searchsorted(used, container).astype(np.int32),
            **{name: column[indices] for name, column in self.columns().items()},
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """The arrays over samples, but for `container`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["container"]
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def path(self, index: int) -> str:
        """The path a person would look for."""
        return f"{self.containers[self.container[index]]}/{text(self.name[index])}"

    @property
    @abstractmethod
    def fingerprint(self) -> NDArray[np.int64]:
        """What tells this sample from another of the same key; part of a data set's identity."""

    @abstractmethod
    def neighbours(self) -> Iterator[Places]:
        """All samples in the order they are stored, in pieces that one worker should read."""

    @abstractmethod
    def read(self, limit: int | None = None) -> Generator[bytes | Unreadable]:
        """The content of each sample in order, or its first `limit` bytes.

        A sample that is at fault itself (no permission, bad sectors) is Unreadable; PrepareError
        where the source is. Close it when it is left early (`contextlib.closing`).
        """


ItemsOfKind = TypeVar("ItemsOfKind", bound=Items)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Joined(Items):
    """Samples of several kinds of storage as one: item i is `place[i]` of `parts[part[i]]`.

    `containers` is not used; each part has its own.
    """

    sequential: ClassVar = "probe"
    parts: tuple[Items, ...]
    part: NDArray[np.int32]
    place: Places

    @property
    def fingerprint(self) -> NDArray[np.int64]:
        values = np.zeros(len(self), np.int64)
        for number, items in enumerate(self.parts):
            indices = np.flatnonzero(self.part == number)
            values[indices] = items.fingerprint[self.place[indices]]
        return values

    def select(self, indices: Places) -> Self:
        part, place = self.part[indices], np.zeros(len(indices), np.intp)
        parts: list[Items] = []
        for number, items in enumerate(self.parts):
            chosen = np.flatnonzero(part == number)
            parts.append(items.select(self.place[indices][chosen]))
            place[chosen] = np.arange(len(chosen))
        return replace(
            self,
            container=self.container[indices],
            name=self.name[indices],
            parts=tuple(parts),
            part=part,
            place=place,
        )

    def path(self, index: int) -> str:
        return self.parts[int(self.part[index])].path(int(self.place[index]))

    def neighbours(self) -> Iterator[Places]:
        for number, items in enumerate(self.parts):
            index_of = np.zeros(len(items), np.intp)
            indices = np.flatnonzero(self.part == number)
            index_of[self.place[indices]] = indices
            for piece in items.neighbours() if len(items) else ():
                yield index_of[piece]

    def read(self, limit: int | None = None) -> Generator[bytes | Unreadable]:
        # The items of a part come in the order of the whole, so each part is read once in its own.
        readers = [
            items.select(self.place[self.part == number]).read(limit)
            for number, items in enumerate(self.parts)
        ]
        try:
            for number in self.part:
                yield next(readers[int(number)])
        finally:
            for reader in readers:
                reader.close()


def concatenate(parts: Sequence[ItemsOfKind]) -> ItemsOfKind:
    """All samples of `parts`, which are of one kind of storage, one part after the other."""
    containers = dict.fromkeys(path for items in parts for path in items.containers)
    number = {path: index for index, path in enumerate(containers)}
    columns = [items.columns() for items in parts]
    return replace(
        parts[0],
        containers=tuple(containers),
        container=np.concatenate(
            [
                np.array([number[path] for path in items.containers], np.int32)[items.container]
                for items in parts
            ]
        ),
        **{name: np.concatenate([column[name] for column in columns]) for name in columns[0]},
    )


def join(parts: Sequence[Items]) -> Items:
    """All samples of `parts`, of whatever kinds of storage, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    counts = [len(items) for items in parts]
    return Joined(
        containers=("",),
        container=np.zeros(sum(counts), np.int32),
        name=np.concatenate([items.name for items in parts]),
        parts=tuple(parts),
        part=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        place=np.concatenate([np.arange(count) for count in counts]),
    )


def text(name: str | bytes) -> str:
    """A name as it may be shown: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def chunks(order: Places, size: NDArray[np.int64]) -> Iterator[Places]:
    """Cut `order` into pieces of about CHUNK_BYTES; small files count as CHUNK_BYTES / 512."""
    filled = np.cumsum(np.maximum(size[order], CHUNK_BYTES // CHUNK_IMAGES)) // CHUNK_BYTES
    yield from np.split(order, np.flatnonzero(filled[1:] != filled[:-1]) + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadAhead:
    """Reads item by item, with the next AHEAD ones open and announced to the kernel.

    `open_file(index)` gives a descriptor that is closed here; `read(descriptor, index)` its bytes,
    which are those of `byte_range(index)`.
    """

    items: Items
    open_file: Callable[[int], int]
    byte_range: Callable[[int], tuple[int, int]]
    read: Callable[[int, int], bytes]

    def contents(self) -> Generator[bytes | Unreadable]:
        """The content of each item in order."""
        descriptors: deque[int | OSError] = deque()
        count = len(self.items)
        try:
            for index in range(count):
                while len(descriptors) < min(AHEAD, count - index):
                    descriptors.append(self._announce(index + len(descriptors)))
                yield self._content(descriptors.popleft(), index)
        finally:
            for descriptor in descriptors:
                if isinstance(descriptor, int):
                    os.close(descriptor)

    def _announce(self, index: int) -> int | OSError:
        try:
            descriptor = self.open_file(index)
        except OSError as error:
            return error
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a pipe takes no advice; reading says what is wrong with it
                os.posix_fadvise(descriptor, *self.byte_range(index), os.POSIX_FADV_WILLNEED)
        return descriptor

    def _content(self, descriptor: int | OSError, index: int) -> bytes | Unreadable:
        try:
            if isinstance(descriptor, OSError):
                raise descriptor
            try:
                return self.read(descriptor, index)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in OWN_FAULTS:
                return Unreadable(f"cannot be read ({error.strerror})")
            raise PrepareError(
                f"Cannot read {self.items.path(index)}: {error.strerror}. Finished shards are "
                "kept: check the source and run the same command again."
            ) from None
