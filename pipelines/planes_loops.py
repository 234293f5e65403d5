# pyright: basic, reportPrivateImportUsage=false
# ruff: noqa: N802
"""The formulas of pipelines.planes and pipelines.normalize compiled by numba, row by row.

What pipelines.row_loops says of the loops' form holds here too. A crop for a network is made in one
pass: its pixels are never stored as bytes, which saves a third of the time.
"""

from typing import Any

import numpy as np
from numba import float32, int16, int32, njit, uint8, uintp

from pipelines.row_loops import compiled

Array = Any  # numba's
# Products of chroma (-128..127) with the factors of 16 bits are below 2**24, where float32 is
# exact, and so is the division by 2**16: the floor is that of the decoder's integers. Vectors of
# floats are multiplied faster than those of 32-bit integers.
SCALE = 65536
RED_CR, BLUE_CB = np.float32(91881 / SCALE), np.float32(116130 / SCALE)
GREEN_CB, GREEN_CR = np.float32(22554 / SCALE), np.float32(46802 / SCALE)
HALF, LEAST, MOST = np.float32(0.5), np.float32(0), np.float32(255)


@njit
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


@njit
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


@njit
def _red(y: Any, cr: Any) -> Any:
    return min(max(y + np.floor(RED_CR * cr + HALF), LEAST), MOST)


@njit
def _green(y: Any, cb: Any, cr: Any) -> Any:
    return min(max(y + np.floor(HALF - GREEN_CB * cb - GREEN_CR * cr), LEAST), MOST)


@njit
def _blue(y: Any, cb: Any) -> Any:
    return min(max(y + np.floor(BLUE_CB * cb + HALF), LEAST), MOST)


@njit
def _centred(chroma: Any) -> Any:
    return float32(int16(chroma - int16(128)))


@njit
def _row_CHW(luma: Array, cb: Array, cr: Array, outs: Array, means: Array, levels: Array) -> None:
    red, green, blue = outs
    mean_r, mean_g, mean_b = means
    unit_r, unit_g, unit_b = levels[0, 0], levels[0, 1], levels[0, 2]
    add_r, add_g, add_b = levels[1, 0], levels[1, 1], levels[1, 2]
    for x in range(luma.size):
        y, blue_chroma, red_chroma = float32(luma[x]), _centred(cb[x]), _centred(cr[x])
        red[x] = (_red(y, red_chroma) - mean_r[x]) * unit_r + add_r
        green[x] = (_green(y, blue_chroma, red_chroma) - mean_g[x]) * unit_g + add_g
        blue[x] = (_blue(y, blue_chroma) - mean_b[x]) * unit_b + add_b


@njit
def _row_HWC(luma: Array, cb: Array, cr: Array, out: Array, mean: Array, levels: Array) -> None:
    unit_r, unit_g, unit_b = levels[0, 0], levels[0, 1], levels[0, 2]
    add_r, add_g, add_b = levels[1, 0], levels[1, 1], levels[1, 2]
    for x in range(luma.size):
        y, blue_chroma, red_chroma = float32(luma[x]), _centred(cb[x]), _centred(cr[x])
        out[3 * x] = (_red(y, red_chroma) - mean[3 * x]) * unit_r + add_r
        green = _green(y, blue_chroma, red_chroma)
        out[3 * x + 1] = (green - mean[3 * x + 1]) * unit_g + add_g
        out[3 * x + 2] = (_blue(y, blue_chroma) - mean[3 * x + 2]) * unit_b + add_b


@njit
def _copy(row: Array, mirror: bool, out: Array) -> None:
    if mirror:
        last = uintp(row.size - 1)
        for x in range(row.size):
            out[last - uintp(x)] = row[x]
    else:
        for x in range(row.size):
            out[x] = row[x]


@njit
def _buffers(size: int, left: int, width: int) -> Any:
    """Memory for the rows of a crop, and the first and last chroma column that it needs.

    The filter looks at one column more on each side. At the edges of the image there is none, and
    _chroma_row repeats the last one as the decoder does.
    """
    first, stop = max(left // 2 - 1, 0), min((left + width - 1) // 2 + 2, size // 2)
    count = stop - first
    wide = (np.empty(count + 2, np.int16), np.empty(2 * count, np.int16))
    rows = (np.empty(width, np.uint8), np.empty(width, np.int16), np.empty(width, np.int16))
    return first, stop, wide, rows


@njit
def _load_row(planes: Array, size: int, y: int, left: int, mirror: bool, buffers: Any) -> None:
    """Luma and upsampled chroma of a crop's pixels in row `y` of the image, into its rows."""
    first, stop, (sums, upsampled), (luma, cb, cr) = buffers
    start, width, half = y * size + left, luma.size, size // 2
    _copy(planes[start : start + width], mirror, luma)
    near = y // 2
    far = min(max(near + (1 if y % 2 else -1), 0), half - 1)
    shift = left - 2 * first
    a, b = size * size + near * half, size * size + far * half
    _chroma_row(planes[a + first : a + stop], planes[b + first : b + stop], sums, upsampled)
    _copy(upsampled[shift : shift + width], mirror, cb)
    a, b = a + half * half, b + half * half
    _chroma_row(planes[a + first : a + stop], planes[b + first : b + stop], sums, upsampled)
    _copy(upsampled[shift : shift + width], mirror, cr)


@compiled
def rgb_crop(planes: Array, size: int, top: int, left: int, out_HWC: Array) -> None:
    """The RGB pixels of a crop, as `rgb_from_planes(planes, size)` has them there.

    planes: uint8 (plane_bytes(size),); out_HWC: uint8 (height, width, 3), C-contiguous; the crop
    begins at (top, left) and lies inside.
    """
    height, width = out_HWC.shape[0], out_HWC.shape[1]
    buffers = _buffers(size, left, width)
    luma, cb, cr = buffers[3]
    for row in range(height):
        _load_row(planes, size, top + row, left, False, buffers)
        _rgb_row(luma, cb, cr, out_HWC[row].reshape(3 * width))


@compiled
def crop_CHW(
    out: Array, planes: Array, position: Array, mean: Array, origin: Array, levels: Array
) -> None:
    """One crop as a network takes it, colours first.

    out: float32 (3, H, W); planes: uint8 (plane_bytes(S),); position: top, left and mirror of the
    crop; mean: float32 (3, S, S); origin: row and column of the mean image that belong to the first
    pixel of `out`; levels: float32 (2, 3), unit and added.
    """
    height, width, size = out.shape[1], out.shape[2], mean.shape[1]
    top, left, mirror = position
    y, x = origin
    buffers = _buffers(size, left, width)
    luma, cb, cr = buffers[3]
    for row in range(height):
        _load_row(planes, size, top + row, left, mirror != 0, buffers)
        outs = (out[0, row], out[1, row], out[2, row])
        means = (
            mean[0, y + row, x : x + width],
            mean[1, y + row, x : x + width],
            mean[2, y + row, x : x + width],
        )
        _row_CHW(luma, cb, cr, outs, means, levels)


@compiled
def crop_HWC(
    out: Array, planes: Array, position: Array, mean: Array, origin: Array, levels: Array
) -> None:
    """One crop, colours last: as `crop_CHW`, but out is (H, 3 W) and mean (S, 3 S)."""
    height, width, size = out.shape[0], out.shape[1] // 3, mean.shape[0]
    top, left, mirror = position
    y, x = origin
    buffers = _buffers(size, left, width)
    luma, cb, cr = buffers[3]
    for row in range(height):
        _load_row(planes, size, top + row, left, mirror != 0, buffers)
        _row_HWC(luma, cb, cr, out[row], mean[y + row, 3 * x : 3 * (x + width)], levels)
