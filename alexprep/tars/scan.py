"""List the files in a tar, or in a tar that is a byte range of another one, reading headers only.

Plain USTAR headers, which is all that the ILSVRC archives and our shards have, are read directly:
5 us each, where tarfile takes 60. At the first header that is anything else (long names, pax,
sparse files) the range is handed to tarfile. Nothing is ever extracted.
"""

import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from alexprep.errors import PrepareError
from pipelines.format import BLOCK, padded

FILE_TYPES = (b"0", b"\0")
FOLDER = b"5"


class Entry(NamedTuple):
    """A regular file: name as stored, where its data begins in the outer file, its length."""

    name: bytes
    offset: int
    size: int


def scan_tar(path: Path, file: int, begin: int = 0, size: int | None = None) -> list[Entry]:
    """The regular files of the tar at `begin` in an open file, in order.

    PrepareError for a tar that ends early, is damaged, or holds a link or a name that leads out.
    """
    end = os.fstat(file).st_size if size is None else begin + size
    entries: list[Entry] = []
    at = begin
    while at + BLOCK <= end:
        header = os.pread(file, BLOCK, at)
        kind = header[156:157]
        if header[345] or kind not in (*FILE_TYPES, FOLDER) or not _size_is_octal(header):
            if not header.strip(b"\0"):
                return _checked(path, entries)
            return _checked(path, _with_tarfile(path, begin))
        _check_sum(path, header, at)
        length = int(header[124:136].rstrip(b" \0") or b"0", 8)
        if at + BLOCK + length > end:
            break
        if kind != FOLDER:
            name = header[: header.index(b"\0") if b"\0" in header[:100] else 100]
            entries.append(Entry(name, at + BLOCK, length))
        at += BLOCK + padded(length)
    if at == end:
        return _checked(path, entries)  # some writers leave out the two empty blocks at the end
    raise PrepareError(
        f"{path} ends within a member at byte {at:,}: the file is not whole. "
        "Download or copy it again."
    )


def _size_is_octal(header: bytes) -> bool:
    return header[257:262] == b"ustar" or (header[257:263] == b"\0" * 6 and header[0] != 0)


def _check_sum(path: Path, header: bytes, at: int) -> None:
    """A tar header's only protection: the sum of its bytes, its own field taken as spaces."""
    said = header[148:156].strip(b" \0")
    if not said.isdigit() or int(said, 8) != sum(header) - sum(header[148:156]) + 8 * 32:
        raise PrepareError(
            f"{path} has no tar header at byte {at:,}: the file is damaged or is no tar. "
            "Download or copy it again."
        )


def _with_tarfile(path: Path, begin: int) -> list[Entry]:
    entries: list[Entry] = []
    try:
        with path.open("rb") as file:
            file.seek(begin)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.isreg():
                        name = member.name.encode("utf-8", "surrogateescape")
                        entries.append(Entry(name, member.offset_data, member.size))
                    elif not member.isdir():
                        raise PrepareError(
                            f"{path} holds {member.name!r}, which is a link or a device, not an "
                            "image. Make the archive again without it."
                        )
    except tarfile.TarError as error:
        raise PrepareError(
            f"{path} is damaged or is no tar ({error}). Download or copy it again."
        ) from None
    return entries


def _checked(path: Path, entries: list[Entry]) -> list[Entry]:
    """Refuse names that would lead out of a folder: an archive with one is not what it claims."""
    for entry in entries:
        if entry.name.startswith(b"/") or b".." in entry.name.split(b"/"):
            raise PrepareError(
                f"{path} holds the path {entry.name.decode('utf-8', 'backslashreplace')!r}, which "
                "leads out of the archive. Get the archive from its maker again."
            )
    return entries
