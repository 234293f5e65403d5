"""Write tars whose bytes follow from the members alone: USTAR, one owner, one time, no pax."""

import hashlib
from concurrent.futures import Executor, Future
from typing import IO

from pipelines.format import BLOCK, MEMBERS, MTIME, Member, Sample, Shard, padded

RECORD = 20 * BLOCK  # tar pads archives to whole records
_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME = b"%011o\0" % MTIME
_TAIL = b"0" + bytes(100) + b"ustar\00000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
# The sum of a header's bytes with its own field taken as spaces, but for name and size.
_SUM = sum(_OWNER) + sum(_TIME) + sum(b" " * 8) + sum(_TAIL)


def tar_header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a regular file of at most 8 GiB, mode 0644."""
    length = b"%011o\0" % size
    total = _SUM + sum(name) + sum(length)
    return b"%b%b%b%b%06o\0 %b" % (name.ljust(100, b"\0"), _OWNER, length, _TIME, total, _TAIL)


class TarWriter:
    """Appends samples to a file; the thread `aside` hashes each while the next one is made."""

    def __init__(self, file: IO[bytes], aside: Executor) -> None:
        self.file, self.bytes, self.samples = file, 0, 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._aside = aside
        self._hashing: Future[None] | None = None

    def add(self, key: str, contents: tuple[bytes, ...]) -> Sample:
        """Append KEY.jpg, KEY.cls and KEY.json; where their data lies."""
        pieces: list[bytes] = []
        members: list[Member] = []
        at = self.bytes
        for kind, data in zip(MEMBERS, contents, strict=True):
            pieces += (tar_header(f"{key}.{kind}".encode(), len(data)), data)
            pieces.append(bytes(padded(len(data)) - len(data)))
            members.append(Member(at + BLOCK, len(data)))
            at += BLOCK + padded(len(data))
        self._append(b"".join(pieces))
        self.samples += 1
        return Sample(key, *members)

    def close(self, name: str) -> Shard:
        """End the archive as tar does: two empty blocks, then up to a whole record."""
        self._append(bytes(2 * BLOCK + -(self.bytes + 2 * BLOCK) % RECORD))
        self._hashed()
        return Shard(
            name=name,
            samples=self.samples,
            bytes=self.bytes,
            sha256=self._sha256.hexdigest(),
            md5=self._md5.hexdigest(),
        )

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # an unbuffered write may take less than it was given
            view = view[self.file.write(view) :]
        self.bytes += len(data)
        self._hashed()
        self._hashing = self._aside.submit(self._hash, data)

    def _hash(self, data: bytes) -> None:
        self._sha256.update(data)
        self._md5.update(data)

    def _hashed(self) -> None:
        """Wait for what is being hashed, so that no more than one sample is kept for it."""
        if self._hashing is not None:
            self._hashing.result()
