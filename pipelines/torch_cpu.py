"""The augmentation in Pillow and torch on the CPU: fallback and reference of the other backends."""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment import AugmentSpec, Colours, Draws, shift
from pipelines.errors import DataError
from pipelines.finish import Finish, tensor
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
    """Images of each raw batch, decoded by `threads` threads one batch ahead; closing ends them."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="alexprep-decode")

    def pixels(batch: RawBatch) -> list[Future[NDArray[np.uint8]]]:
        places = batch.task.places.tolist()
        return [
            pool.submit(decode_at, reader, jpg, place)
            for jpg, place in zip(batch.jpgs, places, strict=True)
        ]

    try:
        for batch, decoded in look_ahead(raw, lambda batch: (batch, pixels(batch)), AHEAD):
            yield batch, apply([each.result() for each in decoded], batch.task.draws, recipe)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def apply(pixels_HWC: list[NDArray[np.uint8]], draws: Draws, recipe: Recipe) -> Tensor:
    """Augment whole uint8 images by the formula of pipelines.augment."""
    spec, colours, views, finish = recipe
    size = spec.source if views > 1 else spec.crop
    out = torch.empty(
        (len(pixels_HWC), 3, size, size),
        dtype=torch.uint8 if finish.dtype == torch.uint8 else torch.float32,
        memory_format=torch.channels_last if finish.channels_last else torch.contiguous_format,
    )
    unit = tensor(1 / (draws.divide * colours.sd))[:, None, None]
    added = tensor(shift(draws, colours.axes) - colours.mean)[:, :, None, None] * unit
    for number, pixels in enumerate(pixels_HWC):
        y, x = (0, 0) if views > 1 else (draws.y[number], draws.x[number])
        crop = pixels[y : y + size, x : x + size]
        crop = np.array(crop[:, ::-1] if draws.mirror[number] else crop)
        out[number] = torch.as_tensor(crop).permute(2, 0, 1)
        if out.is_floating_point():
            out[number].mul_(unit).add_(added[number])
    return finish.views(out) if views > 1 else finish.crops(out, draws)


def decode_at(reader: Reader, jpg: NDArray[np.uint8], place: int) -> NDArray[np.uint8]:
    """RGB pixels; DataError naming shard, key and offset if the bytes are no whole JPEG."""
    try:
        return decode(jpg)
    except ValueError as error:
        raise DataError(
            f"{reader.where(place)}: {error}. Find all damage with `alexprep verify`, "
            "then copy or make the shard again."
        ) from error
