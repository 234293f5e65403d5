"""Reads a tar once, front to back: members for the caller, hashes for the manifest.

Only what shard-writers need is understood: USTAR or GNU headers of regular files. Unlike an index,
the headers are part of what the hash of the tar vouches for.
"""

import hashlib
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pipelines.errors import DataError
from pipelines.format import BLOCK, padded

REGULAR = (b"0", b"\0")
CHECKSUM = slice(148, 156)
READ = 1 << 18


class TarMember(NamedTuple):
    """A regular file in a tar: its name, the offset of its data and the data."""

    name: str
    offset: int
    data: bytes


class TarStream:
    """A tar read in one pass; enter it, iterate over it, then ask for `sha256` and `bytes`.

    DataError names the tar and the byte where it stops being one. Memory is that of a block of the
    file, or of the largest member. With `begin`, the byte of a header, reading starts there.
    """

    def __init__(self, path: Path, *, md5: bool = False, begin: int = 0) -> None:
        self.path = path
        self._start = begin
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._file: BufferedReader | None = None
        self._length = 0
        self._block = bytearray(READ)
        self._begin = self._filled = 0

    @property
    def sha256(self) -> str:
        """Of what has been read; after the iteration, of the whole file."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest() if self._md5 else ""

    def __enter__(self) -> Self:
        self._file = self.path.open("rb")
        self._length = self.path.stat().st_size
        self._file.seek(self._start)
        self._begin = self._start
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
        at = self._start
        while at < self._length:
            header = self._at(at, BLOCK)
            if not header.strip(b"\0"):
                break
            if len(header) < BLOCK or not _is_header(header):
                raise DataError(f"{self.path} is damaged or cut off: no tar header at byte {at}.")
            size, left = _size(header), self._length - at - BLOCK
            if size > left:
                raise DataError(
                    f"{self.path} is cut off: the member at byte {at} says it has {size} bytes, "
                    f"{left} are there."
                )
            if header[156:157] in REGULAR:
                yield TarMember(_name(header), at + BLOCK, self._at(at + BLOCK, size))
            at += BLOCK + padded(size)
        while self._read_into(memoryview(self._block)):
            pass

    def _at(self, offset: int, size: int) -> bytes:
        """Bytes of the file, fewer at its end; what lies before `offset` is forgotten."""
        start = offset - self._begin
        if start + size > self._filled:
            self._fill(start, size)
            start = offset - self._begin
        return bytes(memoryview(self._block)[start : min(start + size, self._filled)])

    def _fill(self, start: int, size: int) -> None:
        """Read on until `size` bytes from `start` are in the block, or the file ends.

        Blocks, not members, are read and hashed: fewer calls, and the block is used again.
        """
        while start > self._filled > 0:
            start -= self._filled
            self._begin += self._filled
            self._filled = self._read_into(memoryview(self._block))
        rest = self._block[start : self._filled]
        if len(rest) + size > len(self._block):
            self._block = bytearray(size + READ)
        self._block[: len(rest)] = rest
        self._begin += start
        self._filled = len(rest)
        self._filled += self._read_into(memoryview(self._block)[len(rest) :])

    def _read_into(self, room: memoryview) -> int:
        assert self._file is not None, "TarStream is entered before it is read"
        count = self._file.readinto(room)
        self._sha256.update(room[:count])
        if self._md5 is not None:
            self._md5.update(room[:count])
        self.bytes += count
        return count


def _is_header(header: bytes) -> bool:
    return header[257:262] == b"ustar" or _checksum_holds(header)


def _checksum_holds(header: bytes) -> bool:
    """POSIX: the sum of the header's bytes, the checksum's own counted as spaces."""
    try:
        noted = int(header[CHECKSUM].strip(b"\0 "), 8)
    except ValueError:
        return False
    return noted == sum(header) - sum(header[CHECKSUM]) + 8 * ord(" ")


def _size(header: bytes) -> int:
    """Length of the member; a field that is no number is an impossible length."""
    field = header[124:136]
    if field[0] & 0x80:  # GNU base-256, for members of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return sys.maxsize


def _name(header: bytes) -> str:
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")
