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

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipelines.jpeg import BASELINE, SOI, segment, segments

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
