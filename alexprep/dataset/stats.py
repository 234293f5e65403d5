"""`alexprep stats`: mean image and principal colours of a split, in one pass over its shards.

A worker reads a shard once, and hashes the bytes that it decodes. It returns exact integer sums,
which may be added in any order, so the statistics are the same bits however the shards were divided
among processes or machines, and however often the run was interrupted.
"""

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from alexprep.dataset.card_files import has_card, renew_card
from alexprep.dataset.checksums import write_checksums
from alexprep.dataset.moments import Ints, Moments, image_stats
from alexprep.dataset.store import LocalStore
from alexprep.errors import PrepareError, warn
from alexprep.machine import cores
from alexprep.progress import ProgressBar
from alexprep.tar import TarMember, TarStream
from alexprep.workers import run_tasks
from pipelines.atomic import write_whole
from pipelines.errors import DataError
from pipelines.format import Manifest, Shard
from pipelines.imagestats import ImageStats
from pipelines.planesfile import PlanesFile

DECODER = f"simplejpeg {simplejpeg.__version__}"


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsTask:
    """One shard for a worker: where it is and what its images should measure."""

    root: Path
    shard: Shard
    size: int
    keep_aspect: bool = False
    decoder: str = DECODER
    """Of the process that plans: a worker may have another one."""

    @property
    def name(self) -> str:
        return self.shard.name


def compute_stats(
    root: Path,
    split: str = "train",
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    out: Path | None = None,
) -> ImageStats:
    """Measure a split and write stats.json, stats.npz and mean.png to `out`.

    Of images that keep their aspect ratio the central squares are measured.

    That is the folder of the manifest by default; for any other, `root` is only read. The sums of
    finished shards are in OUT/.stats-<split>.sums until all are done, so that the same call resumes
    one that was stopped.

    Raises:
        DataError: a shard is missing, cut or changed, or an image has another size, or the split
            is empty, or the folder cannot be written to; nothing is written then.
        PrepareError: another process writes to the folder.
    """
    root = root.absolute()
    manifest = Manifest.load(root)
    shards = manifest.split(split, root).shards
    if not sum(shard.samples for shard in shards):
        raise DataError(f"Split {split!r} of {root} has no images. Shard a source that has some.")
    _check_files(root, shards)
    folder = root if out is None else out.absolute()
    # Found out now, not after an hour of decoding.
    if folder == root and not os.access(root, os.W_OK):
        raise DataError(
            f"{root} cannot be written to. Write the statistics to another folder with --out, and "
            "give that to `alexprep train --stats`."
        )
    with LocalStore(folder).locked():
        partial = PartialSums(
            folder / f".stats-{split}.sums", Moments.none(manifest.size, manifest.size)
        )
        tasks = [
            StatsTask(root=root, shard=shard, size=manifest.size, keep_aspect=manifest.keep_aspect)
            for shard in shards
        ]
        _add_shards(partial, tasks, workers or cores(), scheduler)
        stats = image_stats(split, partial.moments, {shard.name: shard.sha256 for shard in shards})
        stats.save(folder)
        partial.path.unlink(missing_ok=True)
        edited: tuple[str, ...] = ()
        if folder == root and has_card(root):
            edited = renew_card(root)
        elif folder == root:
            write_checksums(root, manifest)
    for name in edited:
        warn(
            f"{root / name} was edited by hand and is kept without the statistics; `alexprep card "
            "--force` overwrites it."
        )
    return stats


def _add_shards(
    partial: "PartialSums", tasks: Sequence[StatsTask], workers: int, scheduler: str | None
) -> None:
    """Add all shards that `partial` does not have; a damaged one makes the others suspect."""
    label = f"stats {PurePosixPath(tasks[0].shard.name).parent}"
    partial.restore({task.shard.name: task.shard.sha256 for task in tasks})
    missing = [task for task in tasks if task.shard.name not in partial.shards]
    pending = [task.shard for task in missing]
    sums = run_tasks(shard_moments, missing, workers=workers, scheduler=scheduler)
    try:
        with (
            ProgressBar(label, sum(shard.samples for shard in pending)) as progress,
            closing(sums),
        ):
            for index, moments in sums:
                partial.add(pending[index], moments)
                progress.advance(pending[index].samples, bytes=pending[index].bytes)
    except DataError:
        partial.path.unlink(missing_ok=True)
        raise


def shard_moments(task: StatsTask) -> Moments:
    """Exact sums over the images of one shard; DataError if it is not the one in the manifest.

    Its images come from its file of planes if it has a good one, which gives the same pixels in a
    fraction of the time.
    """
    if task.decoder != DECODER:
        raise PrepareError(
            f"the decoder is {DECODER}, not {task.decoder}: it may give other pixels. "
            "Install the same version as on the machine that runs `alexprep stats`."
        )
    # Compiles when it is imported: in the workers, which need it.
    from alexprep.dataset.pixelsums import Accumulator  # noqa: PLC0415

    sums = Accumulator(task.size, task.size)
    planes = _open_planes(task)
    if planes is None:
        for pixels_HWC in _tar_images(task):
            sums.add(pixels_HWC)
    else:
        with closing(planes):
            for pixels_HWC in _plane_images(planes):
                sums.add(pixels_HWC)
    return sums.moments()


def _open_planes(task: StatsTask) -> PlanesFile | None:
    """The shard's planes, if they are whole and were decoded from this very tar."""
    try:
        planes = PlanesFile(task.root, task.shard, task.size)
        planes.check_body()
    except DataError:
        return None
    return planes


def _plane_images(planes: PlanesFile) -> Iterator[NDArray[np.uint8]]:
    """Each image in turn, in memory that the next one overwrites."""
    from pipelines.planes_loops import rgb_crop  # noqa: PLC0415 - compiles, as above

    pixels_HWC = np.empty((planes.size, planes.size, 3), np.uint8)
    for row in range(planes.samples):
        rgb_crop(planes.planes(row), planes.size, 0, 0, pixels_HWC)
        yield pixels_HWC


def _tar_images(task: StatsTask) -> Iterator[NDArray[np.uint8]]:
    """Each image in turn, in memory that the next one overwrites; then DataError for a wrong tar.

    The bytes that are hashed are those that were decoded.
    """
    path, shard = task.root / task.shard.name, task.shard
    pixels_HWC = np.empty((task.size, task.size, 3), np.uint8)
    images = 0
    with TarStream(path) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                decode(member, path, pixels_HWC, keep_aspect=task.keep_aspect)
                yield pixels_HWC
                images += 1
    for name, expected, actual in (
        ("sha256", shard.sha256, tar.sha256),
        ("number of images", shard.samples, images),
    ):
        if expected != actual:
            raise DataError(
                f"{path} was changed: its {name} is {actual}, the manifest says {expected}. "
                f"{_remedy(task.root)}"
            )


def decode(
    member: TarMember, path: Path, out_HWC: NDArray[np.uint8], *, keep_aspect: bool = False
) -> None:
    """Decode a JPEG to the pixels that DALI and Pillow give, into a square array of its size.

    With `keep_aspect` its central square. simplejpeg takes a third less time than Pillow here, and
    needs no new array.
    """
    size = len(out_HWC)
    try:
        *sides, colours, _ = simplejpeg.decode_jpeg_header(member.data)
        height, width = map(int, sides)
        fits = min(height, width) == size if keep_aspect else height == width == size
        if not fits or colours != "YCbCr":
            expected = f"a shorter side of {size}" if keep_aspect else f"{size}x{size}"
            raise DataError(
                f"{path}: {member.name} is {colours} of {width}x{height}; the data set has YCbCr "
                f"of {expected}. Make it again with `alexprep shard`."
            )
        if (height, width) == (size, size):
            simplejpeg.decode_jpeg(member.data, "RGB", buffer=out_HWC)
        else:
            top, left = (height - size) // 2, (width - size) // 2
            image_HWC = simplejpeg.decode_jpeg(member.data, "RGB")
            out_HWC[...] = image_HWC[top : top + size, left : left + size]
    except ValueError as error:
        raise DataError(f"{path}: {member.name} does not decode ({str(error).strip()}).") from error


class SavedSums(msgspec.Struct):
    """Sums of some shards, (name, sha256), as they lie on disk."""

    shards: dict[str, str]
    images: int
    products: Ints
    sums: bytes  # uint64, (height, width, 3)


class PartialSums:
    """The sums of the shards finished so far, on disk after each of them.

    The file is MessagePack with its CRC-32 before it: a flipped bit of a sum gives one that is as
    likely as the true one.
    """

    def __init__(self, path: Path, nothing: Moments) -> None:
        self.path = path
        self.moments = nothing
        self.shards: dict[str, str] = {}

    def restore(self, present: Mapping[str, str]) -> None:
        """Resume from the sums of an interrupted run, if all of its shards are in `present`.

        Writes the file again, which shows at once whether the folder can be written to.
        """
        saved = self.saved()
        if saved is not None and saved.shards.items() <= present.items():
            shape = self.moments.sum_HWC.shape
            sums = np.frombuffer(saved.sums, np.uint64)
            if sums.size == np.prod(shape):
                self.moments = Moments(saved.images, sums.reshape(shape), saved.products)
                self.shards = saved.shards
        self._write()

    def add(self, shard: Shard, moments: Moments) -> None:
        self.moments = self.moments + moments
        self.shards[shard.name] = shard.sha256
        self._write()

    def saved(self) -> SavedSums | None:
        """What is in the file; None if there is none, or it is damaged."""
        try:
            data = self.path.read_bytes()
            if data[:4] == zlib.crc32(data[4:]).to_bytes(4, "little"):
                return msgspec.msgpack.decode(data[4:], type=SavedSums)
        except (OSError, ValueError):
            pass
        return None

    def _write(self) -> None:
        moments = self.moments
        saved = SavedSums(self.shards, moments.images, moments.products, moments.sum_HWC.tobytes())
        body = msgspec.msgpack.encode(saved)
        write_whole(self.path, zlib.crc32(body).to_bytes(4, "little") + body)


def _check_files(root: Path, shards: tuple[Shard, ...]) -> None:
    """DataError for a file that is missing or too short: now, not after hours."""
    for shard in shards:
        path = root / shard.name
        if not path.is_file():
            raise DataError(f"{path} is missing. {_remedy(root)}")
        length = path.stat().st_size
        if length != shard.bytes:
            raise DataError(
                f"{path} has {length} bytes, the manifest says {shard.bytes}. {_remedy(root)}"
            )


def _remedy(root: Path) -> str:
    return (
        f"Look for more damage with `alexprep verify {root}`; write the shard again with "
        "`alexprep shard`."
    )
