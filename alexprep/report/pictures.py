"""Pictures as data URIs: thumbnails, kernels, colours.

Letters: N images, H rows, W columns of pixels, C = 3 channels (RGB).
"""

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

THUMBNAIL = 224  # pixels a side: sharp at the largest size on the page
THUMBNAIL_QUALITY = 88
GAP = 1  # pixels between two kernels
BACKGROUND = (255, 255, 255)


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(jpg: bytes) -> str:
    """A stored JPEG: unchanged if it is small, else reduced to THUMBNAIL pixels."""
    with Image.open(io.BytesIO(jpg)) as picture:
        if max(picture.size) <= THUMBNAIL:
            return _data_uri(jpg, "jpeg")
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        return _jpeg(picture)


def photograph(pixels_HWC: Floats) -> str:
    """Pixels in 0..255 as a JPEG; values outside are clipped."""
    picture = Image.fromarray(np.clip(np.rint(pixels_HWC), 0, 255).astype(np.uint8))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=THUMBNAIL_QUALITY, subsampling=0)
    return _data_uri(out.getvalue(), "jpeg")


def kernel_sheet(kernels_NCHW: Floats, columns: int = 8) -> str:
    """Kernels as a grid of colour pictures, each scaled to its own largest weight; 0 is mid-gray.

    With a common scale, a few strong kernels would turn all others gray.
    """
    count, _, height, width = kernels_NCHW.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    sheet = np.full(size, BACKGROUND, np.uint8)
    largest = np.abs(kernels_NCHW).max(axis=(1, 2, 3), keepdims=True)
    scaled = kernels_NCHW / np.where(largest > 0, largest, 1)
    pictures_NHWC = (
        np.rint(127.5 + 127.5 * np.nan_to_num(scaled)).astype(np.uint8).transpose(0, 2, 3, 1)
    )
    for number, picture in enumerate(pictures_NHWC):
        y, x = (number // columns) * (height + GAP), (number % columns) * (width + GAP)
        sheet[y : y + height, x : x + width] = picture
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "PNG", optimize=True)
    return _data_uri(out.getvalue(), "png")


def colour_share(kernels_NCHW: Floats) -> Floats:
    """Share of each kernel's energy (sum of squares) that is off the gray axis: (N,) in 0..1.

    At every position of a kernel the three weights are split into their mean, which responds to
    brightness, and the difference to it, which responds to colour. 0: blind to colour. 1: blind
    to brightness. Independent random weights have 2/3: two of the three axes of colour space.
    """
    energy = (kernels_NCHW**2).sum(axis=(1, 2, 3))
    gray = 3 * (kernels_NCHW.mean(axis=1) ** 2).sum(axis=(1, 2))
    return np.clip(1 - gray / np.where(energy > 0, energy, 1), 0, 1) * (energy > 0)


def css_colour(colour: Floats) -> str:
    """A colour in 0..255 in CSS notation."""
    return "#" + "".join(f"{round(float(value)):02x}" for value in np.clip(colour, 0, 255))
