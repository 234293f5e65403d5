"""The file of planes of a shard: decoded images, which pipelines.planestore reads as batches.

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

Files are read, not mapped into memory: a mapped file that shrinks ends the process, and reading an
image's planes takes a fifth of the time of making a crop of them.
"""

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.atomic import whole_file
from pipelines.errors import DataError
from pipelines.format import Shard

FOLDER = "planes"
MAGIC = b"ALXPLANE"
VERSION = 1
HEADER_BYTES = 4096  # a page, so that planes begin where the system's pages do
FIELDS = struct.Struct("<8sIIQ32s32s")
CHECKSUM = struct.Struct("<I")
CHUNK = 1 << 22


def plane_bytes(size: int) -> int:
    """Bytes of the planes of one image of `size` x `size` pixels."""
    return size * size * 3 // 2


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
        if checksum != zlib.crc32(magic_to_digests) or data[FIELDS.size + 4 : HEADER_BYTES].strip(
            b"\0"
        ):
            raise DataError(f"{path}: the header is damaged. {remedy}")
        return cls(size, samples, tar_digest.hex(), body_digest.hex())


def write_planes(path: Path, shard: Shard, size: int, samples: Iterable[tuple[bytes, int]]) -> None:
    """Write the planes of a shard: `samples` gives each JPEG and label in tar order.

    The file appears under its name when it is whole and on disk, or not at all.
    ValueError for a JPEG that planes cannot hold, naming its number; OSError names the path.
    """
    from pipelines.planes import decode_planes  # noqa: PLC0415 - needs numba, which readers do not

    digest = hashlib.sha256()
    labels: list[int] = []
    planes = np.empty(plane_bytes(size), np.uint8)
    with whole_file(path) as file:
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
            raise ValueError(f"{len(labels)} samples were given, the manifest has {shard.samples}")
        tail = np.array(labels, "<u4").tobytes()
        file.write(tail)
        digest.update(tail)
        file.seek(0)
        header = PlanesHeader(size, shard.samples, shard.sha256, digest.hexdigest())
        file.write(header.to_bytes())


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

    def offset(self, row: int) -> int:
        """Where the planes of a sample begin."""
        return HEADER_BYTES + row * plane_bytes(self.size)

    def read_ahead(self, row: int) -> None:
        """Ask the system to have the planes of a sample in its memory soon."""
        # Not every system can; if the file is gone, the read that follows says so.
        with contextlib.suppress(OSError, AttributeError):
            length = plane_bytes(self.size)
            os.posix_fadvise(self.descriptor, self.offset(row), length, os.POSIX_FADV_WILLNEED)

    def planes(self, row: int) -> NDArray[np.uint8]:
        """Planes of a sample, (plane_bytes(size),), in memory of their own."""
        length = plane_bytes(self.size)
        data = self._read(length, self.offset(row))
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
