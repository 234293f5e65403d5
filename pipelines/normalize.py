"""From decoded pixels to what a network sees: the formula of pipelines.augment on the CPU.

    out = (x - mean + shift) / (divide * sd) = (x - mean image) * unit + added

with `unit` and `added` worked out once for each crop in float64 and rounded to float32. Two ways
give the same bits: NumPy below, which is the reference, and the loops of pipelines.row_loops, which
take a third of its time and are used where numba is installed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import AugmentSpec, Colours, Draws, shift, ten_views

VIEWS = 10
Pixels = NDArray[np.uint8]
Kernel = Callable[..., None]  # see row_loops.crops_CHW


class Factors(NamedTuple):
    """The numbers of the formula for N crops.

    mirror: whether the crop is mirrored, (N,)
    image: which mean image, (N,): 0, or 1 for its mirror
    origin: row and column of that image at the crop's first pixel, (N, 2)
    levels: unit and added of each colour, float32, (N, 2, 3)
    divide: of all of them
    """

    mirror: NDArray[np.bool_]
    image: NDArray[np.int64]
    origin: NDArray[np.int64]
    levels: NDArray[np.float32]
    divide: float

    def of(self, numbers: range) -> "Factors":
        """Those of some of the crops."""
        rows = slice(numbers.start, numbers.stop)
        return Factors(
            mirror=self.mirror[rows],
            image=self.image[rows],
            origin=self.origin[rows],
            levels=self.levels[rows],
            divide=self.divide,
        )


class Crops(NamedTuple):
    """All crops of the images of a batch: M are as many as images, or ten times that.

    images: which image of the batch each crop is of, (M,)
    corners: top, left and mirror, (M, 3)
    factors: of the formula
    """

    images: NDArray[np.int64]
    corners: NDArray[np.int64]
    factors: Factors


def factors(spec: AugmentSpec, colours: Colours, draws: Draws) -> Factors:
    """What the formula takes from the draws of N crops."""
    top = left = np.full(len(draws.y), (spec.side - spec.crop) // 2)
    image = np.zeros_like(top)
    if spec.mean == "image_at_crop":
        image = draws.mirror.astype(np.int64)
        top, left = draws.y, np.where(draws.mirror, spec.side - spec.crop - draws.x, draws.x)
    added = (shift(draws, colours.axes) - colours.mean) / (draws.divide * colours.sd)
    unit = np.broadcast_to(1 / (draws.divide * colours.sd), added.shape)
    return Factors(
        mirror=draws.mirror,
        image=image,
        origin=np.stack([top, left], axis=1),
        levels=np.stack([unit, added], axis=1).astype(np.float32),
        divide=draws.divide,
    )


class Preprocess(NamedTuple):
    """What a backend makes of decoded images; the same for all of them.

    dtype: "float32", "bfloat16", "float16", or "uint8", which moves pixels and computes nothing.
    views: 1: a crop as it was drawn, (N, C, crop, crop); 10: the ten views, (N, 10, C, crop, crop).
    channels_last: memory format of crops.
    regions: whether a crop comes from a region of the stored image, which differs from image to
        image in size (see Draws.regions).
    """

    spec: AugmentSpec
    colours: Colours
    views: int = 1
    dtype: str = "float32"
    channels_last: bool = False
    regions: bool = False

    @property
    def side(self) -> int:
        """Pixels a side of what is cut out of an image: a crop, or the square of ten views."""
        return self.spec.crop if self.views == 1 else self.spec.side


class Normalize:
    """The formula with the mean image in memory; safe to use from several threads.

    Crops are (C, crop, crop) in memory; with channels_last (crop, crop, C), ten views excepted.

    Attributes:
        mean_images: the mean image and its mirror, laid out as crops are.

    Args:
        preprocess: what to make.
        mean_last: subtract the mean image after scaling, as image / sd / divide. The last bit of a
            float may differ; the backend torch has always done so, and runs made with it resume
            with the same bits.
    """

    def __init__(self, preprocess: Preprocess, *, mean_last: bool = False) -> None:
        self.spec = preprocess.spec
        self.colours = preprocess.colours
        self.views = preprocess.views
        self.dtype = np.uint8 if preprocess.dtype == "uint8" else np.float32
        self.channels_last = preprocess.channels_last and self.views == 1
        self._axes = (0, 1, 2) if self.channels_last else (1, 2, 0)  # of a crop, as (H, W, C)
        self.mean_images = self._mean_images()
        self._last_images = None
        if mean_last and self.colours.image_HWC is not None:
            sd = self.colours.sd.astype(np.float32)
            sd = sd if self.channels_last else sd[:, np.newaxis, np.newaxis]
            self.mean_images, self._last_images = (
                np.zeros_like(self.mean_images),
                self.mean_images / sd,
            )
        y, x, mirror = (np.array(values) for values in zip(*ten_views(self.spec), strict=True))
        draws = Draws(y, x, mirror, alpha=np.zeros((VIEWS, 3)), divide=1.0)
        self.ten_factors = self.factors(draws)

    def factors(self, draws: Draws) -> Factors:
        """What `write` takes."""
        return factors(self.spec, self.colours, draws)

    def crops(self, draws: Draws) -> Crops:
        """Where all crops of a batch are in its images, and their factors."""
        images = np.arange(len(draws.y))
        if self.views == 1:
            corners = np.stack([draws.y, draws.x, draws.mirror], axis=1).astype(np.int64)
            return Crops(images, corners, self.factors(draws))
        # Of each image the ten views one after the other.
        count, ten = len(images), self.ten_factors
        corners = np.tile(np.array(ten_views(self.spec), np.int64), (count, 1))
        repeated = Factors(
            mirror=np.tile(ten.mirror, count),
            image=np.tile(ten.image, count),
            origin=np.tile(ten.origin, (count, 1)),
            levels=np.tile(ten.levels, (count, 1, 1)),
            divide=ten.divide,
        )
        return Crops(np.repeat(images, VIEWS), corners, repeated)

    def shape(self, images: int) -> tuple[int, ...]:
        """Of the output for so many images, as it lies in memory."""
        side = self.spec.crop
        crop = (side, side, 3) if self.channels_last else (3, side, side)
        return (images, *crop) if self.views == 1 else (images, self.views, *crop)

    def write(self, out: NDArray[Any], pixels_NHWC: Pixels, numbers: Factors) -> None:
        """Write N crops to `out`, (N, ...) of `shape`; pixels (N, crop, crop, 3), contiguous."""
        kernel, side = compiled(self.channels_last), self.spec.crop
        if self.dtype == np.uint8 or kernel is None:
            for i in range(len(out)):
                self._crop(out[i].transpose(self._axes), pixels_NHWC[i], numbers, i)
        else:
            rows, images = out, self.mean_images
            if self.channels_last:  # rows of colours, as the kernel's loop takes them
                rows = out.reshape(len(out), side, -1)
                images = images.reshape(len(images), self.spec.side, -1)
            # One call for many crops: each call takes Python's lock again, which others hold.
            pixels = pixels_NHWC.reshape(len(out), side, -1)
            kernel(rows, pixels, images, numbers)
        if self._last_images is not None:
            for i in range(len(out)):
                crop_HWC = self._mean_crop(self._last_images, numbers, i)
                out[i].transpose(self._axes)[...] -= crop_HWC / np.float32(numbers.divide)

    def _crop(self, out_HWC: NDArray[Any], pixels_HWC: Pixels, numbers: Factors, i: int) -> None:
        """Crop `i` in NumPy."""
        pixels_HWC = pixels_HWC[:, ::-1] if numbers.mirror[i] else pixels_HWC
        if self.dtype == np.uint8:
            out_HWC[...] = pixels_HWC
        else:
            mean_HWC = self._mean_crop(self.mean_images, numbers, i)
            normalize(out_HWC, pixels_HWC, mean_HWC, numbers.levels[i])

    def _mean_crop(self, images: NDArray[np.float32], numbers: Factors, i: int) -> NDArray[Any]:
        """What belongs to crop `i` of a mean image, (crop, crop, 3); a view."""
        (y, x), side = numbers.origin[i], self.spec.crop
        return images[numbers.image[i]].transpose(self._axes)[y : y + side, x : x + side]

    def ten_crops(self, out: NDArray[Any], pixels_HWC: Pixels) -> None:
        """Write the ten views of a square image to `out`, (10, 3, crop, crop)."""
        side = self.spec.crop
        views = [pixels_HWC[y : y + side, x : x + side] for y, x, _ in ten_views(self.spec)]
        self.write(out, np.stack(views), self.ten_factors)

    def _mean_images(self) -> NDArray[np.float32]:
        """The mean image and its mirror, laid out as crops are; zeros where there is none."""
        side = self.spec.side
        image = np.zeros((side, side, 3), np.float32)
        if self.colours.image_HWC is not None:
            image[...] = self.colours.image_HWC
        images = np.stack([image, image[:, ::-1]])
        axes = (0, 1, 2, 3) if self.channels_last else (0, 3, 1, 2)
        return np.ascontiguousarray(images.transpose(axes))


def normalize(
    out_HWC: NDArray[np.float32],
    pixels_HWC: Pixels,
    image_HWC: NDArray[np.float32],
    levels: NDArray[np.float32],
) -> None:
    """The formula in NumPy, for one crop that is mirrored already; all have its size."""
    np.subtract(pixels_HWC, image_HWC, out=out_HWC)
    out_HWC *= levels[0]
    out_HWC += levels[1]


@cache
def compiled(channels_last: bool) -> Kernel | None:
    """The same in one pass; None where numba is not installed."""
    try:
        from pipelines import row_loops  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        return None
    return row_loops.crops_HWC if channels_last else row_loops.crops_CHW
