"""Samples of a finished data set by number: bytes of the JPEG and the label, each checked.

A sample is one read of its shard (os.pread): the tar header before the JPEG, the JPEG, and the
label behind it. Reading was preferred to mapping the files: a mapped file that shrinks kills the
process (SIGBUS) where a read says so, its pages count as the process's memory, and every mapping
holds a file descriptor too.

Nothing is parsed before it is needed: opening 1024 shards costs one look at each file's length, the
index of a shard is parsed when the first sample of it is read.

What is checked: missing shards and lengths when a split is opened; with every sample, that the tar
has the header of that key and length there, that the JPEG is whole and of the manifest's size, and
that the label is a number below the number of classes. Bytes that changed inside the compressed
data pass any decoder; only the hash of the shard finds them (see Check).
"""

import contextlib
import hashlib
import os
import re
import resource
import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.format import BLOCK, Manifest, Shard, ShardIndex, Split, padded
from pipelines.jpeg import EOI, check_jpeg, check_scan, decode, frame_end
from pipelines.order import BatchPlan, BatchSchedule

Check = Literal["auto", "size", "sha256"]
# Hashing runs at 1.4 GB/s, so that `auto` adds less than a second to the first epoch.
HASHED_BYTES = 1 << 30
TAR_SIZE = re.compile(rb"[0-7]{11}")  # int() would also take signs, spaces and underscores
HEADER = struct.Struct("100s24x11s122x5s")  # of a file in a tar: name, size, "ustar"


class Image(NamedTuple):
    """One sample as it is stored."""

    jpg: NDArray[np.uint8]
    label: int


class SampleReader(Protocol):
    """Samples by their index in the split, read in the order of a schedule.

    concurrent: whether several threads may read, in any order.
    means: how it reads, for `Loader.backend`; nothing if by index.
    """

    concurrent: bool
    means: str
    manifest: Manifest
    split: Split
    lengths: list[int]

    def batches(self, schedule: BatchSchedule, epoch: int, step: int) -> Iterator[BatchPlan]:
        """Plans of the schedule from a step on, without end; `read` follows them."""
        ...

    def keys(self) -> list[str]:
        """Keys of the whole split, in its own order."""
        ...

    def read(self, index: int) -> Image:
        """The sample at `index` of the split; DataError if it cannot be read or is damaged."""
        ...

    def where(self, index: int) -> str:
        """Shard, key and offset of a sample, for messages."""
        ...

    def close(self) -> None:
        """Let go of files and threads; another `batches` opens them anew."""
        ...


class RawBatch(NamedTuple):
    """The stored bytes of one batch and how they are to be augmented."""

    plan: BatchPlan
    jpgs: Sequence[NDArray[np.uint8]]
    labels: NDArray[np.int64]  # (N,)


def read_batch(reader: SampleReader, plan: BatchPlan) -> RawBatch:
    """The bytes and labels of the samples of a plan."""
    images = [reader.read(index) for index in plan.indices.tolist()]
    labels = np.fromiter((image.label for image in images), np.int64, len(images))
    return RawBatch(plan, [image.jpg for image in images], labels)


def first_indices(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Index of the first sample of each shard, and the number of samples: (shards + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def locate(firsts: Sequence[int], index: int) -> tuple[int, int]:
    """Number of the shard and row in it of the sample at `index`; `firsts` as a list."""
    number = bisect_right(firsts, index) - 1
    return number, index - firsts[number]


class _File:
    """A descriptor that is closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # not opened; interpreter at its end
            os.close(self.fd)


def most_open_files() -> int:
    """How many files a reader keeps open: half of what the process may."""
    return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class SplitReader:
    """Random access to one split; safe to use from several threads.

    The constructor raises DataError for a missing shard or one whose length is not the manifest's,
    `read` for anything a sample's bytes disagree with, naming shard, key and offset.

    Args:
        root: the data set.
        manifest: of the data set.
        split: name of the split.
        check: "size" is what the module says. "sha256" also hashes each shard before its first
            sample is given out. "auto": "sha256" for splits of at most 1 GiB.
    """

    concurrent = True
    means = ""

    def __init__(self, root: Path, manifest: Manifest, split: str, check: Check = "auto") -> None:
        self.root = root
        self.manifest = manifest
        self.split = manifest.split(split, root)
        self.lengths = [shard.samples for shard in self.split.shards]
        total = sum(shard.bytes for shard in self.split.shards)
        self.hashes = check == "sha256" or (check == "auto" and total <= HASHED_BYTES)
        self._first_indices: list[int] = first_indices(self.lengths).tolist()
        self._head: tuple[bytes, ...] = ()  # of the last JPEG parsed, to the size in its frame
        self._indexes: dict[int, ShardIndex] = {}
        self._index_locks = [threading.Lock() for _ in self.lengths]
        self._changed: dict[int, str] = {}  # shards whose hash is wrong, and what to say of them
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._most_files = most_open_files()
        self._lock = threading.Lock()
        for shard in self.split.shards:
            self._check_size(shard)

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the shard and row in it of the sample at `index`."""
        return locate(self._first_indices, index)

    def read(self, index: int) -> Image:
        """The sample at `index` in the split's own order: shard by shard, tar order."""
        number, row = self.locate(index)
        try:
            return self._sample(number, row, self._shard_index(number))
        except (ValueError, OSError) as error:
            raise DataError(f"{self.where(index)}: {error}. {self._remedy()}") from error

    def where(self, index: int) -> str:
        """Shard, key and byte offset of a sample, for messages."""
        number, row = self.locate(index)
        entries = self._indexes.get(number)
        return str(self._path(number)) if entries is None else self._where(number, row, entries)

    def _where(self, number: int, row: int, index: ShardIndex) -> str:
        return f"{self._path(number)}, key {index.key(row)}, offset {index.offsets[row]}"

    def keys(self) -> list[str]:
        """Keys of the whole split in its own order; parses every index (1.5 s for 1024 shards)."""
        indexes = (self._shard_index(number) for number in range(len(self.lengths)))
        return [index.key(row) for index in indexes for row in range(len(index.keys))]

    def batches(self, schedule: BatchSchedule, epoch: int, step: int) -> Iterator[BatchPlan]:
        """Plans of the schedule, from a step on; a window of shards is read into memory ahead."""
        plans = schedule.batches(epoch, step)
        return self._advised(plans) if schedule.order == "window" else plans

    def _advised(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """`plans`, asking the system to read a shard ahead whole when an epoch first touches it."""
        epoch, touched = -1, set[int]()
        for plan in plans:
            if plan.epoch != epoch:
                epoch, touched = plan.epoch, set[int]()
            numbers = np.searchsorted(self._first_indices, plan.indices, side="right") - 1
            for number in set(map(int, numbers)) - touched:
                touched.add(number)
                # Not every system has it; if the file is gone, the read that follows says so.
                with contextlib.suppress(OSError, AttributeError):
                    os.posix_fadvise(self._file(number).fd, 0, 0, os.POSIX_FADV_WILLNEED)
            yield plan

    def close(self) -> None:
        with self._lock:
            self._files.clear()
            self._changed.clear()

    def _sample(self, number: int, row: int, index: ShardIndex) -> Image:
        offset, size = index.offsets.item(row), index.sizes.item(row)
        label_at = BLOCK + padded(size) + BLOCK
        length = label_at + self.manifest.cls_width
        data = os.pread(self._file(number).fd, length, offset - BLOCK)
        if len(data) != length:
            raise ValueError(f"the shard ends {length - len(data)} bytes before this sample does")
        # Python's own bytes: those of NumPy take longer to add and compare.
        key: bytes = index.keys.item(row)
        check_header(data, 0, key + b".jpg", size)
        check_header(data, label_at - BLOCK, key + b".cls", self.manifest.cls_width)
        self._check_jpeg(data, BLOCK + size)
        label = parse_label(data[label_at:], len(self.manifest.classes))
        return Image(np.frombuffer(data, np.uint8, size, BLOCK), label)

    def _check_jpeg(self, data: bytes, end: int) -> None:
        """`check_jpeg` of what lies between the tar header and `end`.

        Encoders write the same bytes before the pixels of all images of one size and quality: what
        begins as the last JPEG that was found right is not parsed again.
        """
        if data.startswith(self._head, BLOCK, end) and data.startswith(EOI, end - 2):
            return
        jpg, manifest = data[BLOCK:end], self.manifest
        check_jpeg(jpg, manifest.size, keep_aspect=manifest.keep_aspect)
        self._head = (jpg[: frame_end(jpg)],)

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
        file = self._files.get(number)
        # Which file was used last matters where not all may be open at one time.
        if file is not None and len(self.lengths) <= self._most_files:
            return file
        with self._lock:
            file = self._files.get(number)
            if file is None:
                file = self._files[number] = _File(self._path(number))
                if len(self._files) > self._most_files:
                    self._files.popitem(last=False)
            self._files.move_to_end(number)
            return file

    def _shard_index(self, number: int) -> ShardIndex:
        index = self._indexes.get(number)
        if index is None:
            with self._index_locks[number]:  # or every thread that comes here would hash the shard
                index = self._indexes.get(number) or self._read_index(number)
                self._indexes[number] = index
        return index

    def _read_index(self, number: int) -> ShardIndex:
        shard = self.split.shards[number]
        path = self.root / shard.index
        try:
            index = ShardIndex.parse(path.read_bytes(), shard, str(path))
        except FileNotFoundError:
            raise DataError(
                f"{path} is missing. Make it again with `alexprep index {shard.name}`."
            ) from None
        if self.hashes:
            self._check_sha256(number, index)
        return index

    def _check_sha256(self, number: int, index: ShardIndex) -> None:
        if number in self._changed:
            raise DataError(self._changed[number])
        path, expected = self._path(number), self.split.shards[number].sha256
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 == expected:
            return
        self._changed[number] = (
            f"{self._culprit(number, index) or path}: the shard's sha256 is {sha256}, the manifest "
            f"says {expected}: its bytes were changed. {self._remedy()}"
        )
        raise DataError(self._changed[number])

    def _culprit(self, number: int, index: ShardIndex) -> str:
        """The first sample with damage that shows, and how; empty if none does."""
        for row in range(len(index.keys)):
            try:
                jpg = self._sample(number, row, index).jpg
                check_scan(jpg.tobytes())
                decode(jpg)
            except (ValueError, OSError) as error:
                return f"{self._where(number, row, index)}: {error}"
        return ""


def check_header(data: bytes, start: int, name: bytes, size: int) -> None:
    """ValueError unless at `start` stands the tar header of a file of that name and size."""
    stored, digits, magic = HEADER.unpack_from(data, start)
    stored = stored.rstrip(b"\0")
    if stored == name and digits == b"%011o" % size and magic == b"ustar":
        return
    if stored != name or magic != b"ustar":
        raise ValueError(f"the index names {name.decode()}, the tar has {stored[:60]!r} there")
    if not TAR_SIZE.fullmatch(digits):
        raise ValueError(f"the tar gives {name.decode()} a size of {digits!r}, not octal digits")
    raise ValueError(f"the index gives {name.decode()} {size} bytes, the tar {int(digits, 8)}")


def parse_label(digits: bytes, classes: int) -> int:
    """The number in a cls member; ValueError if it is none, or none of a class."""
    if not digits.isdigit() or int(digits) >= classes:
        raise ValueError(f"the label is {digits!r}, not a number below {classes}")
    return int(digits)
