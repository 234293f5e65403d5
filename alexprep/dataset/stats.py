"""`alexprep stats`: mean image and principal colours of a split, in one pass over its shards.

A worker reads a shard once: what it hashes against the manifest is what it decodes. It sends back
exact integer sums, which may be added in any order, so the statistics are the same bits however the
shards were divided among processes or machines and however often the run was interrupted.
"""

import io
import json
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from alexprep.dataset.card import has_card, renew_card
from alexprep.dataset.moments import Moments, colour, mean_image
from alexprep.machine import cores
from alexprep.progress import ProgressBar
from alexprep.tar import TarMember, TarStream
from alexprep.workers import run_tasks
from pipelines.atomic import write_whole
from pipelines.errors import DataError
from pipelines.format import Manifest, Shard
from pipelines.imagestats import ImageStats


@dataclass(frozen=True, kw_only=True, slots=True)
class StatsTask:
    """One shard for a worker: where it is and what its images should measure."""

    root: Path
    shard: Shard
    size: int


def compute_stats(
    root: Path, split: str = "train", *, workers: int | None = None, scheduler: str | None = None
) -> ImageStats:
    """Measure a split and write stats.json, stats.npz and mean.png beside the manifest.

    The sums of finished shards are partial in ROOT/.stats-<split>.sums until all are done: an
    interrupted run goes on from there. DataError, with nothing written, for a shard that is
    missing, cut off or altered, an empty split, or an image of another size.
    """
    root = root.absolute()
    manifest = Manifest.load(root)
    shards = manifest.split(split, root).shards
    if not sum(shard.samples for shard in shards):
        raise DataError(f"Split {split!r} of {root} has no images. Shard a source that has some.")
    _check_files(root, shards)
    partial = PartialSums(root / f".stats-{split}.sums", Moments.none(manifest.size, manifest.size))
    partial.restore({shard.name: shard.sha256 for shard in shards})
    left = [shard for shard in shards if shard.name not in partial.shards]
    try:
        with ProgressBar(f"stats {split}", sum(shard.samples for shard in left)) as progress:
            tasks = [StatsTask(root=root, shard=shard, size=manifest.size) for shard in left]
            count = workers or cores()
            sums = run_tasks(shard_moments, tasks, workers=count, scheduler=scheduler)
            with closing(sums):
                for index, moments in sums:
                    partial.add(left[index], moments)
                    progress.advance(left[index].samples, bytes=left[index].bytes)
    except DataError:
        partial.path.unlink(missing_ok=True)
        raise
    stats = _image_stats(split, partial.moments, shards)
    stats.save(root)
    partial.path.unlink(missing_ok=True)
    if has_card(root):
        for name in renew_card(root):
            sys.stderr.write(
                f"Warning: {root / name} was edited by hand and is kept without the statistics; "
                "`alexprep card --force` writes it anew.\n"
            )
    return stats


def shard_moments(task: StatsTask) -> Moments:
    """Exact sums over the images of one shard; DataError if it is not the one in the manifest."""
    # Compiles when it is imported: in the workers, which need it.
    from alexprep.dataset.pixelsums import Accumulator  # noqa: PLC0415

    path = task.root / task.shard.name
    sums = Accumulator(task.size, task.size)
    pixels_HWC = np.empty((task.size, task.size, 3), np.uint8)
    images = 0
    with TarStream(path) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                decode(member, path, pixels_HWC)
                sums.add(pixels_HWC)
                images += 1
    shard = task.shard
    for what, wanted, got in (
        ("sha256", shard.sha256, tar.sha256),
        ("number of images", shard.samples, images),
    ):
        if wanted != got:
            raise DataError(
                f"{path} was altered: its {what} is {got}, the manifest says {wanted}. "
                f"{_mend(task.root)}"
            )
    return sums.moments()


def decode(member: TarMember, path: Path, out_HWC: NDArray[np.uint8]) -> None:
    """Decode a JPEG to the pixels that DALI and Pillow see, into an array of its size.

    simplejpeg is a third faster than Pillow here, and its array is used again.
    """
    high, wide = out_HWC.shape[:2]
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(member.data)
        if (height, width, colours) != (high, wide, "YCbCr"):
            raise DataError(
                f"{path}: {member.name} is {colours} of {width}x{height}; the data set has YCbCr "
                f"of {wide}x{high}. Make it again with `alexprep shard`."
            )
        simplejpeg.decode_jpeg(member.data, "RGB", buffer=out_HWC)
    except ValueError as error:
        raise DataError(f"{path}: {member.name} does not decode ({str(error).strip()}).") from error


class PartialSums:
    """The sums of the shards finished so far, on disk after each of them."""

    def __init__(self, path: Path, nothing: Moments) -> None:
        self.path = path
        self.moments = nothing
        self.shards: dict[str, str] = {}

    def restore(self, present: Mapping[str, str]) -> None:
        """Take up what an interrupted run left, if all of it is of shards in `present`.

        Writes the file again, so that a folder that cannot be written to is found out at once.
        """
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as file:
                shards = json.loads(str(file["shards"]))
                products = tuple(tuple(row) for row in json.loads(str(file["products"])))
                moments = Moments(int(file["images"]), file["sum_HWC"], products)
        except (OSError, ValueError, KeyError, TypeError, BadZipFile, EOFError):
            pass
        else:
            same_size = moments.sum_HWC.shape == self.moments.sum_HWC.shape
            if same_size and shards.items() <= present.items():
                self.shards, self.moments = shards, moments
        self._write()

    def add(self, shard: Shard, moments: Moments) -> None:
        self.moments = self.moments + moments
        self.shards[shard.name] = shard.sha256
        self._write()

    def _write(self) -> None:
        data = io.BytesIO()
        np.savez(
            data,
            shards=json.dumps(self.shards),
            images=self.moments.images,
            products=json.dumps(self.moments.products),
            sum_HWC=self.moments.sum_HWC,
        )
        write_whole(self.path, data.getvalue())


def _check_files(root: Path, shards: tuple[Shard, ...]) -> None:
    """Find out in a moment, not after hours, that a file is missing or too short."""
    for shard in shards:
        path = root / shard.name
        if not path.is_file():
            raise DataError(f"{path} is missing. {_mend(root)}")
        length = path.stat().st_size
        if length != shard.bytes:
            raise DataError(
                f"{path} has {length} bytes, the manifest says {shard.bytes}. {_mend(root)}"
            )


def _mend(root: Path) -> str:
    return f"See what else is with `alexprep verify {root}`; make it again with `alexprep shard`."


def _image_stats(split: str, moments: Moments, shards: tuple[Shard, ...]) -> ImageStats:
    height, width = moments.sum_HWC.shape[:2]
    found = colour(moments)
    return ImageStats(
        split=split,
        images=moments.images,
        height=height,
        width=width,
        mean_image_HWC=mean_image(moments),
        mean=found.mean,
        sd=found.sd,
        covariance=found.covariance,
        eigenvalues=found.eigenvalues,
        stdevs=found.stdevs,
        eigenvectors=found.eigenvectors,
        shards={shard.name: shard.sha256 for shard in shards},
    )
