"""`alexprep planes`: decode every image once, into the files that pipelines.planesfile reads."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alexprep.dataset.checksums import SUMS, write_checksums
from alexprep.dataset.store import LocalStore
from alexprep.errors import PrepareError
from alexprep.machine import cores, free_bytes
from alexprep.progress import ProgressBar
from alexprep.workers import run_tasks
from pipelines.atomic import make_folder
from pipelines.errors import DataError
from pipelines.format import Manifest, Shard
from pipelines.planesfile import (
    FOLDER,
    PlanesFile,
    planes_file_bytes,
    planes_path,
    write_planes,
)
from pipelines.shards import SplitReader


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanesTask:
    """One shard to decode: number `number` of a split of the data set at `root`."""

    root: Path
    split: str
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanesSummary:
    """Files of planes that a data set has now, how many were written, images and bytes of all."""

    files: int
    written: int
    images: int
    bytes: int


def store_planes(
    root: Path, splits: Sequence[str] = (), *, workers: int | None = None
) -> PlanesSummary:
    """Write the planes of all shards of `splits` (none: of every split) that have none yet.

    Whole files of these very shards are kept, so that the same call resumes one that was stopped.

    Raises:
        DataError: there is no finished data set at `root`, or a shard is damaged.
        PrepareError: a shard holds what planes cannot, the disk is too small, or another process
            writes to `root`.
    """
    root = root.absolute()
    manifest = Manifest.load(root)
    if manifest.keep_aspect:
        raise PrepareError(
            f"{root} keeps the aspect ratio of its images, and planes hold squares of one size. "
            "Train from its JPEGs, or make a data set without --keep-aspect."
        )
    names = tuple(splits) or tuple(manifest.splits)
    shards = [shard for name in names for shard in manifest.split(name, root).shards]
    # `shard` and `stats` write to the same folder.
    with LocalStore(root).locked():
        written = _write_missing(root, manifest, names, workers or cores())
        if not (root / SUMS).is_file():  # of the first release
            write_checksums(root, manifest)
    return PlanesSummary(
        files=len(shards),
        written=written,
        images=sum(shard.samples for shard in shards),
        bytes=sum(planes_file_bytes(manifest.size, shard.samples) for shard in shards),
    )


def _write_missing(root: Path, manifest: Manifest, names: Sequence[str], workers: int) -> int:
    make_folder(root / FOLDER)
    for partial in (root / FOLDER).glob("*.partial"):  # of a call that was killed
        partial.unlink()
    tasks = [
        PlanesTask(root=root, split=name, number=number)
        for name in names
        for number, shard in enumerate(manifest.splits[name].shards)
        if not _is_stored(root, shard, manifest.size)
    ]
    if not tasks:
        return 0
    pending = [manifest.splits[task.split].shards[task.number] for task in tasks]
    _check_space(root, sum(planes_file_bytes(manifest.size, shard.samples) for shard in pending))
    with (
        ProgressBar("planes", sum(shard.samples for shard in pending)) as progress,
        closing(run_tasks(_store_shard, tasks, workers=workers)) as results,
    ):
        for index, size in results:
            progress.advance(pending[index].samples, bytes=size)
    return len(tasks)


def _is_stored(root: Path, shard: Shard, size: int) -> bool:
    try:
        PlanesFile(root, shard, size).close()
    except DataError:
        return False
    return True


def _check_space(root: Path, needed: int) -> None:
    free = free_bytes(root)
    if needed > free:
        raise PrepareError(
            f"{root / FOLDER} needs {needed / 1e9:,.2f} GB more, the disk has {free / 1e9:,.2f} GB "
            "free. Make room, or store one split with --split."
        )


@cache
def _reader(root: Path, split: str) -> SplitReader:
    """One a process: indexes are parsed once, and each shard is hashed before it is decoded."""
    return SplitReader(root, Manifest.load(root), split, "sha256")


def _store_shard(task: PlanesTask) -> int:
    reader = _reader(task.root, task.split)
    shard = reader.split.shards[task.number]
    path = planes_path(task.root, shard)
    try:
        write_planes(path, shard, reader.manifest.size, _samples(reader, task.number))
    except ValueError as error:
        raise PrepareError(
            f"{shard.name} cannot be stored as planes: {error}. Train from its JPEGs, or make the "
            "data set again with `alexprep shard`, which writes 4:2:0 at even sides."
        ) from error
    return path.stat().st_size


def _samples(reader: SplitReader, number: int) -> Iterator[tuple[bytes, int]]:
    first = sum(reader.lengths[:number])
    for position in range(first, first + reader.lengths[number]):
        image = reader.read(position)
        yield image.jpg.tobytes(), image.label
