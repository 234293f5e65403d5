"""The augmentation of Krizhevsky et al. 2012 as data: the spec, and all draws made with it.

Drawn first, applied later: `draw` turns (seed, epoch, position) into arrays, and every backend
applies them by the same formula. For a pixel x in 0..255 of the mirrored crop

    out = (x - mean + shift) / (divide * sd)

with `mean` one of four (see AugmentSpec.mean), `shift` the PCA lighting of that image and channel.
Shapes: N images, C = 3 channels (RGB), H = W = crop.
"""

import math
from collections.abc import Sized
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.imagestats import ImageStats
from pipelines.philox import Words, below, normals, philox

Mean = Literal["image", "image_at_crop", "channel", "none"]
LightingScale = Literal["stdev", "eigenvalue", "fb_resnet"]
Interpolation = Literal["bilinear", "bicubic"]
Pair = tuple[float, float]
Triple = tuple[float, float, float]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSpec:
    """Crop, mirror and colour of an image; the defaults are the released code's of 2012.

    Attributes:
        source: pixels a side of the stored images, or of the shorter side where they keep their
            aspect ratio.
        crop: pixels a side of what the network sees (the code 224; others 227).
        random_crop: crop training images at random places; off: at the centre.
        mirror: mirror half of the training images.
        mean: what is subtracted. "image": the centre crop of the mean image, wherever the crop
            came from (the code). "image_at_crop": the mean image at the crop's own place, mirrored
            with it (Caffe). "channel": the mean colour. "none". Or three values in grey levels.
        lighting: sd of the random multipliers of the colour axes; 0 turns lighting off.
        lighting_scale: what they multiply along each axis. "stdev": square root of the eigenvalue
            (the code: about 12, 4 and 2 grey levels). "eigenvalue": the eigenvalue in squared grey
            levels (the paper's sentence, read literally: about +-1300). "fb_resnet": the eigenvalue
            of pixels in 0..1 (fb.resnet.torch: about 5.5, 0.5 and 0.1 grey levels).
        divide: training images are divided by it; 1.1 is the code's, 1 is off.
        lighting_epochs: from this epoch on (0 is the first) neither lighting nor division, as the
            code did for the last quarter; None: never off.
        chunk: how many images in a row share one crop and mirror draw; the code's is 32.
        sd: grey levels that one unit of output stands for. None: the output stays in 0..255 units,
            as in 2012. "channel": the measured sd of each channel. Or three values: with
            mean=(123.675, 116.28, 103.53) and sd=(58.395, 57.12, 57.375) the output is what most
            networks published for ImageNet expect.
        area: take a training crop of a random share of the image, from the first value to the
            second, and resize it to `crop`, as torchvision's RandomResizedCrop does: (0.08, 1) for
            most ResNets and ViTs. None: crops are not resized. Needs a `mean` that is no image.
        ratio: width over height of these crops, from the first value to the second.
        resize: pixels of the shorter side that images are resized to before they are cropped: in
            evaluation, and in training without `area`. None: images stay as they are stored.
        interpolation: of both, by Pillow's antialiased filters.
        square: cut images that keep their aspect ratio to their central square first.
    """

    source: int = 256
    crop: int = 224
    random_crop: bool = True
    mirror: bool = True
    mean: Mean | Triple = "image"
    lighting: float = 0.1
    lighting_scale: LightingScale = "stdev"
    divide: float = 1.1
    lighting_epochs: int | None = None
    chunk: int = 1
    sd: Literal["channel"] | Triple | None = None
    area: Pair | None = None
    ratio: Pair = (3 / 4, 4 / 3)
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    square: bool = False

    def __post_init__(self) -> None:
        for name in ("source", "crop", "chunk", "resize", "lighting_epochs"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, Integral)):
                raise ValueError(f"AugmentSpec.{name} must be an integer, got {value!r}.")
        if not 0 < self.crop <= self.side:
            name = "source" if self.resize is None else "resize"
            raise ValueError(
                f"AugmentSpec.crop must be in 1..{name} ({self.side}), got {self.crop}."
            )
        self._check_colours()
        self._check_resizing()

    def _check_colours(self) -> None:
        if isinstance(self.mean, str) and self.mean not in Mean.__args__:
            raise ValueError(f"AugmentSpec.mean must be one of {Mean.__args__}, got {self.mean!r}.")
        if self.lighting_scale not in LightingScale.__args__:
            raise ValueError(
                f"AugmentSpec.lighting_scale must be one of {LightingScale.__args__}, "
                f"got {self.lighting_scale!r}."
            )
        if not (0 <= self.lighting < math.inf and 0 < self.divide < math.inf):
            raise ValueError(
                "AugmentSpec expects lighting >= 0 and divide > 0, "
                f"got lighting={self.lighting} and divide={self.divide}."
            )
        if not 1 <= self.chunk < 2**31 or (
            self.lighting_epochs is not None and self.lighting_epochs < 0
        ):
            raise ValueError(
                "AugmentSpec expects chunk in 1..2**31-1 and lighting_epochs >= 0, "
                f"got chunk={self.chunk} and lighting_epochs={self.lighting_epochs}."
            )
        for name, least in (("mean", -math.inf), ("sd", 0.0)):
            value = getattr(self, name)
            if value is None or isinstance(value, str):
                continue
            if _length(value) != 3 or not all(least < level < math.inf for level in value):
                above = " above 0" if name == "sd" else ""
                raise ValueError(
                    f"AugmentSpec.{name} expects three values (RGB){above}, got {value}."
                )

    def _check_resizing(self) -> None:
        if self.interpolation not in Interpolation.__args__:
            raise ValueError(
                f"AugmentSpec.interpolation must be one of {Interpolation.__args__}, got "
                f"{self.interpolation!r}."
            )
        if not 1 <= self.side <= MOST_PIXELS:
            raise ValueError(f"AugmentSpec.resize must be in 1..{MOST_PIXELS}, got {self.resize}.")
        for name, most in (("area", 1.0), ("ratio", 1e3)):
            value = getattr(self, name)
            if value is None:
                continue
            if _length(value) != 2 or not 0 < value[0] <= value[1] <= most:
                raise ValueError(
                    f"AugmentSpec.{name} expects two values, 0 < first <= second <= {most:g}, got "
                    f"{value}."
                )
        if self.area is not None and not self.random_crop:
            raise ValueError("AugmentSpec.area needs random_crop=True: its crops are random.")
        if self.resamples and self.mean in ("image", "image_at_crop"):
            raise ValueError(
                f"AugmentSpec.mean {self.mean!r} is of images that are not resized: with area or "
                "resize use 'channel', 'none' or three values."
            )

    @property
    def side(self) -> int:
        """Shorter side in pixels of the image that evaluation crops."""
        return self.source if self.resize is None else self.resize

    @property
    def resamples(self) -> bool:
        """Whether images are resized at all."""
        return self.area is not None or self.resize is not None

    @property
    def needs_stats(self) -> bool:
        """Whether the measured colours of the split are used at all."""
        named = self.mean in ("image", "image_at_crop", "channel") or self.sd == "channel"
        return named or self.lighting > 0

    @property
    def leaves_bytes(self) -> bool:
        """Whether the formula changes no pixel, so that uint8 can be given out."""
        return self.mean == "none" and self.lighting == 0 and self.divide == 1 and self.sd is None

    def lit(self, epoch: int) -> bool:
        """Whether lighting and division are on in this epoch."""
        return self.lighting_epochs is None or epoch < self.lighting_epochs


def _length(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0


class Regions(NamedTuple):
    """Where the crops of N images come from: cut `box`, resize it to `size`, crop at `origin`.

    Where nothing is resized, `box` is the crop.
    """

    box: Integers  # (N, 4): top, left, height and width in the stored image
    size: Integers  # (N, 2): height and width
    origin: Integers  # (N, 2): top and left in the resized box


class Draws(NamedTuple):
    """All chance of N images: where the crop begins, whether it is mirrored, the colour shift.

    y and x are of square images. Where the place depends on the size of each image, `words` hold
    the random bits of it until pipelines.regions has the sizes and sets `regions`.
    """

    y: Integers  # (N,)
    x: Integers  # (N,)
    mirror: NDArray[np.bool_]  # (N,)
    alpha: Floats  # (N, 3): multipliers of the colour axes, their sd already in
    divide: float  # one for all: an epoch has it or not
    words: Words | None = None  # (2, N), with `area` (22, N); None: the centre
    regions: Regions | None = None


class Colours(NamedTuple):
    """What the formula takes from the statistics of the split, in grey levels."""

    mean: Floats  # (3,); zeros where a mean image is used
    image_HWC: Floats | None  # noqa: N815 - (source, source, 3)
    axes: Floats  # (3, 3): shift = axes @ alpha
    sd: Floats  # (3,)


# Separate streams of the one generator, in the last counter word.
GEOMETRY, LIGHT = np.uint64(0), np.uint64(1)
TRIES = range(2, 7)  # four words each: area and ratio of the ten tries of a resized crop
MOST_PIXELS = 1 << 14  # a side of what is resized


def draw(spec: AugmentSpec, seed: int, epoch: int, positions: Integers) -> Draws:
    """Crop, mirror and lighting of the images at `positions` (N,) of an epoch's order."""
    counters = positions.astype(np.uint64)

    def words(position: NDArray[np.uint64], stream: np.uint64) -> tuple[NDArray[np.uint64], ...]:
        low, high = position & np.uint64(0xFFFFFFFF), position >> np.uint64(32)
        return philox(
            seed, (low, high, np.full_like(low, np.uint64(epoch)), np.full_like(low, stream))
        )

    # Images of a chunk have the same counter here, and so the same crop and mirror.
    chunks = counters // np.uint64(spec.chunk)
    geometry = words(chunks, GEOMETRY)
    alpha = np.zeros((len(counters), 3))
    if spec.lighting and spec.lit(epoch):
        alpha = normals(words(counters, LIGHT))[:, :3] * spec.lighting
    room = spec.side - spec.crop + 1
    flips = below(2, geometry[2]).astype(np.bool_)
    y, x = below(room, geometry[0]), below(room, geometry[1])
    if not spec.random_crop:
        y = x = np.full_like(y, (spec.side - spec.crop) // 2)
    tries = [] if spec.area is None else [words(chunks, np.uint64(stream)) for stream in TRIES]
    bits = np.stack([*geometry[:2], *(word for four in tries for word in four)])
    return Draws(
        y=y,
        x=x,
        mirror=flips if spec.mirror else np.zeros_like(flips),
        alpha=alpha,
        divide=spec.divide if spec.lit(epoch) else 1.0,
        words=bits if spec.random_crop else None,
    )


def centre(spec: AugmentSpec, count: int) -> Draws:
    """The draws of evaluation: `count` centre crops, nothing mirrored, lit or divided."""
    middle = np.full(count, (spec.side - spec.crop) // 2)
    none = np.zeros(count, np.bool_)
    return Draws(y=middle, x=middle, mirror=none, alpha=np.zeros((count, 3)), divide=1.0)


def ten_views(spec: AugmentSpec) -> list[tuple[int, int, bool]]:
    """(y, x, mirrored) of the ten evaluation crops: four corners and centre, then their mirrors.

    They are of the central square of the image, resized if `spec` says so.
    """
    far = spec.side - spec.crop
    corners = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    return [(y, x, mirrored) for mirrored in (False, True) for y, x in corners]


def colours(spec: AugmentSpec, stats: ImageStats | None) -> Colours:
    """The names in `spec` as numbers; DataError if the statistics are of images of another size."""
    mean, sd, axes, image = np.zeros(3), np.ones(3), np.zeros((3, 3)), None
    if not isinstance(spec.mean, str):
        mean = np.asarray(spec.mean, np.float64)
    if not (spec.sd is None or isinstance(spec.sd, str)):
        sd = np.asarray(spec.sd, np.float64)
    if stats is None or not spec.needs_stats:
        return Colours(mean, None, axes, sd)
    if (stats.height, stats.width) != (spec.source, spec.source):
        raise DataError(
            f"The statistics are of {stats.height}x{stats.width} images, AugmentSpec.source is "
            f"{spec.source}. Set source to the side of the stored images."
        )
    if spec.mean == "channel":
        mean = stats.mean
    elif spec.mean in ("image", "image_at_crop"):
        image = stats.mean_image_HWC
    if spec.sd == "channel":
        sd = _measured_sd(stats)
    scale = {
        "stdev": stats.stdevs,
        "eigenvalue": stats.eigenvalues,
        "fb_resnet": stats.eigenvalues / 255,
    }[spec.lighting_scale]
    return Colours(mean, image, stats.eigenvectors * scale, sd)


def _measured_sd(stats: ImageStats) -> Floats:
    if not (stats.sd > 0).all():
        raise DataError(
            f"A colour channel of {stats.split} has the same value in all images, and an sd of 0, "
            "by which nothing can be divided. Give AugmentSpec.sd three values."
        )
    return stats.sd


def shift(draws: Draws, axes: Floats) -> Floats:
    """The colour shift of each image, (N, 3) RGB in grey levels: columns of axes times alpha."""
    return draws.alpha @ axes.T
