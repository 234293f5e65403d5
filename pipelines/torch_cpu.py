"""The augmentation in Pillow and NumPy: the fallback, and the reference of the other backends."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment import AugmentSpec, Colours
from pipelines.errors import DataError
from pipelines.finish import Finish
from pipelines.jpeg import decode
from pipelines.prefetch import prefetch
from pipelines.readahead import RawBatch, Reader


class Recipe(NamedTuple):
    """What a backend makes of raw batches; the same for all of them."""

    spec: AugmentSpec
    colours: Colours
    views: int  # 1: crops; 10: the ten views
    finish: Finish


class Job(NamedTuple):
    """One image of a batch, to be written into the memory of that batch."""

    batch: RawBatch
    out_NCHW: Tensor  # noqa: N815 - the shape belongs to the name
    number: int


def torch_batches(
    raw: Iterator[RawBatch], reader: Reader, recipe: Recipe, *, threads: int, ahead: int
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of each raw batch, made by `threads` threads, `ahead` images early."""

    def make(job: Job) -> Job:
        make_image(job.out_NCHW[job.number].numpy(), reader, job.batch, job.number, recipe)
        return job

    # Threads share out images, not batches: a batch of float crops is 77 MB at 128 x 224 x 224.
    with closing(prefetch(_jobs(raw, recipe), make, threads, ahead)) as jobs:
        for batch, images, number in jobs:
            if number + 1 < len(batch.jpgs):
                continue
            if recipe.views > 1:
                yield batch, recipe.finish.views(images)
            else:
                yield batch, recipe.finish.crops(images, batch.task.draws)


def _jobs(raw: Iterator[RawBatch], recipe: Recipe) -> Iterator[Job]:
    for batch in raw:
        out_NCHW = empty_batch(len(batch.jpgs), recipe)
        for number in range(len(batch.jpgs)):
            yield Job(batch, out_NCHW, number)


def empty_batch(count: int, recipe: Recipe) -> Tensor:
    """Memory for the crops of a batch, or for whole images where ten views follow."""
    size = recipe.spec.source if recipe.views > 1 else recipe.spec.crop
    finish = recipe.finish
    return torch.empty(
        (count, 3, size, size),
        dtype=torch.uint8 if finish.dtype == torch.uint8 else torch.float32,
        memory_format=torch.channels_last if finish.channels_last else torch.contiguous_format,
    )


def make_image(
    out_CHW: NDArray[Any], reader: Reader, batch: RawBatch, number: int, recipe: Recipe
) -> None:
    """One image of a batch by the formula of pipelines.augment, all but a mean image."""
    draws, colours = batch.task.draws, recipe.colours
    pixels = decode_at(reader, batch.jpgs[number], int(batch.task.places[number]))
    if recipe.views == 1:
        y, x, size = int(draws.y[number]), int(draws.x[number]), recipe.spec.crop
        pixels = pixels[y : y + size, x : x + size]
    if draws.mirror[number]:
        pixels = pixels[:, ::-1]
    pixels_CHW = pixels.transpose(2, 0, 1)
    if out_CHW.dtype == np.uint8:
        out_CHW[...] = pixels_CHW
        return
    unit = 1 / (draws.divide * colours.sd)
    added = (colours.axes @ draws.alpha[number] - colours.mean) * unit
    np.multiply(pixels_CHW, _levels(unit), out=out_CHW)
    out_CHW += _levels(added)


def _levels(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)[:, np.newaxis, np.newaxis]


def decode_at(reader: Reader, jpg: NDArray[np.uint8], place: int) -> NDArray[np.uint8]:
    """RGB pixels; DataError naming shard, key and offset if the bytes are no whole JPEG."""
    try:
        return decode(jpg)
    except ValueError as error:
        raise DataError(
            f"{reader.where(place)}: {error}. Find all damage with `alexprep verify`, "
            "then copy or make the shard again."
        ) from error
