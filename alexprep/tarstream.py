"""Reads a tar once, front to back: members for the caller, hashes for the manifest.

Only what shard-writers need is understood: USTAR or GNU headers of regular files. Unlike an index,
the headers are part of what the hash of the tar vouches for.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from pipelines.errors import DataError
from pipelines.format import BLOCK, padded

REGULAR = (b"0", b"\0")
CHECKSUM = slice(148, 156)
READ = 1 << 20


class TarMember(NamedTuple):
    """A regular file in a tar: its name, the offset of its data and the data."""

    name: str
    offset: int
    data: bytes


class TarStream:
    """A tar opened for one pass; enter it, iterate over it, then ask for `sha256` and `bytes`.

    DataError names the tar and the byte where it stops being one. Memory is that of one member.
    """

    def __init__(self, path: Path, *, md5: bool = False) -> None:
        self.path = path
        self.bytes = 0
        self._length = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._file: BinaryIO | None = None

    @property
    def sha256(self) -> str:
        """Of what has been read; after the iteration, of the whole file."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest() if self._md5 else ""

    def __enter__(self) -> Self:
        self._file = self.path.open("rb", buffering=READ)
        self._length = self.path.stat().st_size
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[TarMember]:
        while True:
            start = self.bytes
            header = self._read(BLOCK)
            if not header.strip(b"\0"):
                break
            if len(header) < BLOCK or not _checksum_holds(header):
                raise DataError(
                    f"{self.path} is damaged or cut off: no tar header at byte {start}."
                )
            size = _size(header)
            if size > self._length - self.bytes:
                raise DataError(
                    f"{self.path} is cut off: the member at byte {start} has {size} bytes, "
                    f"{self._length - self.bytes} are there."
                )
            data = self._read(padded(size))
            if header[156:157] in REGULAR:
                yield TarMember(_name(header), start + BLOCK, data[:size])
        while self._read(READ):
            pass

    def _read(self, size: int) -> bytes:
        assert self._file is not None, "TarStream is entered before it is read"
        data = self._file.read(size)
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        self.bytes += len(data)
        return data


def _checksum_holds(header: bytes) -> bool:
    """POSIX: the sum of the header's bytes, the checksum's own counted as spaces."""
    try:
        noted = int(header[CHECKSUM].strip(b"\0 "), 8)
    except ValueError:
        return False
    return noted == sum(header) - sum(header[CHECKSUM]) + 8 * ord(" ")


def _size(header: bytes) -> int:
    field = header[124:136]
    if field[0] & 0x80:  # GNU base-256, for members of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b"\0 ") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")
