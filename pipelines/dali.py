# pyright: basic
"""The augmentation in NVIDIA DALI, on the CPU or the GPU; the only file that imports nvidia.dali.

The bytes are fed in our own order by an external source. On the CPU only the crop is decoded (its
pixels equal those of a whole decode); mirror, lighting, mean, division and layout are then one
kernel, that of pipelines.pixels. On a GPU, and for ten views, it is crop_mirror_normalize, which
takes a mean colour for each sample: mean - shift goes in there, and a mean image is subtracted from
its output.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache, partial
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

Arguments = list[np.ndarray]
Decode = Literal["auto", "cpu", "mixed"]
RGB = types.DALIImageType.RGB
KINDS = types.DALIDataType


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
    kernel = _kernel(recipe, options)
    feed = _Feed(raw, partial(pixel_arguments if kernel else arguments, recipe=recipe))
    pipeline = _build(feed, recipe, options, kernel)
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
            if recipe.finish.channels_last:
                images = images.permute(0, 3, 1, 2)
            yield batch, _finish(images, batch, recipe, done=kernel is not None)
            del images
    finally:
        feed.waiting.clear()
        del pipeline, feed


class _Feed:
    """What the external source asks for the next batch.

    An error of the reader ends the stream, so that the batches before it are still given out; then
    the consumer gets it. The batches inside DALI wait here for their images.
    """

    def __init__(self, raw: Iterator[RawBatch], made: Callable[[RawBatch], Arguments]) -> None:
        self.raw = raw
        self.made = made
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
        return batch.jpgs, *self.made(batch)


def arguments(batch: RawBatch, recipe: Recipe) -> Arguments:
    """What DALI takes for each sample: mirror; y and x of a crop; mean and std of float output."""
    draws, colours = batch.task.draws, recipe.colours
    values = [draws.mirror.astype(np.int32)]
    if recipe.views == 1:
        values += _crop_place(batch, recipe)
    if recipe.finish.dtype != torch.uint8:
        mean = colours.mean - shift(draws, colours.axes)
        std = np.broadcast_to(draws.divide * colours.sd, mean.shape)
        values += [np.ascontiguousarray(levels, np.float32) for levels in (mean, std)]
    return values


def pixel_arguments(batch: RawBatch, recipe: Recipe) -> Arguments:
    """What the kernel of pipelines.pixels takes: y and x of a crop; place, unit and added."""
    spec, draws, colours = recipe.spec, batch.task.draws, recipe.colours
    top = left = np.full(len(draws.y), (spec.source - spec.crop) // 2)
    which = np.zeros_like(top)
    if spec.mean == "image_at_crop":
        which = draws.mirror.astype(np.int64)
        top, left = draws.y, np.where(draws.mirror, spec.source - spec.crop - draws.x, draws.x)
    place = np.stack([draws.mirror, which, top, left], axis=1).astype(np.int32)
    added = (shift(draws, colours.axes) - colours.mean) / (draws.divide * colours.sd)
    unit = np.broadcast_to(1 / (draws.divide * colours.sd), added.shape)
    levels = [np.ascontiguousarray(values, np.float32) for values in (unit, added)]
    return [*_crop_place(batch, recipe), place, *levels]


def _crop_place(batch: RawBatch, recipe: Recipe) -> Arguments:
    """Where crops begin, as DALI wants it: 0 is the first place there is, 1 the last."""
    room = np.float32(max(1, recipe.spec.source - recipe.spec.crop))
    return [at.astype(np.float32) / room for at in (batch.task.draws.y, batch.task.draws.x)]


def _kernel(recipe: Recipe, options: DaliOptions) -> Any | None:
    """The operator for float crops on the CPU; None where crop_mirror_normalize does it."""
    floats = recipe.finish.dtype != torch.uint8
    if recipe.views > 1 or not floats or options.device.type != "cpu":
        return None
    return pixel_operator(recipe.finish.channels_last)


@cache
def pixel_operator(channels_last: bool) -> Any | None:
    """DALI's operator around pipelines.pixels, one a process; None where numba is not installed."""
    try:
        from nvidia.dali.plugin.numba import NumbaFunction  # noqa: PLC0415 - slow to import

        from pipelines import pixels  # noqa: PLC0415
    except ImportError:
        return None

    class Compiled(NumbaFunction):
        """numba_function of code that is compiled already, and kept on disk."""

        def _get_run_fn_cpu(self, run_fn: Any, *about: object) -> int:
            return run_fn.address

        def _get_setup_fn_cpu(self, setup_fn: Any) -> int:
            return setup_fn.address

    inputs = (KINDS.UINT8, KINDS.INT32, KINDS.FLOAT, KINDS.FLOAT, KINDS.FLOAT)
    return Compiled(
        run_fn=pixels.normalise_HWC if channels_last else pixels.normalise_CHW,
        setup_fn=pixels.shape_HWC if channels_last else pixels.shape_CHW,
        in_types=list(inputs),
        ins_ndim=[3, 1, 1, 1, 4],
        out_types=[KINDS.FLOAT],
        outs_ndim=[3],
    )


def _mean_images(recipe: Recipe) -> np.ndarray:
    """The mean image and its mirror, laid out as the crops are, in grey levels; or zeros."""
    side = recipe.spec.source
    image = np.zeros((side, side, 3), np.float32)
    if recipe.colours.image_HWC is not None:
        image[...] = recipe.colours.image_HWC
    images = np.stack([image, image[:, ::-1]])
    axes = (0, 1, 2, 3) if recipe.finish.channels_last else (0, 3, 1, 2)
    return np.ascontiguousarray(images.transpose(axes))


def _build(feed: _Feed, recipe: Recipe, options: DaliOptions, kernel: Any | None) -> Pipeline:
    on_gpu = options.device.type == "cuda"
    pipeline = Pipeline(
        batch_size=options.batch,
        num_threads=options.threads,
        device_id=(options.device.index or 0) if on_gpu else None,
        prefetch_queue_depth=max(1, options.prefetch),
        exec_dynamic=True,
    )
    with pipeline:
        pipeline.set_outputs(
            _by_pixels(feed, recipe, kernel) if kernel else _by_channels(feed, recipe, options)
        )
    pipeline.build()
    return pipeline


def _by_pixels(feed: _Feed, recipe: Recipe, kernel: Any) -> DataNode:
    jpg, y, x, place, unit, added = fn.external_source(source=feed, num_outputs=6, batch=True)
    pixels = _decode(jpg, [y, x], recipe.spec.crop)
    return kernel(pixels, place, unit, added, types.Constant(_mean_images(recipe), device="cpu"))


def _by_channels(feed: _Feed, recipe: Recipe, options: DaliOptions) -> DataNode:
    crops, floats = recipe.views == 1, recipe.finish.dtype != torch.uint8
    jpg, mirror, *rest = fn.external_source(
        source=feed, num_outputs=2 + 2 * crops + 2 * floats, batch=True
    )
    place, levels = (rest[:2], rest[2:]) if crops else ([], rest)
    on_gpu = options.device.type == "cuda"
    if on_gpu and options.decode != "cpu":
        images = fn.decoders.image(jpg, device="mixed", output_type=RGB)
    else:
        images = _decode(jpg, place, recipe.spec.crop)
        images, place = (images.gpu() if on_gpu else images), []
    return _normalise(images, mirror, place, levels, recipe)


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
        dtype=KINDS.FLOAT if levels else KINDS.UINT8,
        output_layout="HWC" if recipe.finish.channels_last else "CHW",
        **where,
    )


def _run(pipeline: Pipeline, device: torch.device) -> Tensor:
    """The next output as a tensor over DALI's memory, in the order of torch's current stream."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            (images,) = pipeline.run(torch.cuda.current_stream())
            # Not by DLPack: DALI gives such memory back in a thread that waits for the whole
            # device, which ends the capture of a CUDA graph. This way it is free again in the order
            # of the stream; `Finish` copies out of it, so that users may choose other streams.
            return torch.as_tensor(images.as_tensor(), device=device)
    (images,) = pipeline.run()
    return torch.from_dlpack(images.as_tensor())


def _finish(images: Tensor, batch: RawBatch, recipe: Recipe, *, done: bool) -> Tensor:
    """What the pipeline could not do; where it is `done`, the type alone."""
    if recipe.views > 1:
        return recipe.finish.views(images)
    if done:
        return images.to(recipe.finish.dtype)
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
