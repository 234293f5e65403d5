"""Crops of images that are resized or differ in size: where they lie, and their pixels.

The places are torchvision's: RandomResizedCrop (ten tries for area and ratio, then the largest
central crop of a ratio that is allowed), and Resize of the shorter side with CenterCrop or
RandomCrop. What is random was drawn before (pipelines.augment); the sizes of the images turn it
into pixels, so that every backend gets the same numbers. Pillow resizes for all backends on a CPU:
its antialiased filters, as torchvision uses them on Pillow images.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from pipelines.augment import AugmentSpec, Draws, Integers, Interpolation, Pair, Regions
from pipelines.format import Manifest
from pipelines.jpeg import jpeg_size
from pipelines.normalize import Pixels, Preprocess
from pipelines.order import BatchPlan
from pipelines.philox import Words, below, uniforms
from pipelines.shards import RawBatch

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def read_regions(
    read: Callable[[BatchPlan], RawBatch],
    manifest: Manifest,
    preprocess: Preprocess,
    plan: BatchPlan,
) -> RawBatch:
    """The batch that `read` gives, with the regions of its images."""
    batch = read(plan)
    sizes = np.full((len(batch.jpgs), 2), manifest.size)
    if manifest.keep_aspect:
        sizes = np.array([jpeg_size(jpg.tobytes()) for jpg in batch.jpgs])
    draws = set_regions(preprocess, plan.draws, sizes)
    return batch._replace(plan=plan._replace(draws=draws))


def set_regions(preprocess: Preprocess, draws: Draws, sizes: Integers) -> Draws:
    """`draws` with their regions in images of these heights and widths, (N, 2)."""
    spec, side = preprocess.spec, preprocess.side
    if spec.square or preprocess.views > 1:
        least = sizes.min(axis=1, keepdims=True)
        outer = np.concatenate([(sizes - least) // 2, least, least], axis=1)
    else:
        outer = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    return draws._replace(regions=_regions(spec, draws, outer, side))


def _regions(spec: AugmentSpec, draws: Draws, outer: Integers, side: int) -> Regions:
    """Regions of crops of `side` pixels inside the boxes `outer`."""
    begin, sizes = outer[:, :2], outer[:, 2:]
    crops, zeros = np.full_like(sizes, side), np.zeros_like(sizes)
    if spec.area is not None and draws.words is not None:
        boxes = random_boxes(spec.area, spec.ratio, draws.words, sizes)
        return Regions(boxes + np.concatenate([begin, zeros], axis=1), crops, zeros)
    resized = sizes
    if spec.resize is not None:
        # The shorter side exactly, the longer one rounded down.
        resized = spec.resize * sizes // sizes.min(axis=1, keepdims=True)
    if draws.words is not None:
        room = resized - side + 1
        origin = np.stack([below(room[:, axis], draws.words[axis]) for axis in (0, 1)], axis=1)
    elif spec.resize is None and spec.square:
        origin = (resized - side) // 2  # as in a set of squares
    else:
        origin = np.rint((resized - side) / 2).astype(np.int64)  # half to even, as torchvision
    if spec.resize is None:
        return Regions(np.concatenate([begin + origin, crops], axis=1), crops, zeros)
    return Regions(outer, resized, origin)


def random_boxes(area: Pair, ratio: Pair, words: Words, sizes: Integers) -> Integers:
    """Top, left, height and width of random resized crops, (N, 4).

    Args:
        area: least and largest share of an image.
        ratio: least and largest width over height.
        words: random bits, (22, N): of top and left, then of area and ratio of ten tries.
        sizes: heights and widths of the images, (N, 2).
    """
    height, width = sizes[:, 0], sizes[:, 1]
    chance = uniforms(words[2:])
    areas = height * width * (area[0] + chance[::2] * (area[1] - area[0]))
    logs = np.log(ratio)
    ratios = np.exp(logs[0] + chance[1::2] * (logs[1] - logs[0]))
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    rows, columns = fits.argmax(axis=0), np.arange(len(sizes))
    box = np.stack([heights[rows, columns], widths[rows, columns]], axis=1)
    room = sizes - box + 1
    begin = np.stack([below(np.maximum(room[:, axis], 1), words[axis]) for axis in (0, 1)], axis=1)
    central = _largest_boxes(ratio, sizes)
    fitting = fits.any(axis=0)[:, np.newaxis]
    return np.concatenate(
        [np.where(fitting, begin, (sizes - central) // 2), np.where(fitting, box, central)], axis=1
    )


def _largest_boxes(ratio: Pair, sizes: Integers) -> Integers:
    """Height and width of the largest crops whose ratio is allowed, (N, 2)."""
    height, width = sizes[:, 0], sizes[:, 1]
    lower = np.where(width / height < ratio[0], np.rint(width / ratio[0]), height)
    narrower = np.where(width / height > ratio[1], np.rint(height * ratio[1]), width)
    return np.maximum(np.stack([lower, narrower], axis=1).astype(np.int64), 1)


def cut_box(image_HWC: Pixels, regions: Regions, i: int) -> Pixels:
    """The box of image `i`; a view."""
    top, left, height, width = regions.box[i].tolist()
    return image_HWC[top : top + height, left : left + width]


def finish_box(box_HWC: Pixels, regions: Regions, i: int, preprocess: Preprocess) -> Pixels:
    """The box of image `i` resized and cropped, contiguous, (side, side, 3)."""
    if not preprocess.spec.resamples:
        return np.ascontiguousarray(box_HWC)
    size, origin = regions.size[i].tolist(), regions.origin[i].tolist()
    return resample(box_HWC, size, origin, preprocess.side, preprocess.spec.interpolation)


def resample(
    pixels_HWC: Pixels,
    size: tuple[int, int],
    origin: tuple[int, int],
    side: int,
    interpolation: Interpolation,
) -> Pixels:
    """The square of `side` pixels at `origin` of the image resized to `size`.

    The whole of it is resized: Pillow takes the edges of a region in single precision, and a few
    pixels would be those of another place.
    """
    top, left = origin
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    image = image.resize((size[1], size[0]), FILTERS[interpolation])
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)
