"""Samples of a finished data set by number: bytes of the JPEG and the label, each checked.

A sample is one read of its shard (os.pread): the tar header before the JPEG, the JPEG, and the
label behind it. Reading was preferred to mapping the files: a mapped file that shrinks kills the
process (SIGBUS) where a read says so, its pages count as the process's memory, and every mapping
holds a file descriptor too.

Nothing is parsed before it is needed: opening 1024 shards costs one look at each file's size, the
index of a shard is parsed when the first sample of it is read.
"""

import contextlib
import hashlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.format import BLOCK, Manifest, Shard, padded
from pipelines.jpeg import check_jpeg

Check = Literal["size", "sha256"]


class Image(NamedTuple):
    """One sample as it is stored."""

    jpg: NDArray[np.uint8]
    label: int


class ShardIndex(NamedTuple):
    """Where the JPEGs of one shard lie, in tar order; the label of each stands right behind."""

    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


class _File:
    """A descriptor that is closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(
            AttributeError, OSError
        ):  # not opened, or the interpreter is ending
            os.close(self.fd)


class SplitReader:
    """Random access to one split; safe to use from several threads.

    The constructor raises DataError for a missing shard or one whose length is not the manifest's,
    `read` for anything a sample's bytes disagree with, naming shard, key and offset.
    """

    def __init__(self, root: Path, manifest: Manifest, split: str, check: Check = "size") -> None:
        self.root = root
        self.manifest = manifest
        self.split = manifest.split(split, root)
        self.check = check
        self.lengths = [shard.samples for shard in self.split.shards]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._indexes: dict[int, ShardIndex] = {}
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._most_files = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._lock = threading.Lock()
        for shard in self.split.shards:
            self._check_size(shard)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, place: int) -> Image:
        """The sample at `place` in the split's own order: shard by shard, tar order."""
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        index = self._index(number)
        row = place - int(self.starts[number])
        offset, size = int(index.offsets[row]), int(index.sizes[row])
        width = self.manifest.cls_width
        label_at = BLOCK + padded(size) + BLOCK
        data = os.pread(self._file(number).fd, label_at + width, offset - BLOCK)
        try:
            _check_members(data, index.keys[row], size, label_at + width)
            jpg = np.frombuffer(data, np.uint8, size, BLOCK)
            check_jpeg(data[BLOCK : BLOCK + size], self.manifest.size)
            return Image(jpg, self._label(data[label_at:]))
        except ValueError as error:
            raise DataError(f"{self.where(place)}: {error}. {self._remedy()}") from error

    def where(self, place: int) -> str:
        """Shard, key and byte offset of a sample, for messages."""
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        index = self._index(number)
        row = place - int(self.starts[number])
        key = index.keys[row].decode("ascii", "replace")
        return f"{self._path(number)}, key {key}, offset {index.offsets[row]}"

    def keys(self) -> list[str]:
        """Keys of the whole split in its own order; parses every index (1.5 s for 1024 shards)."""
        keys = (self._index(number).keys for number in range(len(self.lengths)))
        return [key.decode("ascii", "replace") for shard in keys for key in shard]

    def will_need(self, numbers: Iterator[int]) -> None:
        """Ask the system to read whole shards ahead, for disks that are slow to seek."""
        for number in numbers:
            os.posix_fadvise(self._file(number).fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def _label(self, digits: bytes) -> int:
        if not digits.isdigit() or int(digits) >= len(self.manifest.classes):
            raise ValueError(
                f"the label is {digits!r}, not a number below {len(self.manifest.classes)}"
            )
        return int(digits)

    def _path(self, number: int) -> Path:
        return self.root / self.split.shards[number].name

    def _remedy(self) -> str:
        return (
            f"Find all damage with `alexprep verify {self.root}`, "
            "then copy or make the shard again."
        )

    def _check_size(self, shard: Shard) -> None:
        path = self.root / shard.name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise DataError(f"{path} is missing, the manifest names it. {self._remedy()}") from None
        if size != shard.bytes:
            raise DataError(
                f"{path} has {size} bytes, the manifest says {shard.bytes}: it is truncated or "
                f"was changed. {self._remedy()}"
            )

    def _file(self, number: int) -> _File:
        with self._lock:
            file = self._files.get(number)
            if file is None:
                file = self._files[number] = _File(self._path(number))
                if len(self._files) > self._most_files:
                    self._files.popitem(last=False)
            self._files.move_to_end(number)
            return file

    def _index(self, number: int) -> ShardIndex:
        index = self._indexes.get(number)
        if index is None:
            shard = self.split.shards[number]
            index = read_index(self.root / shard.index, shard)
            if self.check == "sha256":
                self._check_sha256(number)
            self._indexes[number] = index
        return index

    def _check_sha256(self, number: int) -> None:
        path, expected = self._path(number), self.split.shards[number].sha256
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise DataError(
                f"{path} has sha256 {found}, the manifest says {expected}: its bytes were changed. "
                f"{self._remedy()}"
            )


def read_index(path: Path, shard: Shard) -> ShardIndex:
    """Parse a DALI index into arrays; DataError if it does not describe `shard`."""
    try:
        head, *lines = path.read_bytes().splitlines() or [b""]
        words = b" ".join(lines).split(b" ")
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing. Make it again with `alexprep index {shard.name}`."
        ) from None
    if head != b"v1.2 %d" % shard.samples or len(words) != 12 * shard.samples:
        raise DataError(
            f"{path} begins with {head[:40]!r} and has {len(lines)} lines, the manifest gives "
            f"{shard.name} {shard.samples} samples. "
            f"Make it again with `alexprep index {shard.name}`."
        )
    try:
        offsets = np.array(words[1::12]).astype(np.int64)
        sizes = np.array(words[2::12]).astype(np.int64)
    except ValueError as error:
        raise DataError(f"{path}: {error}. Make it again with `alexprep index`.") from error
    wrong = (sizes <= 0) | (offsets < BLOCK) | (offsets + sizes > shard.bytes)
    if set(words[0::12]) != {b"jpg"} or wrong.any():
        line = int(np.argmax(wrong)) + 2
        raise DataError(
            f"{path}, line {line}: {lines[line - 2][:80]!r} lies outside {shard.name} "
            f"({shard.bytes} bytes). Make it again with `alexprep index {shard.name}`."
        )
    keys = np.char.partition(np.array(words[3::12]), b".")[:, 0]
    return ShardIndex(keys, offsets, sizes)


def _check_members(data: bytes, key: np.bytes_, size: int, expected: int) -> None:
    """Whether the bytes are what the index says: a header of that key and size, then its label."""
    if len(data) != expected:
        raise ValueError(f"the shard ends {expected - len(data)} bytes too early")
    label = data[BLOCK + padded(size) :]
    for header, kind, length in ((data, b".jpg", size), (label, b".cls", None)):
        name = header[:100].rstrip(b"\0")
        if name != key + kind or header[257:262] != b"ustar":
            raise ValueError(
                f"the index is wrong here, the tar has {name[:60]!r}, not {key + kind!r}"
            )
        found = int(header[124:135], 8)
        if length is not None and found != length:
            raise ValueError(f"the index is wrong here, it says {length} bytes, the tar {found}")
