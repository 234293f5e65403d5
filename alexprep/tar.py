"""Tar files: headers, a list of the members, a reader of one pass, a writer of reproducible bytes.

Headers are parsed and built here and nowhere else. tarfile would take 60 us to read one and 25 us
to write one, against 5 and 1.2, and the shards of ILSVRC have 3.8 million. It also writes other
bytes (device numbers of files are empty), and the bytes of shards must not change. It is used for
what a plain header cannot hold: long names, pax records. Nothing is ever extracted.
"""

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from alexprep.errors import PrepareError
from pipelines.errors import DataError
from pipelines.format import BLOCK, MEMBERS, MTIME, Member, Sample, Shard, padded

FILE_TYPES = (b"0", b"\0")
FOLDER = b"5"
RECORD = 20 * BLOCK  # tar pads archives to whole records
READ_BYTES = 1 << 18
# tarfile reads names and pax records of any length into memory; real ones have a few hundred bytes.
MAX_EXTENDED = 1 << 20

_CHECKSUM, _SIZE = slice(148, 156), slice(124, 136)
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_USTAR = b"ustar\0"


class Header(NamedTuple):
    """What 512 bytes before a member say. `plain`: they are all there is to say about it."""

    name: bytes
    size: int
    kind: bytes
    plain: bool


def parse_header(block: bytes) -> Header | None:
    """Parse a header of any tar; None if its checksum or a number in it is wrong.

    The checksum is all that protects a header: the sum of its bytes, with its own field as spaces.
    """
    if len(block) < BLOCK:
        return None
    # The lower half of Adler-32 is 1 + the sum modulo 65,521, which ASCII does not reach here.
    total = (zlib.adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    expected = total - sum(block[_CHECKSUM]) + 8 * ord(" ")
    size = _number(block[_SIZE])
    if size is None or _number(block[_CHECKSUM]) != expected:
        return None
    name, kind = block[:100].partition(b"\0")[0], block[156:157]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == _USTAR:
        name, prefix = prefix + b"/" + name, b""
    if kind == b"\0" and name.endswith(b"/"):  # a folder, as tar wrote it before 1988
        kind = FOLDER
    return Header(name, size, kind, kind in (*FILE_TYPES, FOLDER) and not prefix)


def _number(field: bytes) -> int | None:
    """Octal digits between spaces and NULs, none for 0; or GNU's base 256, for 8 GiB and more.

    `int` accepts more: signs, underscores, 0o10. A negative size would make a reader go back.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = _OCTAL.fullmatch(field)
    return int(digits[1] or b"0", 8) if digits else None


_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME = b"%011o\0" % MTIME
_TAIL = b"0" + bytes(100) + b"ustar\00000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
# The sum of a header's bytes with its own field as spaces, except for name and size.
_SUM = sum(_OWNER) + sum(_TIME) + sum(b" " * 8) + sum(_TAIL)


def build_header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a regular file of less than 8 GiB, mode 0644, owned by nobody."""
    length = b"%011o\0" % size
    total = _SUM + sum(name) + sum(length)
    return b"%b%b%b%b%06o\0 %b" % (name.ljust(100, b"\0"), _OWNER, length, _TIME, total, _TAIL)


class Entry(NamedTuple):
    """A regular file: name as stored, where its data begins in the outer file, its length."""

    name: bytes
    offset: int
    size: int


def scan_tar(path: Path, file: int, begin: int = 0, size: int | None = None) -> list[Entry]:
    """The regular files of the tar at `begin` in an open file, in order, from headers alone.

    The tar may be a member of another one: `size` bytes from `begin` on. PrepareError for a tar
    that ends early, is damaged, or holds a link or a name that leads out of a folder.
    """
    end = os.fstat(file).st_size if size is None else begin + size
    entries: list[Entry] = []
    position = begin
    while position + BLOCK <= end:
        # pread moves no position: several threads scan one descriptor.
        block = os.pread(file, BLOCK, position)
        header = parse_header(block)
        if header is None:
            if not block.strip(b"\0"):
                return _checked(path, entries)
            raise PrepareError(
                f"{path} has no tar header at byte {position:,}: the file is damaged or not a tar. "
                "Download or copy it again."
            )
        if not header.plain:
            return _checked(path, _scan_with_tarfile(path, file, begin, end))
        if position + BLOCK + header.size > end:
            break
        if header.kind != FOLDER:
            entries.append(Entry(header.name, position + BLOCK, header.size))
        position += BLOCK + padded(header.size)
    if position == end:
        return _checked(path, entries)  # some writers leave out the two empty blocks at the end
    raise PrepareError(
        f"{path} ends within a member at byte {position:,}: it is incomplete. Download or copy it "
        "again."
    )


class _Window:
    """A byte range of an open file, as tarfile reads it; bounds what a hostile header can do."""

    def __init__(self, file: int, begin: int, end: int) -> None:
        self._file, self._begin, self._end, self._at = file, begin, end, 0

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        if position < 0:
            raise tarfile.ReadError("a member has a negative size")
        self._at = position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_EXTENDED:
            raise tarfile.ReadError(f"a header is continued by {size:,} bytes")
        begin = self._begin + self._at
        data = os.pread(self._file, max(0, min(size, self._end - begin)), begin)
        self._at += len(data)
        return data


def _scan_with_tarfile(path: Path, file: int, begin: int, end: int) -> list[Entry]:
    entries: list[Entry] = []
    last = -1
    window: Any = _Window(file, begin, end)
    try:
        with tarfile.open(fileobj=window, mode="r:") as archive:
            for member in archive:
                # A pax record may make a size negative, which leads tarfile back, without end.
                data_end = begin + member.offset_data + member.size
                if member.offset <= last or member.size < 0 or data_end > end:
                    raise tarfile.ReadError(f"{member.name!r} has {member.size:,} bytes")
                last = member.offset
                if member.isreg() and not member.issparse():
                    name = member.name.encode("utf-8", "surrogateescape")
                    entries.append(Entry(name, begin + member.offset_data, member.size))
                elif not member.isdir():
                    raise PrepareError(
                        f"{path} holds {member.name!r}, which is a link or a device "
                        "or sparse, not an image. Make the archive again without it."
                    )
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise PrepareError(
            f"{path} is damaged or not a tar ({error}). Download or copy it again."
        ) from None
    return entries


def _checked(path: Path, entries: list[Entry]) -> list[Entry]:
    """Refuse names that would lead out of a folder: an archive with one is not what it claims."""
    for entry in entries:
        if entry.name.startswith(b"/") or b".." in entry.name.split(b"/"):
            raise PrepareError(
                f"{path} holds the path {entry.name.decode('utf-8', 'backslashreplace')!r}, which "
                "leads out of the archive. Download it again from its source."
            )
    return entries


class TarMember(NamedTuple):
    """A regular file in a tar: its name, the offset of its data and the data."""

    name: str
    offset: int
    data: bytes


class TarStream:
    """A tar read in one pass; enter it, iterate over it, then ask for `sha256` and `bytes`.

    Names are as in a plain header: shards have no others. DataError names the tar and the byte
    where it stops being one. Memory is that of a block of the file, or of the largest member. With
    `begin`, the byte of a header, reading starts there.
    """

    def __init__(self, path: Path, *, md5: bool = False, begin: int = 0) -> None:
        self.path = path
        self.bytes = 0
        self._start = begin
        self._file = path.open("rb", buffering=READ_BYTES)
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None

    @property
    def sha256(self) -> str:
        """Of what has been read; after the iteration, of the whole file."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest() if self._md5 else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[TarMember]:
        length = os.fstat(self._file.fileno()).st_size
        position = self._file.seek(self._start)
        while position < length:
            block = self._read(BLOCK)
            if not block.strip(b"\0"):
                break
            header = parse_header(block)
            if header is None:
                raise DataError(
                    f"{self.path} is damaged or cut off: no tar header at byte {position}."
                )
            available = length - position - BLOCK
            if header.size > available:
                raise DataError(
                    f"{self.path} is cut off: the member at byte {position} has {header.size} "
                    f"bytes, {available} of them are in the file."
                )
            room = padded(header.size)
            if header.kind in FILE_TYPES:
                name = header.name.decode("utf-8", "surrogateescape")
                yield TarMember(name, position + BLOCK, self._read(header.size))
                self._skip(room - header.size)
            else:
                self._skip(room)
            position += BLOCK + room
        self._skip(length)

    def _skip(self, size: int) -> None:
        """Read what is not asked for, in pieces: the hash is of the whole file."""
        while size > 0 and (data := self._read(min(size, READ_BYTES))):
            size -= len(data)

    def _read(self, size: int) -> bytes:
        """The next bytes of the file, fewer at its end."""
        data = self._file.read(size)
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        self.bytes += len(data)
        return data


class TarWriter:
    """Appends samples to a file; a thread of `hash_pool` hashes each while the next is encoded."""

    def __init__(self, file: IO[bytes], hash_pool: Executor) -> None:
        self.file, self.bytes, self.samples = file, 0, 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._hash_pool = hash_pool
        self._hashing: Future[None] | None = None

    def add(self, key: str, contents: tuple[bytes, ...]) -> Sample:
        """Append KEY.jpg, KEY.cls and KEY.json; returns where their data lies."""
        pieces: list[bytes] = []
        members: list[Member] = []
        position = self.bytes
        for kind, data in zip(MEMBERS, contents, strict=True):
            pieces += (build_header(f"{key}.{kind}".encode(), len(data)), data)
            pieces.append(bytes(padded(len(data)) - len(data)))
            members.append(Member(position + BLOCK, len(data)))
            position += BLOCK + padded(len(data))
        self._append(b"".join(pieces))
        self.samples += 1
        return Sample(key, *members)

    def close(self, name: str) -> Shard:
        """End the archive as tar does: two empty blocks, then up to a whole record."""
        self._append(bytes(2 * BLOCK + -(self.bytes + 2 * BLOCK) % RECORD))
        self._wait_for_hash()
        return Shard(
            name=name,
            samples=self.samples,
            bytes=self.bytes,
            sha256=self._sha256.hexdigest(),
            md5=self._md5.hexdigest(),
        )

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # an unbuffered write may be partial
            view = view[self.file.write(view) :]
        self.bytes += len(data)
        self._wait_for_hash()
        self._hashing = self._hash_pool.submit(self._hash, data)

    def _hash(self, data: bytes) -> None:
        self._sha256.update(data)
        self._md5.update(data)

    def _wait_for_hash(self) -> None:  # so that no more than one sample is kept for it
        if self._hashing is not None:
            self._hashing.result()
