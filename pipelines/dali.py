# pyright: basic
"""NVIDIA DALI on the CPU or the GPU; the only file that imports nvidia.dali.

The bytes are fed in our own order by an external source. On the CPU DALI decodes the crop and
nothing else (its pixels equal those of a whole decode); what is resized, Pillow resizes as for the
backend torch, so that both give the same bits; the formula is that of pipelines.normalize.
On a GPU it is DALI's crop_mirror_normalize, which takes a mean colour for each sample: mean - shift
goes in there, and `Finish` subtracts a mean image from its output.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from pipelines.augment import Regions, shift
from pipelines.config import LoaderConfig
from pipelines.cpu import Decoded, decode_at
from pipelines.errors import DataError
from pipelines.finish import Finish
from pipelines.normalize import Preprocess
from pipelines.regions import finish_box
from pipelines.shards import RawBatch, SampleReader

Arguments = list[np.ndarray]
RGB = types.DALIImageType.RGB
INTERPOLATIONS = {
    "bilinear": types.DALIInterpType.INTERP_LINEAR,
    "bicubic": types.DALIInterpType.INTERP_CUBIC,
}
KINDS = types.DALIDataType


def _forget_pipelines() -> None:
    """Keep DALI's exit handler of a fork from ending the parent's pipelines: it would crash.

    Their threads are not there. DALI 1.x has no public way to say so.
    """
    getattr(Pipeline, "_pipes", set()).clear()


os.register_at_fork(after_in_child=_forget_pipelines)


def dali_decoded(
    raw: Iterator[RawBatch], reader: SampleReader, preprocess: Preprocess, config: LoaderConfig
) -> Generator[Decoded]:
    """Decoded crops of each raw batch on the CPU, whole images for ten views.

    What is resized is decoded by DALI and resized by Pillow in the threads that normalize it.
    """
    origins = _boxes if preprocess.regions else _crop_origin
    feed = _Feed(raw, partial(origins, preprocess=preprocess))
    # The file, and y and x of a crop, or begin and shape of a box.
    outputs = 3 if preprocess.views == 1 or preprocess.regions else 1
    pipeline = _pipeline(config)
    with pipeline:
        jpg, *origin = fn.external_source(source=feed, num_outputs=outputs, batch=True)
        pipeline.set_outputs(_decode(jpg, origin, preprocess))
    pipeline.build()
    with closing(_outputs(pipeline, feed, reader, torch.device(config.device))) as batches:
        for batch, pixels in batches:
            yield batch, _finished(batch, pixels, preprocess)


def _finished(
    batch: RawBatch, images: Any, preprocess: Preprocess
) -> np.ndarray | Callable[[int], np.ndarray]:
    """The pixels of a batch, or where they are to be resized what gives those of an image."""
    regions = batch.plan.draws.regions
    if regions is None:
        return torch.from_dlpack(images.as_tensor()).numpy()
    return lambda i: finish_box(np.asarray(images[i]), regions, i, preprocess)


def dali_batches(
    raw: Iterator[RawBatch], reader: SampleReader, preprocess: Preprocess, config: LoaderConfig
) -> Generator[tuple[RawBatch, Tensor]]:
    """Images of each raw batch on a GPU."""
    finish = Finish(preprocess)
    feed = _Feed(raw, partial(arguments, preprocess=preprocess))
    pipeline = _pipeline(config)
    with pipeline:
        pipeline.set_outputs(_on_gpu(feed, preprocess, config))
    pipeline.build()
    with closing(_outputs(pipeline, feed, reader, torch.device(config.device))) as outputs:
        for batch, images in outputs:
            if preprocess.channels_last:
                images = images.permute(0, 3, 1, 2)
            yield batch, finish(images, batch.plan.draws)


def _pipeline(config: LoaderConfig) -> Pipeline:
    device = torch.device(config.device)
    return Pipeline(
        batch_size=-(-config.batch // config.world),  # of the rank with the most images
        num_threads=config.thread_count,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        prefetch_queue_depth=config.prefetch,
        exec_dynamic=True,
    )


def _outputs(
    pipeline: Pipeline, feed: "_Feed", reader: SampleReader, device: torch.device
) -> Generator[tuple[RawBatch, Any]]:
    """What the pipeline gives for each batch; closing the generator ends DALI's threads."""
    try:
        while True:
            try:
                images = _run(pipeline, device)
            except StopIteration:
                if feed.failure is not None:
                    raise feed.failure from None
                return
            except RuntimeError as error:
                raise _blame(feed.pending[0], reader, error) from error
            yield feed.pending.popleft(), images
            del images
    finally:
        feed.pending.clear()
        del pipeline, feed


class _Feed:
    """What the external source asks for the next batch.

    An error of the reader ends the stream, so that the batches before it are still given out; then
    the consumer gets it. The batches inside DALI wait here for their images.
    """

    def __init__(self, raw: Iterator[RawBatch], arguments: Callable[[RawBatch], Arguments]) -> None:
        self.raw = raw
        self.arguments = arguments
        self.pending: deque[RawBatch] = deque()
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
        self.pending.append(batch)
        return list(batch.jpgs), *self.arguments(batch)


def arguments(batch: RawBatch, preprocess: Preprocess) -> Arguments:
    """What a GPU takes for each sample: mirror; y and x of a crop; mean and std of float output."""
    draws, colours = batch.plan.draws, preprocess.colours
    origins = _resizing if preprocess.regions else _crop_origin
    values = [draws.mirror.astype(np.int32), *origins(batch, preprocess)]
    if preprocess.dtype != "uint8":
        mean = colours.mean - shift(draws, colours.axes)
        std = np.broadcast_to(draws.divide * colours.sd, mean.shape)
        values += [np.ascontiguousarray(levels, np.float32) for levels in (mean, std)]
    return values


def _crop_origin(batch: RawBatch, preprocess: Preprocess) -> Arguments:
    """Where crops begin, as DALI takes it: 0 is the first pixel, 1 the last; none for ten views."""
    if preprocess.views > 1:
        return []
    room = np.float32(max(1, preprocess.spec.source - preprocess.spec.crop))
    return [start.astype(np.float32) / room for start in (batch.plan.draws.y, batch.plan.draws.x)]


def _boxes(batch: RawBatch, preprocess: Preprocess) -> Arguments:
    """Begin and shape of what is decoded, in pixels."""
    box = _regions(batch).box.astype(np.int32)
    return [np.ascontiguousarray(box[:, :2]), np.ascontiguousarray(box[:, 2:])]


def _resizing(batch: RawBatch, preprocess: Preprocess) -> Arguments:
    """`_boxes`, and where they are resized their new size and where crops begin in it."""
    boxes = _boxes(batch, preprocess)
    if not preprocess.spec.resamples:
        return boxes
    regions = _regions(batch)
    room = np.maximum(regions.size - preprocess.side, 1).astype(np.float32)
    origin = regions.origin.astype(np.float32) / room
    return [*boxes, regions.size.astype(np.float32), *map(np.ascontiguousarray, origin.T)]


def _regions(batch: RawBatch) -> Regions:
    regions = batch.plan.draws.regions
    assert regions is not None  # Preprocess.regions says so
    return regions


def _decode(jpg: DataNode, origin: list[DataNode], preprocess: Preprocess) -> DataNode:
    """Decode on the CPU, nothing but the crop or the box if there is one."""
    decoded: dict[str, Any] = {"device": "cpu", "output_type": RGB}
    if not origin:
        return fn.decoders.image(jpg, **decoded)
    if preprocess.regions:
        start, shape = origin
        return fn.decoders.image_slice(jpg, start=start, shape=shape, axes=(0, 1), **decoded)
    y, x = origin
    side = preprocess.spec.crop
    return fn.decoders.image_crop(jpg, crop=(side, side), crop_pos_y=y, crop_pos_x=x, **decoded)


def _on_gpu(feed: _Feed, preprocess: Preprocess, config: LoaderConfig) -> DataNode:
    floats = preprocess.dtype != "uint8"
    arguments = 2 if preprocess.views == 1 else 0  # of `_crop_origin`, or of `_resizing`
    if preprocess.regions:
        arguments = 5 if preprocess.spec.resamples else 2
    jpg, mirror, *values = fn.external_source(
        source=feed, num_outputs=2 + arguments + 2 * floats, batch=True
    )
    origin, levels = values[:arguments], values[arguments:]
    if config.decode != "cpu":
        images = _decode_mixed(jpg, preprocess, config)
        if preprocess.regions:
            images, origin = cut_boxes(images, origin), origin[2:]
    else:
        images, origin = _decode(jpg, origin[:2], preprocess).gpu(), origin[2:]
    if preprocess.regions and origin:
        images, origin = resize(images, origin[0], preprocess), origin[1:]
    return _normalize(images, mirror, origin, levels, preprocess)


def cut_boxes(images: DataNode, box: list[DataNode]) -> DataNode:
    """What begins at `box[0]` and has the shape `box[1]` of each image."""
    return fn.slice(images, start=box[0], shape=box[1], axes=(0, 1))


def resize(images: DataNode, size: DataNode, preprocess: Preprocess) -> Any:
    """Resized to `size` (height and width of each), antialiased.

    Not Pillow's pixels: DALI rounds once, where Pillow rounds and clips after each axis, and its
    table of the filter is coarse. Half a grey level in the mean, up to 8 at hard edges.
    """
    kind = INTERPOLATIONS[preprocess.spec.interpolation]
    return fn.resize(images, size=size, interp_type=kind, antialias=True)


def _decode_mixed(jpg: DataNode, preprocess: Preprocess, config: LoaderConfig) -> DataNode:
    size = preprocess.spec.source
    return fn.decoders.image(
        jpg,
        device="mixed",
        output_type=RGB,
        # As libjpeg-turbo, which interpolates chroma where nvJPEG would repeat it.
        jpeg_fancy_upsampling=True,
        hw_decoder_load=config.hw_decoder_load,
        # Memory for all images at the start: later it would be allocated amid training.
        preallocate_width_hint=size,
        preallocate_height_hint=size,
    )


def _normalize(
    images: DataNode,
    mirror: DataNode,
    origin: list[DataNode],
    levels: list[DataNode],
    preprocess: Preprocess,
) -> DataNode:
    """Mirror, mean, sd and layout in one kernel; the crop too, where a GPU decodes whole images.

    (The GPU's JPEG engine takes whole images, and memory stays as it is when all have one size.)
    """
    side = preprocess.side
    where: dict[str, Any] = dict(zip(("crop_pos_y", "crop_pos_x"), origin, strict=False))
    where |= {"crop": (side, side)} if origin else {}
    mean, std = levels or ([0.0], [1.0])
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=mean,
        std=std,
        dtype=KINDS.FLOAT if levels else KINDS.UINT8,
        output_layout="HWC" if preprocess.channels_last else "CHW",
        **where,
    )


def _run(pipeline: Pipeline, device: torch.device) -> Any:
    """The next output: DALI's list of images, on a GPU a tensor over its memory.

    That is in the order of torch's current stream.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            (images,) = pipeline.run(torch.cuda.current_stream())
            # Not by DLPack: DALI gives such memory back in a thread that waits for the whole
            # device, which ends the capture of a CUDA graph. This way it is free again in the order
            # of the stream; `Finish` copies out of it, so that users may choose other streams.
            return torch.as_tensor(images.as_tensor(), device=device)
    (images,) = pipeline.run()
    return images


def _blame(batch: RawBatch, reader: SampleReader, error: RuntimeError) -> DataError:
    """DALI says which batch it could not decode; Pillow finds the image in it."""
    indices = batch.plan.indices.tolist()
    try:
        for index, jpg in zip(indices, batch.jpgs, strict=True):
            decode_at(reader, jpg, index)
    except DataError as culprit:
        return culprit
    return DataError(
        f"DALI cannot decode a batch that begins with {reader.where(indices[0])}: {error}. "
        "Pillow can: try LoaderConfig(backend='torch')."
    )
