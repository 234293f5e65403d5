"""Read the bytes of samples, whatever order they are in, telling the kernel what comes next."""

import os
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from alexprep.errors import PrepareError
from alexprep.sources.listing import Items

# Sources are read in the order of the output, all over the disk: with this many reads announced
# ahead the device has a queue to work on while an image is decoded.
AHEAD = 16


class Reader:
    """Yields the bytes of items in order; keeps the tars open that it has met."""

    def __init__(self, items: Items) -> None:
        self.items = items
        self._tars: dict[int, int] = {}
        self._opened: deque[int] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in (*self._tars.values(), *self._opened):
            os.close(file)

    def __iter__(self) -> Iterator[bytes]:
        """The bytes of each item; PrepareError names the file that cannot be read."""
        count = len(self.items.name)
        ahead = 0
        for place in range(count):
            while ahead < min(place + AHEAD, count):
                self._announce(ahead)
                ahead += 1
            yield self._read(place)

    def _announce(self, place: int) -> None:
        try:
            file = self._open(place)
            if hasattr(os, "posix_fadvise"):
                offset, size = int(self.items.offset[place]), int(self.items.size[place])
                os.posix_fadvise(file, offset, max(size, 0), os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise self._unreadable(place, error.strerror) from None
        self._opened.append(file)

    def _open(self, place: int) -> int:
        container = int(self.items.container[place])
        path = self.items.containers[container]
        if self.items.kind == "files":
            return os.open(os.path.join(os.fsencode(path), self.items.name[place]), os.O_RDONLY)  # noqa: PTH118 - names are bytes
        if container not in self._tars:
            self._tars[container] = os.open(path, os.O_RDONLY)
        return os.dup(self._tars[container])

    def _read(self, place: int) -> bytes:
        file = self._opened.popleft()
        try:
            if self.items.kind == "files":
                return _whole(file)
            size = int(self.items.size[place])
            data = os.pread(file, size, int(self.items.offset[place]))
        except OSError as error:
            raise self._unreadable(place, error.strerror) from None
        finally:
            os.close(file)
        if len(data) != size:
            raise self._unreadable(place, f"it ends {size - len(data):,} bytes early")
        return data

    def _unreadable(self, place: int, why: str | None) -> PrepareError:
        return PrepareError(
            f"Cannot read {self.items.where(place)}: {why}. Finished shards are kept: "
            "see to the source and run the same command again."
        )


def _whole(file: int) -> bytes:
    with open(file, "rb", buffering=0, closefd=False) as source:
        return source.read()
