"""A store of decoded images beside the shards, read in place of their JPEGs: the same pixels."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cpu import Written, write_normalized
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.normalize import Factors, Normalize, Pixels, Preprocess
from pipelines.order import BatchPlan, BatchSchedule
from pipelines.planes_loops import crop_CHW, crop_HWC, rgb_crop
from pipelines.planesfile import PlanesFile, planes_file_bytes, planes_path
from pipelines.regions import finish_box
from pipelines.shards import HASHED_BYTES, Check, Image, RawBatch, SplitReader

OPEN_FILES = 256


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


def planes_written(
    raw: Iterator[RawBatch], size: int, preprocess: Preprocess, normalize: Normalize
) -> Generator[Written]:
    """Batches whose images are made from planes of `size` pixels in the threads that write them.

    In one pass, but for bytes, ten views and regions that are resized: their pixels come first.
    """
    two_passes = normalize.dtype == np.uint8 or normalize.views > 1
    for batch in raw:
        draws = batch.plan.draws
        factors = normalize.factors(draws)
        if two_passes or draws.regions is not None:
            pixels = _crops(batch, preprocess, size)
            yield batch, partial(write_normalized, normalize, pixels, factors)
        else:
            corners = np.stack([draws.y, draws.x, draws.mirror], axis=1).tolist()
            yield batch, partial(_write_crops, batch.jpgs, corners, normalize, factors)


def _write_crops(
    planes: Sequence[NDArray[np.uint8]],
    corners: Sequence[Sequence[int]],
    normalize: Normalize,
    factors: Factors,
    out: NDArray[Any],
    numbers: range,
) -> None:
    crop, images = crop_CHW, normalize.mean_images
    if normalize.channels_last:  # rows of colours, as the kernel's loop takes them
        crop, out = crop_HWC, out.reshape(*out.shape[:2], -1)
        images = images.reshape(*images.shape[:2], -1)
    for i in numbers:
        top, left, mirror = corners[i]
        image, origin = images[factors.image[i]], tuple(factors.origin[i].tolist())
        crop(out[i], planes[i], (top, left, mirror), image, origin, factors.levels[i])


def _crops(batch: RawBatch, preprocess: Preprocess, size: int) -> Callable[[int], Pixels]:
    draws, side = batch.plan.draws, preprocess.side
    regions = draws.regions

    def pixels(i: int) -> Pixels:
        if regions is not None:
            y, x, height, width = regions.box[i].tolist()
        elif preprocess.views > 1:
            y, x, height, width = 0, 0, size, size
        else:
            y, x, height, width = int(draws.y[i]), int(draws.x[i]), side, side
        pixels_HWC = np.empty((height, width, 3), np.uint8)
        rgb_crop(batch.jpgs[i], size, y, x, pixels_HWC)
        return pixels_HWC if regions is None else finish_box(pixels_HWC, regions, i, preprocess)

    return pixels
