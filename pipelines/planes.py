# pyright: basic, reportPrivateImportUsage=false
"""Decoded JPEGs as 4:2:0 planes: half the bytes of RGB, and exactly the pixels of the decoder.

A baseline 4:2:0 JPEG of S x S pixels (S even) decodes to planes of luma Y (S x S) and of chroma
Cb and Cr (S/2 x S/2 each): S * S * 3 / 2 bytes. What a decoder does after that, upsampling of
chroma and conversion to RGB, is integer arithmetic that libjpeg has kept since version 6b:

    column sums    s = 3 * near row + far row
    upsampled      (3 * s + s of the left column + 8) >> 4 for even pixels,
                   (3 * s + s of the right column + 7) >> 4 for odd ones; edges repeat
    red            Y + ((91881 * (Cr - 128) + 32768) >> 16)
    green          Y + ((-22554 * (Cb - 128) - 46802 * (Cr - 128) + 32768) >> 16)
    blue           Y + ((116130 * (Cb - 128) + 32768) >> 16), all of them clipped to 0..255

(jdsample.c, h2v2_fancy_upsample, and jdcolor.c, ycc_rgb_convert, of libjpeg and libjpeg-turbo.) So
planes give the very bytes that decoding the JPEG gives, and a store of planes decodes once what an
epoch would decode again.
"""

from typing import Any

import numpy as np
import simplejpeg
from numba import int16, int32, uint8
from numpy.typing import NDArray

from pipelines.jpeg import BASELINE, SOI, segment, segments
from pipelines.row_loops import compiled

Array = Any  # numba's
# Adobe's marker with transform 0 says that the three components are not to be converted.
UNCONVERTED = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
APPLICATION = range(0xE0, 0xF0)  # markers APP0 to APP15; JFIF's and Adobe's name the colour space


def check_subsampling(jpg: bytes, size: int) -> None:
    """ValueError unless planes can hold this JPEG: baseline, 4:2:0, even sides of `size`."""
    if size % 2:
        raise ValueError(f"its sides of {size} pixels are odd; planes need even sides")
    frame = segment(jpg, (BASELINE,))
    components = jpg[frame + 9]
    sampling = tuple(jpg[frame + 11 + 3 * number] for number in range(min(components, 3)))
    if components != 3 or sampling != (0x22, 0x11, 0x11):
        raise ValueError("it is not a 4:2:0 JPEG of three components")


def decode_planes(jpg: bytes, size: int, out: NDArray[np.uint8]) -> None:
    """The planes of a JPEG, Y, Cb and Cr one after the other, into `out` (plane_bytes(size),).

    ValueError if the JPEG cannot be decoded or is not one that planes can hold.
    """
    check_subsampling(jpg, size)
    # Without colour conversion, and with plain repetition of chroma, the decoder's "RGB" is Y, Cb
    # and Cr as stored: no decoder in a wheel gives planes, and this way costs an eighth more than
    # decoding to RGB.
    try:
        pixels_HWC = simplejpeg.decode_jpeg(_unconverted(jpg), "RGB", fastupsample=True)
    except ValueError as error:
        raise ValueError(f"the JPEG cannot be decoded ({error})") from error
    luma, chroma = size * size, size * size // 4
    out[:luma].reshape(size, size)[...] = pixels_HWC[..., 0]
    half = (size // 2, size // 2)
    out[luma : luma + chroma].reshape(half)[...] = pixels_HWC[::2, ::2, 1]
    out[luma + chroma :].reshape(half)[...] = pixels_HWC[::2, ::2, 2]


def _unconverted(jpg: bytes) -> bytes:
    """The JPEG without its own application markers, under one that forbids colour conversion."""
    first = next(offset for marker, offset in segments(jpg) if marker not in APPLICATION)
    return SOI + UNCONVERTED + jpg[first:]


def rgb_from_planes(planes: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """RGB pixels of one image, uint8 (size, size, 3): the formula in NumPy, the kernel's oracle."""
    luma, chroma = size * size, size * size // 4
    y = planes[:luma].reshape(size, size).astype(np.int32)
    half = (size // 2, size // 2)
    cb = _upsample(planes[luma : luma + chroma].reshape(half)) - 128
    cr = _upsample(planes[luma + chroma :].reshape(half)) - 128
    red = y + ((91881 * cr + 32768) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + 32768) >> 16)
    blue = y + ((116130 * cb + 32768) >> 16)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)


def _upsample(chroma: NDArray[np.uint8]) -> NDArray[np.int32]:
    near = np.repeat(chroma.astype(np.int32), 2, axis=0)
    padded = np.pad(chroma.astype(np.int32), ((1, 1), (0, 0)), mode="edge")
    far = np.empty_like(near)
    far[0::2], far[1::2] = padded[:-2], padded[2:]
    sums = np.pad(3 * near + far, ((0, 0), (1, 1)), mode="edge")
    out = np.empty((near.shape[0], 2 * near.shape[1]), np.int32)
    out[:, 0::2] = (3 * sums[:, 1:-1] + sums[:, :-2] + 8) >> 4
    out[:, 1::2] = (3 * sums[:, 1:-1] + sums[:, 2:] + 7) >> 4
    return out


@compiled
def _chroma_row(near: Array, far: Array, sums: Array, out: Array) -> None:
    """An upsampled row of chroma: `near` and `far` have n bytes, `sums` n + 2, `out` 2 * n."""
    count = near.size
    for x in range(count):
        sums[x + 1] = int16(3) * int16(near[x]) + int16(far[x])
    sums[0] = sums[1]
    sums[count + 1] = sums[count]
    for x in range(count):
        three = int16(3) * sums[x + 1]
        out[2 * x] = (three + sums[x] + int16(8)) >> 4
        out[2 * x + 1] = (three + sums[x + 2] + int16(7)) >> 4


@compiled
def _rgb_row(luma: Array, cb: Array, cr: Array, out: Array) -> None:
    """A row of pixels, red, green and blue together; `out` has three bytes a pixel."""
    for x in range(luma.size):
        y = int32(luma[x])
        blue_chroma = int32(cb[x]) - int32(128)
        red_chroma = int32(cr[x]) - int32(128)
        red = y + ((int32(91881) * red_chroma + int32(32768)) >> 16)
        green = y + ((int32(-22554) * blue_chroma - int32(46802) * red_chroma + int32(32768)) >> 16)
        blue = y + ((int32(116130) * blue_chroma + int32(32768)) >> 16)
        out[3 * x] = uint8(min(max(red, int32(0)), int32(255)))
        out[3 * x + 1] = uint8(min(max(green, int32(0)), int32(255)))
        out[3 * x + 2] = uint8(min(max(blue, int32(0)), int32(255)))


@compiled
def rgb_crop(planes: Array, size: int, top: int, left: int, out_HWC: Array) -> None:
    """The RGB pixels of a crop, as `rgb_from_planes(planes, size)` has them there.

    planes   uint8 (plane_bytes(size),)
    out_HWC  uint8 (height, width, 3), C-contiguous; the crop begins at (top, left) and lies inside
    """
    height, width = out_HWC.shape[0], out_HWC.shape[1]
    luma, half = size * size, size // 2
    chroma = half * half
    # Chroma columns of the crop and one more on each side, which the filter looks at; at the edges
    # of the image there is none, and _chroma_row repeats the last one as the decoder does.
    first = max(left // 2 - 1, 0)
    stop = min((left + width - 1) // 2 + 2, half)
    sums = np.empty(stop - first + 2, np.int16)
    cb = np.empty(2 * (stop - first), np.int16)
    cr = np.empty(2 * (stop - first), np.int16)
    shift = left - 2 * first
    for row in range(height):
        y = top + row
        near = y // 2
        far = min(max(near + (1 if y % 2 else -1), 0), half - 1)
        a, b = luma + near * half, luma + far * half
        _chroma_row(planes[a + first : a + stop], planes[b + first : b + stop], sums, cb)
        a, b = a + chroma, b + chroma
        _chroma_row(planes[a + first : a + stop], planes[b + first : b + stop], sums, cr)
        start = y * size + left
        _rgb_row(
            planes[start : start + width],
            cb[shift : shift + width],
            cr[shift : shift + width],
            out_HWC[row].reshape(3 * width),
        )
