"""Where the bytes of samples are, whatever they are stored in: arrays that run over samples.

Each kind of storage has its own class, next to the code that lists it: `files.Files`, `tars.Tars`
and `rows.Rows`. They are small to pickle, since workers on any machine get the part they read.
"""

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self

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
        used, container = np.unique(self.container[indices], return_inverse=True)
        containers: list[int] = used.tolist()
        columns = {
            field.name: getattr(self, field.name)[indices]
            for field in fields(self)
            if field.name not in ("containers", "container")
        }
        return replace(
            self,
            containers=tuple(self.containers[number] for number in containers),
            container=container.astype(np.int32),
            **columns,
        )

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
    def read(self) -> Generator[bytes]:
        """The content of each sample, in order; PrepareError names what cannot be read.

        Close it when it is left early (`contextlib.closing`): files stay open in between.
        """


def text(name: bytes | np.bytes_) -> str:
    """A name as it may be shown: bytes that are no UTF-8 are escaped."""
    return bytes(name).decode("utf-8", "backslashreplace")


def chunks(order: Places, size: NDArray[np.int64]) -> Iterator[Places]:
    """Cut `order` into pieces of about CHUNK_BYTES; small files count as CHUNK_BYTES / 512."""
    filled = np.cumsum(np.maximum(size[order], CHUNK_BYTES // CHUNK_IMAGES)) // CHUNK_BYTES
    yield from np.split(order, np.flatnonzero(filled[1:] != filled[:-1]) + 1)


def read_announced(
    items: Items,
    open_file: Callable[[int], int],
    byte_range: Callable[[int], tuple[int, int]],
    read: Callable[[int, int], bytes],
) -> Generator[bytes]:
    """Read item by item, with the next AHEAD ones open and announced to the kernel.

    `open_file(index)` gives a descriptor that is closed here; `read(descriptor, index)` its bytes.
    """
    descriptors: deque[int] = deque()
    announced = 0
    try:
        for index in range(len(items)):
            while announced < min(index + AHEAD, len(items)):
                try:
                    descriptors.append(open_file(announced))
                    if hasattr(os, "posix_fadvise"):
                        begin, size = byte_range(announced)
                        os.posix_fadvise(descriptors[-1], begin, size, os.POSIX_FADV_WILLNEED)
                except OSError as error:
                    raise unreadable(items, announced, error.strerror) from None
                announced += 1
            descriptor = descriptors.popleft()
            try:
                data = read(descriptor, index)
            except OSError as error:
                raise unreadable(items, index, error.strerror) from None
            finally:
                os.close(descriptor)
            yield data
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def unreadable(items: Items, index: int, reason: str | None) -> PrepareError:
    """The error for a sample that its storage does not give."""
    return PrepareError(
        f"Cannot read {items.path(index)}: {reason}. Finished shards are kept: "
        "check the source and run the same command again."
    )
