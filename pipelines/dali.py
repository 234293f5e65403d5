# pyright: basic
"""The augmentation in NVIDIA DALI, on the CPU or the GPU; the only file that imports nvidia.dali.

The bytes are fed in our own order by an external source. On the CPU only the crop is decoded (its
pixels equal those of a whole decode), then mirror, lighting, mean colour, division and layout are
one kernel: crop_mirror_normalize takes a mean for each sample, and mean - shift goes in there. A
mean image is subtracted in place from DALI's own output buffer, which torch sees without a copy and
which DALI takes back when the tensor is dropped.
"""

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from pipelines.augment import shift
from pipelines.errors import DataError
from pipelines.readahead import RawBatch, Reader
from pipelines.torch_cpu import Recipe, decode_at

Decode = Literal["auto", "cpu", "mixed"]
RGB = types.DALIImageType.RGB


@dataclass(frozen=True, kw_only=True, slots=True)
class DaliOptions:
    """Where and how DALI runs.

    Attributes:
        device: "cpu" or "cuda:N", where the images are given out.
        threads: CPU threads of DALI's own pool.
        batch: the most images in one batch.
        prefetch: batches made before they are asked for.
        decode: "mixed" decodes on the GPU; "cpu" decodes here and augments on the device; "auto" is
            "mixed" where there is a GPU.
    """

    device: torch.device
    threads: int
    batch: int
    prefetch: int
    decode: Decode


def dali_batches(
    raw: Iterator[RawBatch], reader: Reader, recipe: Recipe, options: DaliOptions
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of each raw batch on options.device; closing the generator ends DALI's threads."""
    feed = _Feed(raw, recipe)
    pipeline = _build(feed, recipe, options)
    try:
        while True:
            try:
                images = _run(pipeline, options.device)
            except StopIteration:
                if feed.failure is not None:
                    raise feed.failure from None
                return
            except RuntimeError as error:
                raise _blame(feed.waiting[0], reader, error) from error
            batch = feed.waiting.popleft()
            yield batch, _finish(images, batch, recipe)
            del images
    finally:
        feed.waiting.clear()
        del pipeline, feed


class _Feed:
    """What the external source asks for the next batch.

    An error of the reader ends the stream, so that the batches before it are still given out; then
    the consumer gets it. The batches inside DALI wait here for their images.
    """

    def __init__(self, raw: Iterator[RawBatch], recipe: Recipe) -> None:
        self.raw = raw
        self.recipe = recipe
        self.waiting: deque[RawBatch] = deque()
        self.failure: Exception | None = None

    def __call__(self) -> tuple[list[np.ndarray] | np.ndarray, ...]:
        if self.failure is not None:
            raise StopIteration
        try:
            batch = next(self.raw)
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001 - raised again in the consumer, at its turn
            self.failure = error
            raise StopIteration from None
        self.waiting.append(batch)
        return batch.jpgs, *arguments(batch, self.recipe)


def arguments(batch: RawBatch, recipe: Recipe) -> list[np.ndarray]:
    """What DALI takes for each sample: mirror; y and x of a crop; mean and std of float output."""
    spec, draws, colours = recipe.spec, batch.task.draws, recipe.colours
    values = [draws.mirror.astype(np.int32)]
    if recipe.views == 1:
        room = np.float32(max(1, spec.source - spec.crop))
        values += [at.astype(np.float32) / room for at in (draws.y, draws.x)]
    if recipe.finish.dtype != torch.uint8:
        mean = colours.mean - shift(draws, colours.axes)
        std = np.broadcast_to(draws.divide * colours.sd, mean.shape)
        values += [np.ascontiguousarray(levels, np.float32) for levels in (mean, std)]
    return values


def _build(feed: _Feed, recipe: Recipe, options: DaliOptions) -> Pipeline:
    on_gpu = options.device.type == "cuda"
    mixed = on_gpu and options.decode != "cpu"
    pipeline = Pipeline(
        batch_size=options.batch,
        num_threads=options.threads,
        device_id=(options.device.index or 0) if on_gpu else None,
        prefetch_queue_depth=max(1, options.prefetch),
        exec_dynamic=True,
    )
    crops, floats = recipe.views == 1, recipe.finish.dtype != torch.uint8
    with pipeline:
        jpg, mirror, *rest = fn.external_source(
            source=feed, num_outputs=2 + 2 * crops + 2 * floats, batch=True
        )
        place, levels = (rest[:2], rest[2:]) if crops else ([], rest)
        if mixed:
            images = fn.decoders.image(jpg, device="mixed", output_type=RGB)
        else:
            images = _decode(jpg, place, recipe.spec.crop)
            images, place = (images.gpu() if on_gpu else images), []
        pipeline.set_outputs(_normalise(images, mirror, place, levels, recipe))
    pipeline.build()
    return pipeline


def _decode(jpg: DataNode, place: list[DataNode], crop: int) -> DataNode:
    """Decode on the CPU, nothing but the crop if there is one."""
    if not place:
        return fn.decoders.image(jpg, device="cpu", output_type=RGB)
    y, x = place
    return fn.decoders.image_crop(
        jpg, device="cpu", output_type=RGB, crop=(crop, crop), crop_pos_y=y, crop_pos_x=x
    )


def _normalise(
    images: DataNode,
    mirror: DataNode,
    place: list[DataNode],
    levels: list[DataNode],
    recipe: Recipe,
) -> DataNode:
    """Mirror, mean, sd and layout in one kernel; the crop too, where a GPU decodes whole images.

    (The GPU's JPEG engine takes whole images, and memory stays as it is when all have one size.)
    """
    side = recipe.spec.crop
    where: dict[str, Any] = dict(zip(("crop_pos_y", "crop_pos_x"), place, strict=False))
    where |= {"crop": (side, side)} if place else {}
    mean, std = levels or ([0.0], [1.0])
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=mean,
        std=std,
        dtype=types.DALIDataType.FLOAT if levels else types.DALIDataType.UINT8,
        output_layout="HWC" if recipe.finish.channels_last else "CHW",
        **where,
    )


def _run(pipeline: Pipeline, device: torch.device) -> Tensor:
    """The next output as a tensor over DALI's memory, in the order of torch's current stream."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            (images,) = pipeline.run(torch.cuda.current_stream())
            return torch.from_dlpack(images.as_tensor())
    (images,) = pipeline.run()
    return torch.from_dlpack(images.as_tensor())


def _finish(images: Tensor, batch: RawBatch, recipe: Recipe) -> Tensor:
    if recipe.finish.channels_last:
        images = images.permute(0, 3, 1, 2)
    if recipe.views > 1:
        return recipe.finish.views(images)
    return recipe.finish.crops(images, batch.task.draws)


def _blame(batch: RawBatch, reader: Reader, error: RuntimeError) -> DataError:
    """DALI says which batch it could not decode; Pillow finds the image in it."""
    places = [int(place) for place in batch.task.places]
    try:
        for place, jpg in zip(places, batch.jpgs, strict=True):
            decode_at(reader, jpg, place)
    except DataError as culprit:
        return culprit
    return DataError(
        f"DALI cannot decode a batch that begins with {reader.where(places[0])}: {error}. "
        "Pillow can: try LoaderConfig(backend='torch')."
    )
