"""Batches on the CPU: images that Pillow or DALI decodes, normalized by threads."""

import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import DataError
from pipelines.jpeg import decode
from pipelines.normalize import Factors, Normalize, Pixels, Preprocess
from pipelines.prefetch import prefetch
from pipelines.regions import cut_box, finish_box
from pipelines.shards import RawBatch, SampleReader

JOBS = 4  # of each thread in a batch, so that none waits long for the last one to end
BLOCKS = 4  # buffers to reuse: one batch is used, one written, two are begun

# A batch and the pixels of its images, or what gives them by their number: crops, or whole images
# for ten views.
Decoded = tuple[RawBatch, Pixels | Callable[[int], Pixels]]
# A batch and what writes the finished images of some numbers to the memory of all.
Written = tuple[RawBatch, Callable[[NDArray[Any], range], None]]


class Job(NamedTuple):
    """Some images of a batch, to be written into the memory of that batch."""

    batch: RawBatch
    write: Callable[[NDArray[Any], range], None]
    out: NDArray[Any]
    numbers: range


class Blocks:
    """Buffers for batches, reused once nothing refers to their batch.

    Fresh memory comes as pages that the system fills with zeros one by one: for 128 crops of 227
    pixels 30 to 100 ms, the formula itself takes 12.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._size = 0  # bytes of the largest batch: the last ones of an epoch are smaller

    def empty(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array of a block; the block is free again when the array is."""
        size = prod(shape) * np.dtype(dtype).itemsize
        self._size = max(self._size, size)
        block = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        if len(block) < size:
            block = np.empty(self._size, np.uint8)
        array = block[:size].view(dtype).reshape(shape)
        # A tensor made of the array holds the array, and whatever is made of the tensor the tensor.
        weakref.finalize(array, self._give_back, block).atexit = False
        return array

    def _give_back(self, block: NDArray[np.uint8]) -> None:
        if len(self._free) < BLOCKS:
            self._free.append(block)


def cpu_batches(
    written: Generator[Written],
    normalize: Normalize,
    dtype: torch.dtype,
    *,
    threads: int,
    memory: type[np.generic] | None = None,
) -> Generator[tuple[RawBatch, Tensor]]:
    """Finished images of each batch, one batch early; closing it ends the threads.

    memory: what is written, if it is not `normalize`'s; uint16 are bfloat16.
    """
    count = JOBS * threads
    jobs = _jobs(written, normalize, memory or normalize.dtype, count)
    with closing(written), closing(prefetch(jobs, _run, threads, count)) as finished:
        for job in finished:
            if job.numbers.stop == len(job.batch.jpgs):
                images = torch.as_tensor(job.out)
                images = images.view(torch.bfloat16) if memory is np.uint16 else images
                images = images.permute(0, 3, 1, 2) if normalize.channels_last else images
                yield job.batch, images.to(dtype)


def _jobs(
    written: Iterator[Written], normalize: Normalize, memory: type[np.generic], count: int
) -> Iterator[Job]:
    """The work of each batch in up to `count` jobs."""
    blocks = Blocks()
    for batch, write in written:
        images = len(batch.jpgs)
        out = blocks.empty(normalize.shape(images), memory)
        step = -(-images // count)
        for start in range(0, images, step):
            yield Job(batch, write, out, range(start, min(images, start + step)))


def _run(job: Job) -> Job:
    job.write(job.out, job.numbers)
    return job


def normalized(decoded: Generator[Decoded], normalize: Normalize) -> Generator[Written]:
    """Batches whose pixels are normalized in the threads that write them."""
    with closing(decoded):
        for batch, pixels in decoded:
            factors = normalize.factors(batch.plan.draws)
            yield batch, partial(write_normalized, normalize, pixels, factors)


def write_normalized(
    normalize: Normalize,
    pixels: Pixels | Callable[[int], Pixels],
    factors: Factors,
    out: NDArray[Any],
    numbers: range,
) -> None:
    """Write the images of these numbers from their pixels."""
    if not callable(pixels) and normalize.views == 1:
        some = slice(numbers.start, numbers.stop)
        normalize.write(out[some], pixels[some], factors.of(numbers))
        return
    for i in numbers:
        image = pixels(i) if callable(pixels) else pixels[i]
        if normalize.views > 1:
            normalize.ten_crops(out[i], image)
        else:
            normalize.write(out[i : i + 1], image[np.newaxis], factors.of(range(i, i + 1)))


def pillow_decoded(
    raw: Iterator[RawBatch], reader: SampleReader, preprocess: Preprocess
) -> Generator[Decoded]:
    """Batches whose images Pillow decodes, in the thread that asks for one."""
    for batch in raw:
        yield batch, _decoder(batch, reader, preprocess)


def _decoder(
    batch: RawBatch, reader: SampleReader, preprocess: Preprocess
) -> Callable[[int], Pixels]:
    draws, side = batch.plan.draws, preprocess.spec.crop

    def pixels(i: int) -> Pixels:
        image_HWC = decode_at(reader, batch.jpgs[i], int(batch.plan.indices[i]))
        if draws.regions is not None:
            return finish_box(cut_box(image_HWC, draws.regions, i), draws.regions, i, preprocess)
        if preprocess.views > 1:
            return image_HWC
        y, x = int(draws.y[i]), int(draws.x[i])
        return np.ascontiguousarray(image_HWC[y : y + side, x : x + side])

    return pixels


def decode_at(reader: SampleReader, jpg: NDArray[np.uint8], index: int) -> Pixels:
    """RGB pixels; DataError naming shard, key and offset if the bytes are no whole JPEG."""
    try:
        return decode(jpg)
    except ValueError as error:
        raise DataError(
            f"{reader.where(index)}: {error}. Find all damage with `alexprep verify`, "
            "then copy or make the shard again."
        ) from error
