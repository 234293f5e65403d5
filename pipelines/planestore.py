"""A store of decoded images beside the shards, read in place of their JPEGs: the same pixels."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import Draws
from pipelines.cpu import Written, write_normalized
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.normalize import Crops, Normalize, Pixels, Preprocess
from pipelines.order import BatchPlan, BatchSchedule
from pipelines.planes_loops import StoredCrops, rgb_crop, write_crops
from pipelines.planesfile import PlanesFile, planes_file_bytes, planes_path
from pipelines.regions import finish_box
from pipelines.shards import (
    HASHED_BYTES,
    Check,
    Image,
    RawBatch,
    SplitReader,
    first_indices,
    most_open_files,
)


class StoredBatch(Sequence[NDArray[np.uint8]]):
    """Planes of the images of a batch; an item is read when it is asked for.

    Files are opened by those who read: the batches that are under way have images in more files
    than a process may open.
    """

    def __init__(self, reader: "PlanesReader", numbers: list[int], rows: list[int]) -> None:
        self.reader, self.numbers, self.rows = reader, numbers, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        index = int(number)
        return self.file(index).planes(self.rows[index])

    def file(self, number: int) -> PlanesFile:
        """The open file of an image."""
        return self.reader.open_file(self.numbers[number])[0]


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
        self._firsts = first_indices(self.lengths)
        stored = sum(planes_file_bytes(manifest.size, length) for length in self.lengths)
        self._hashes = check == "sha256" or (check == "auto" and stored <= HASHED_BYTES)
        self._labels: dict[int, NDArray[np.int64]] = {}
        self._files: OrderedDict[int, PlanesFile] = OrderedDict()
        self._most_files = most_open_files()
        self._lock = threading.Lock()
        for shard in self.split.shards:
            PlanesFile(root, shard, manifest.size).close()

    def read(self, index: int) -> Image:
        """Planes and label of the sample at `index` in the split's own order."""
        number, row = self._samples.locate(index)
        file, labels = self.open_file(number)
        return Image(file.planes(row), int(labels[row]))

    def open_batch(self, plan: BatchPlan) -> RawBatch:
        """Labels of the samples of a plan, whose planes the system reads ahead meanwhile."""
        values: list[int] = []
        files = np.searchsorted(self._firsts, plan.indices, side="right") - 1
        numbers: list[int] = files.tolist()
        rows: list[int] = (plan.indices - self._firsts[files]).tolist()
        for number, row in zip(numbers, rows, strict=True):
            file, labels = self.open_file(number)
            file.read_ahead(row)
            values.append(int(labels[row]))
        return RawBatch(plan, StoredBatch(self, numbers, rows), np.array(values, np.int64))

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
            self._files.clear()

    def open_file(self, number: int) -> tuple[PlanesFile, NDArray[np.int64]]:
        """File and labels of a shard; it stays open for those who hold it."""
        with self._lock:
            file = self._files.get(number)
            if file is None:
                file = PlanesFile(self.root, self.split.shards[number], self.manifest.size)
                if number not in self._labels:
                    self._labels[number] = self._checked_labels(file)
                self._files[number] = file
                if len(self._files) > self._most_files:
                    self._files.popitem(last=False)
            self._files.move_to_end(number)
            return file, self._labels[number]

    def _checked_labels(self, file: PlanesFile) -> NDArray[np.int64]:
        if self._hashes:
            file.check_body()
        labels = file.labels()
        if labels.max(initial=0) >= len(self.manifest.classes):
            raise DataError(
                f"{file.path} has label {labels.max()}, the data set has "
                f"{len(self.manifest.classes)} classes. Run `alexprep planes` again."
            )
        return labels


def has_planes(root: Path, manifest: Manifest, split: str) -> bool:
    """Whether every shard of the split has a file of planes; what is in them is not looked at."""
    shards = manifest.splits[split].shards if split in manifest.splits else ()
    return bool(shards) and all(planes_path(root, shard).is_file() for shard in shards)


def written_type(preprocess: Preprocess) -> type[np.generic] | None:
    """What `planes_written` writes, where that is not what `Normalize` does: bfloat16's bits."""
    halves = preprocess.dtype == "bfloat16" and not preprocess.regions
    return np.uint16 if halves else None


def planes_written(
    raw: Iterator[RawBatch], size: int, preprocess: Preprocess, normalize: Normalize
) -> Generator[Written]:
    """Batches whose images are read and made from planes in the threads that write them.

    In one pass, but for regions that are resized: their pixels come first.
    """
    means = normalize.mean_images
    if normalize.channels_last:
        means = np.ascontiguousarray(means.transpose(0, 3, 1, 2))
    for batch in raw:
        stored = cast(StoredBatch, batch.jpgs)
        if preprocess.regions:
            pixels = _regions(stored, batch.plan.draws, preprocess, size)
            factors = normalize.factors(batch.plan.draws)
            yield batch, partial(write_normalized, normalize, pixels, factors)
        else:
            crops = normalize.crops(batch.plan.draws)
            yield batch, partial(_write, stored, crops, means, normalize)


def _write(
    stored: StoredBatch,
    crops: Crops,
    means: NDArray[np.float32],
    normalize: Normalize,
    out: NDArray[Any],
    numbers: range,
) -> None:
    files, views = [stored.file(number) for number in numbers], normalize.views
    offsets = [file.offset(stored.rows[i]) for file, i in zip(files, numbers, strict=True)]
    some = range(numbers.start * views, numbers.stop * views)
    factors = crops.factors.of(some)
    arguments = StoredCrops(
        files=np.repeat(np.array([file.descriptor for file in files], np.int32), views),
        offsets=np.repeat(np.array(offsets, np.int64), views),
        corners=crops.corners[some.start : some.stop],
        images=factors.image,
        origins=factors.origin,
        levels=factors.levels,
    )
    # Rows of colours, as the kernel's loop takes them, or the crops of all views.
    shape = (out.shape[1], -1) if normalize.channels_last else out.shape[-3:]
    memory = out[numbers.start : numbers.stop].reshape(len(some), *shape)
    done = 0
    while done < len(some):
        done = write_crops(memory, arguments, means, done, len(some))
        if done < len(some):
            _ = stored[numbers[done // views]]  # says why it cannot be read


def _regions(
    stored: StoredBatch, draws: Draws, preprocess: Preprocess, size: int
) -> Callable[[int], Pixels]:
    def pixels(i: int) -> Pixels:
        if draws.regions is None:
            raise ValueError("These draws have no regions.")
        y, x, height, width = draws.regions.box[i].tolist()
        pixels_HWC = np.empty((height, width, 3), np.uint8)
        rgb_crop(stored[i], size, y, x, pixels_HWC)
        return finish_box(pixels_HWC, draws.regions, i, preprocess)

    return pixels
