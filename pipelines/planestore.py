"""A store of decoded images beside the shards: one file of 4:2:0 planes for each tar.

    ROOT/planes/<stem of the tar>.planes

    offset   bytes             content, integers little-endian
    0        8                 b"ALXPLANE"
    8        4                 version, 1
    12       4                 S, the side of the images in pixels
    16       8                 N, the samples of the tar
    24       32                SHA-256 of the tar that the planes were decoded from
    56       32                SHA-256 of everything from offset 4096 on
    88       4                 CRC-32 of bytes 0 to 87
    92       4004              zeros
    4096     N * S * S * 3/2   planes of each sample in tar order: Y, Cb, Cr (pipelines.planes)
    ...      N * 4             label of each sample, unsigned

Files are read, not mapped into memory: a mapped file that shrinks ends the process, and copying an
image's planes takes a tenth of the time of making a crop of them.
"""

import hashlib
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.cpu import Decoded
from pipelines.errors import DataError
from pipelines.format import Manifest, Shard
from pipelines.normalize import Pixels, Preprocess
from pipelines.order import BatchPlan, BatchSchedule
from pipelines.planes import decode_planes, plane_bytes, rgb_crop
from pipelines.shards import HASHED_BYTES, Check, Image, RawBatch, SampleReader, SplitReader

FOLDER = "planes"
MAGIC = b"ALXPLANE"
VERSION = 1
HEADER_BYTES = 4096  # a page, so that planes begin where the system's pages do
FIELDS = struct.Struct("<8sIIQ32s32s")
CHECKSUM = struct.Struct("<I")
CHUNK = 1 << 22
OPEN_FILES = 256


def planes_path(root: Path, shard: Shard) -> Path:
    """Where the planes of a shard are."""
    return root / FOLDER / f"{Path(shard.name).stem}.planes"


def planes_file_bytes(size: int, samples: int) -> int:
    """Length of a whole file of planes."""
    return HEADER_BYTES + samples * (plane_bytes(size) + 4)


class PlanesHeader(NamedTuple):
    """What the first 92 bytes of a file of planes say."""

    size: int
    samples: int
    tar_sha256: str
    body_sha256: str

    def to_bytes(self) -> bytes:
        digests = (bytes.fromhex(self.tar_sha256), bytes.fromhex(self.body_sha256))
        fields = FIELDS.pack(MAGIC, VERSION, self.size, self.samples, *digests)
        return (fields + CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Self:
        """DataError unless `data` begins with a header of this version."""
        remedy = "Remove it and run `alexprep planes` again."
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise DataError(
                f"{path} is not a file of planes: it begins with {data[:8]!r}. {remedy}"
            )
        magic_to_digests = data[: FIELDS.size]
        _, version, size, samples, tar_digest, body_digest = FIELDS.unpack(magic_to_digests)
        if version != VERSION:
            raise DataError(
                f"{path} has version {version}, this alexprep reads {VERSION}. {remedy}"
            )
        (checksum,) = CHECKSUM.unpack_from(data, FIELDS.size)
        if checksum != zlib.crc32(magic_to_digests) or any(data[FIELDS.size + 4 : HEADER_BYTES]):
            raise DataError(f"{path}: the header is damaged. {remedy}")
        return cls(size, samples, tar_digest.hex(), body_digest.hex())


def write_planes(path: Path, shard: Shard, size: int, samples: Iterable[tuple[bytes, int]]) -> None:
    """Write the planes of a shard: `samples` gives each JPEG and label in tar order.

    The file appears under its name when it is whole and on disk, or not at all.
    ValueError for a JPEG that planes cannot hold, naming its number; OSError names the path.
    """
    partial = path.with_name(f"{path.name}.partial")
    digest = hashlib.sha256()
    labels: list[int] = []
    planes = np.empty(plane_bytes(size), np.uint8)
    try:
        with partial.open("wb") as file:
            file.write(bytes(HEADER_BYTES))
            for number, (jpg, label) in enumerate(samples):
                try:
                    decode_planes(jpg, size, planes)
                except ValueError as error:
                    raise ValueError(f"sample {number}: {error}") from error
                file.write(planes.data)
                digest.update(planes.data)
                labels.append(label)
            if len(labels) != shard.samples:
                raise ValueError(f"{len(labels)} samples came, the manifest has {shard.samples}")
            tail = np.array(labels, "<u4").tobytes()
            file.write(tail)
            digest.update(tail)
            file.seek(0)
            header = PlanesHeader(size, shard.samples, shard.sha256, digest.hexdigest())
            file.write(header.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


class PlanesFile:
    """An open file of planes that belongs to a shard; reads from any number of threads.

    DataError if the file is missing, cut, damaged, of another version or of another shard.
    """

    def __init__(self, root: Path, shard: Shard, size: int) -> None:
        self.path = planes_path(root, shard)
        self.size = size
        self.samples = shard.samples
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise DataError(
                f"{self.path} is missing. Make it with `alexprep planes {root}`."
            ) from None
        try:
            self.header = PlanesHeader.from_bytes(self._read(HEADER_BYTES, 0), self.path)
            self._check_shard(shard, os.fstat(self.descriptor).st_size)
        except BaseException:
            self.close()
            raise

    def planes(self, row: int) -> NDArray[np.uint8]:
        """Planes of a sample, (plane_bytes(size),), in memory of their own."""
        length = plane_bytes(self.size)
        data = self._read(length, HEADER_BYTES + row * length)
        if len(data) != length:
            raise DataError(
                f"{self.path}: it ends {length - len(data)} bytes before sample {row} does: it was "
                "cut while it was read. Run `alexprep planes` again."
            )
        return np.frombuffer(data, np.uint8)

    def labels(self) -> NDArray[np.int64]:
        """Labels of all samples, (samples,)."""
        start = HEADER_BYTES + self.samples * plane_bytes(self.size)
        data = self._read(4 * self.samples, start)
        if len(data) != 4 * self.samples:
            raise DataError(f"{self.path}: it was cut. Run `alexprep planes` again.")
        return np.frombuffer(data, "<u4").astype(np.int64)

    def check_body(self) -> None:
        """Hash everything after the header; DataError if it is not what was written."""
        digest, position = hashlib.sha256(), HEADER_BYTES
        while chunk := self._read(CHUNK, position):
            digest.update(chunk)
            position += len(chunk)
        if digest.hexdigest() != self.header.body_sha256:
            raise DataError(
                f"{self.path}: its bytes were changed (SHA-256 {digest.hexdigest()}, the header "
                f"says {self.header.body_sha256}). Remove it and run `alexprep planes` again."
            )

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __del__(self) -> None:
        # A reader that keeps few files open lets go of this one while another thread may read it.
        if getattr(self, "descriptor", -1) >= 0:
            self.close()

    def _read(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}.") from error

    def _check_shard(self, shard: Shard, length: int) -> None:
        header = self.header
        if header.tar_sha256 != shard.sha256 or header.samples != shard.samples:
            raise DataError(
                f"{self.path} was made of another {shard.name}: its tar had SHA-256 "
                f"{header.tar_sha256}, this one has {shard.sha256}. Remove it and run "
                "`alexprep planes` again."
            )
        expected = planes_file_bytes(self.size, shard.samples)
        if header.size != self.size or length != expected:
            raise DataError(
                f"{self.path} has {length} bytes for images of {header.size} pixels, expected "
                f"{expected} for {self.size}. Remove it and run `alexprep planes` again."
            )


class PlanesReader:
    """Random access to the stored planes of a split; safe to use from several threads.

    A SampleReader whose images are planes, (plane_bytes(size),), in place of JPEGs. The constructor
    raises DataError for a file that is missing, cut or of another shard.

    Args:
        root: the data set.
        manifest: of the data set.
        split: name of the split.
        check: as SplitReader has it, of the files of planes.
    """

    concurrent = True
    means = ""

    def __init__(self, root: Path, manifest: Manifest, split: str, check: Check = "auto") -> None:
        self._samples = SplitReader(root, manifest, split, "size")
        self.root, self.manifest, self.split = root, manifest, self._samples.split
        self.lengths = self._samples.lengths
        stored = sum(planes_file_bytes(manifest.size, length) for length in self.lengths)
        self._hashes = check == "sha256" or (check == "auto" and stored <= HASHED_BYTES)
        self._hashed: set[int] = set()
        self._open: OrderedDict[int, tuple[PlanesFile, NDArray[np.int64]]] = OrderedDict()
        self._lock = threading.Lock()
        for shard in self.split.shards:
            PlanesFile(root, shard, manifest.size).close()

    def read(self, index: int) -> Image:
        """Planes and label of the sample at `index` in the split's own order."""
        number, row = self._samples.locate(index)
        file, labels = self._file(number)
        return Image(file.planes(row), int(labels[row]))

    def where(self, index: int) -> str:
        """File and row of a sample, for messages."""
        number, row = self._samples.locate(index)
        return f"{planes_path(self.root, self.split.shards[number])}, sample {row}"

    def keys(self) -> list[str]:
        """Keys of the whole split in its own order."""
        return self._samples.keys()

    def batches(self, schedule: BatchSchedule, epoch: int, step: int) -> Iterator[BatchPlan]:
        """Plans of the schedule, from a step on."""
        return schedule.batches(epoch, step)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _file(self, number: int) -> tuple[PlanesFile, NDArray[np.int64]]:
        with self._lock:
            opened = self._open.get(number)
            if opened is None:
                opened = self._open[number] = self._opened(number)
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return opened

    def _opened(self, number: int) -> tuple[PlanesFile, NDArray[np.int64]]:
        file = PlanesFile(self.root, self.split.shards[number], self.manifest.size)
        if self._hashes and number not in self._hashed:
            file.check_body()
            self._hashed.add(number)
        labels = file.labels()
        if labels.max(initial=0) >= len(self.manifest.classes):
            raise DataError(
                f"{file.path} has label {labels.max()}, the data set has "
                f"{len(self.manifest.classes)} classes. Run `alexprep planes` again."
            )
        return file, labels


def has_planes(root: Path, manifest: Manifest, split: str) -> bool:
    """Whether every shard of the split has a file of planes; what is in them is not looked at."""
    shards = manifest.splits[split].shards if split in manifest.splits else ()
    return bool(shards) and all(planes_path(root, shard).is_file() for shard in shards)


def planes_decoded(
    raw: Iterator[RawBatch], reader: SampleReader, preprocess: Preprocess
) -> Generator[Decoded]:
    """Batches whose images are made from planes, in the threads that normalize them."""
    size = reader.manifest.size
    for batch in raw:
        yield batch, _crops(batch, preprocess, size)


def _crops(batch: RawBatch, preprocess: Preprocess, size: int) -> Callable[[int], Pixels]:
    draws, side = batch.plan.draws, preprocess.spec.crop

    def pixels(i: int) -> Pixels:
        if preprocess.views > 1:
            y, x, crop_HWC = 0, 0, np.empty((size, size, 3), np.uint8)
        else:
            y, x, crop_HWC = int(draws.y[i]), int(draws.x[i]), np.empty((side, side, 3), np.uint8)
        rgb_crop(batch.jpgs[i], size, y, x, crop_HWC)
        return crop_HWC

    return pixels
