# pyright: basic
"""The bilinear (triangle) resize of pillow-simd to the bit, compiled by numba.

Pillow keeps weights in 32 bits, pillow-simd in 16, so that their pixels differ by one here and
there. Which of them is installed is chance (each overwrites the other), and must not change a byte
of a data set: where it is Pillow, this takes its place. After Resample.c of pillow-simd 12.1.1:
weights of the columns, then of the rows, whole numbers in between.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import uintp
from numpy.typing import NDArray
from PIL import Image

from pipelines.row_loops import compiled

Array = Any  # numba's
LARGEST_WEIGHT = 1 << 15
MOST_BITS = 22
BAND_PIXELS = 1 << 19  # most photographs have fewer


class Weights(NamedTuple):
    """Of one axis: output i is the sum of `weights[i]` times the inputs from `starts[i]` on.

    `weights` are int32 (outputs, taps) in units of 2**-bits, with zeros where an output has fewer
    inputs; their sum is about 2**bits, so that no output exceeds 255.
    """

    starts: NDArray[np.int64]
    weights: NDArray[np.int32]
    bits: int


def resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """The region `box` (x and y of its corners) of an image as width x height four-byte pixels."""
    width, height = image.size
    columns = axis_weights(width, size[0], box[0], box[2])
    rows = axis_weights(height, size[1], box[1], box[3])
    begin, end = int(rows.starts[0]), int(rows.starts[-1]) + rows.weights.shape[1]
    narrow = np.empty((end - begin, 4 * size[0]), np.uint8)
    # The weights of a pixel for each of its four bytes.
    per_byte = np.repeat(columns.weights.T, 4, axis=1)
    # Pillow gives its pixels away as copies: of a large image a part at a time.
    step = max(1, BAND_PIXELS // width)
    for top in range(begin, end, step):
        bottom = min(top + step, end)
        pixels = _four_bytes(image, top, bottom).view(np.uint32)[..., 0]
        line = slice(top - begin, bottom - begin)
        _resize_rows(narrow[line], pixels, columns.starts, per_byte, columns.bits)
    out = np.empty((size[1], 4 * size[0]), np.uint8)
    _resize_columns(out, narrow, rows.starts - begin, rows.weights, rows.bits)
    return out.reshape(size[1], size[0], 4)


def _four_bytes(image: Image.Image, top: int, bottom: int) -> NDArray[np.uint8]:
    """Some rows of an image as RGBX."""
    band = image
    if (top, bottom) != (0, image.height):
        band = image.crop((0, top, image.width, bottom))
    return np.asarray(band if band.mode == "RGBX" else band.convert("RGBX"))


@lru_cache(maxsize=1024)  # the sides of photographs repeat
def axis_weights(side: int, size: int, begin: float, end: float) -> Weights:
    """As Pillow computes them: the box in float32, the rest in float64, a sum from the first on."""
    first = np.float64(np.float32(begin))
    scale = np.float64(np.float32(end) - np.float32(begin)) / size
    support = max(scale, np.float64(1))
    taps = math.ceil(support) * 2 + 1
    centres = first + (np.arange(size) + 0.5) * scale
    starts = np.maximum(np.trunc(centres - support + 0.5), 0).astype(np.int64)
    ends = np.minimum(np.trunc(centres + support + 0.5), side).astype(np.int64)
    inputs = starts[:, None] + np.arange(taps)
    distances = np.abs((inputs - centres[:, None] + 0.5) * (1 / support))
    weights = np.where((distances < 1) & (inputs < ends[:, None]), 1 - distances, 0)
    sums = np.zeros(size)
    for tap in range(taps):
        sums += weights[:, tap]
    weights /= sums[:, None]
    bits = 0
    while bits < MOST_BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < LARGEST_WEIGHT:
        bits += 1
    whole = np.trunc(0.5 + weights * 2**bits).astype(np.int32)
    return Weights(*_even(starts, (ends - starts).max(), whole, side), bits)


def _even(
    starts: NDArray[np.int64], taps: int, weights: NDArray[np.int32], side: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The same with `taps` inputs of each output, within the image: a loop without a branch."""
    first = np.minimum(starts, side - taps)
    columns = np.arange(taps) - (starts - first)[:, None]
    inside = (columns >= 0) & (columns < weights.shape[1])
    rows = np.arange(len(weights))[:, None]
    return first, np.where(inside, weights[rows, columns * inside], 0).astype(np.int32)


@compiled
def _resize_rows(out: Array, pixels: Array, starts: Array, weights: Array, bits: int) -> None:
    line = np.empty(out.shape[1] // 4, np.uint32)
    line_bytes, sums = line.view(np.uint8), np.empty(out.shape[1], np.int32)
    for y in range(out.shape[0]):
        row = pixels[y]
        sums[:] = 1 << (bits - 1)
        for tap in range(weights.shape[0]):
            # Gathered pixel by pixel, so that the compiler makes vectors of the rest.
            for x in range(line.size):
                line[x] = row[uintp(starts[x]) + uintp(tap)]
            weight = weights[tap]
            for i in range(sums.size):
                sums[i] += weight[i] * np.int32(line_bytes[i])
        for i in range(sums.size):
            out[y, i] = sums[i] >> bits


@compiled
def _resize_columns(out: Array, pixels: Array, starts: Array, weights: Array, bits: int) -> None:
    sums = np.empty(out.shape[1], np.int32)
    for y in range(out.shape[0]):
        sums[:] = 1 << (bits - 1)
        for tap in range(weights.shape[1]):
            weight, row = weights[y, tap], pixels[starts[y] + tap]
            for i in range(sums.size):
                sums[i] += weight * np.int32(row[i])
        for i in range(sums.size):
            out[y, i] = sums[i] >> bits


# Compiled, or read from numba's cache, on import: in the server of workers, for all of them.
resize(Image.new("RGBX", (2, 2)), (1, 1), (0, 0, 2, 2))
