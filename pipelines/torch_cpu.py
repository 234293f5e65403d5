"""The augmentation in Pillow and NumPy: the fallback, and the reference of the other backends."""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment import AugmentSpec, Colours
from pipelines.errors import DataError
from pipelines.finish import Finish
from pipelines.jpeg import decode
from pipelines.readahead import RawBatch, Reader, look_ahead

AHEAD = 1  # batches decoded while another is augmented and used


class Recipe(NamedTuple):
    """What a backend makes of raw batches; the same for all of them."""

    spec: AugmentSpec
    colours: Colours
    views: int  # 1: crops; 10: the ten views
    finish: Finish


def torch_batches(
    raw: Iterator[RawBatch], reader: Reader, recipe: Recipe, *, threads: int
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of each raw batch, made by `threads` threads one batch ahead; closing ends them."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="alexprep-decode")

    def start(batch: RawBatch) -> Started:
        made = empty_batch(len(batch.jpgs), recipe)
        images = made.numpy()
        jobs = [
            pool.submit(make_image, images[number], reader, batch, number, recipe)
            for number in range(len(batch.jpgs))
        ]
        return Started(batch, made, jobs)

    try:
        for batch, made, jobs in look_ahead(raw, start, AHEAD):
            for job in jobs:
                job.result()
            if recipe.views > 1:
                yield batch, recipe.finish.views(made)
            else:
                yield batch, recipe.finish.crops(made, batch.task.draws)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Started(NamedTuple):
    """A batch whose images are being made by threads."""

    batch: RawBatch
    made: Tensor
    jobs: list[Future[None]]


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
