# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# ruff: noqa: N802
"""The formulas of pipelines.planes and pipelines.normalize compiled by numba, row by row.

What pipelines.row_loops says of the loops' form holds here too. A crop for a network is made in one
pass: its file is read into memory that stays in the processor's cache, and its pixels are never
stored as bytes. All of that is one call for some images of a batch, without Python's lock.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import float32, int16, int32, njit, types, uint8, uint32, uintp
from numba.extending import overload
from numpy.typing import NDArray

from pipelines.row_loops import compiled

Array = Any  # numba's
# Products of chroma (-128..127) with the factors of 16 bits are below 2**24, where float32 is
# exact, and so is the division by 2**16: the floor is that of the decoder's integers. Vectors of
# floats are multiplied faster than those of 32-bit integers.
SCALE = 65536
RED_CR, BLUE_CB = np.float32(91881 / SCALE), np.float32(116130 / SCALE)
GREEN_CB, GREEN_CR = np.float32(22554 / SCALE), np.float32(46802 / SCALE)
HALF, LEAST, MOST = np.float32(0.5), np.float32(0), np.float32(255)
# The C library's own; numba finds it in the process, and a call of it needs no Python.
_pread = types.ExternalFunction(
    "pread", types.intp(types.int32, types.voidptr, types.uintp, types.int64)
)


_inlined = njit(inline="always")


class StoredCrops(NamedTuple):
    """Where N crops are, and their numbers in the formula.

    files: descriptors of the files that hold the planes, int32 (N,)
    offsets: of the planes in their files, int64 (N,)
    corners: top, left and mirror of each crop, int64 (N, 3)
    images: which mean image, int64 (N,)
    origins: row and column of that image at the crop's first pixel, int64 (N, 2)
    levels: unit and added of each colour, float32 (N, 2, 3)
    """

    files: NDArray[np.int32]
    offsets: NDArray[np.int64]
    corners: NDArray[np.int64]
    images: NDArray[np.int64]
    origins: NDArray[np.int64]
    levels: NDArray[np.float32]


@_inlined
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


@_inlined
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


@_inlined
def _red(y: Any, cr: Any) -> Any:
    return min(max(y + np.floor(RED_CR * cr + HALF), LEAST), MOST)


@_inlined
def _green(y: Any, cb: Any, cr: Any) -> Any:
    return min(max(y + np.floor(HALF - GREEN_CB * cb - GREEN_CR * cr), LEAST), MOST)


@_inlined
def _blue(y: Any, cb: Any) -> Any:
    return min(max(y + np.floor(BLUE_CB * cb + HALF), LEAST), MOST)


@_inlined
def _centred(chroma: Any) -> Any:
    return float32(int16(chroma - int16(128)))


def _cast(value: Any, row: Array) -> Any:
    """A float32 as what `row` holds: that, bfloat16 (as uint16), or bytes of whole numbers."""


def _cast_half(value: Any, row: Array) -> Any:
    # The upper half of its bits, rounded to the nearest and to even, as PyTorch does.
    bits = np.float32(value).view(np.uint32)
    return (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)


def _cast_byte(value: Any, row: Array) -> Any:
    return uint8(int32(value))


def _cast_float(value: Any, row: Array) -> Any:
    return value


@overload(_cast, inline="always")
def _cast_for(value: Any, row: Array) -> Any:
    return {types.uint16: _cast_half, types.uint8: _cast_byte}.get(row.dtype, _cast_float)


@_inlined
def _row_CHW(row: Array, means: Array, levels: Array, outs: Array) -> None:
    luma, cb, cr = row
    red, green, blue = outs
    mean_r, mean_g, mean_b = means
    unit_r, unit_g, unit_b = levels[0, 0], levels[0, 1], levels[0, 2]
    add_r, add_g, add_b = levels[1, 0], levels[1, 1], levels[1, 2]
    for x in range(luma.size):
        y, blue_chroma, red_chroma = float32(luma[x]), _centred(cb[x]), _centred(cr[x])
        red[x] = _cast((_red(y, red_chroma) - mean_r[x]) * unit_r + add_r, red)
        level = _green(y, blue_chroma, red_chroma)
        green[x] = _cast((level - mean_g[x]) * unit_g + add_g, green)
        blue[x] = _cast((_blue(y, blue_chroma) - mean_b[x]) * unit_b + add_b, blue)


# Written with a step of 1 or 3 the two loops would be one, and not become vectors.
@_inlined
def _row_HWC(row: Array, means: Array, levels: Array, out: Array) -> None:
    luma, cb, cr = row
    mean_r, mean_g, mean_b = means
    unit_r, unit_g, unit_b = levels[0, 0], levels[0, 1], levels[0, 2]
    add_r, add_g, add_b = levels[1, 0], levels[1, 1], levels[1, 2]
    for x in range(luma.size):
        y, blue_chroma, red_chroma = float32(luma[x]), _centred(cb[x]), _centred(cr[x])
        out[3 * x] = _cast((_red(y, red_chroma) - mean_r[x]) * unit_r + add_r, out)
        level = _green(y, blue_chroma, red_chroma)
        out[3 * x + 1] = _cast((level - mean_g[x]) * unit_g + add_g, out)
        out[3 * x + 2] = _cast((_blue(y, blue_chroma) - mean_b[x]) * unit_b + add_b, out)


@_inlined
def _reverse(row: Array, out: Array) -> None:
    last = uintp(row.size - 1)
    for x in range(row.size):
        out[last - uintp(x)] = row[x]


@_inlined
def _chroma_columns(size: int, left: int, width: int) -> Any:
    """First and last chroma column that a crop needs.

    The filter looks at one column more on each side. At the edges of the image there is none, and
    _chroma_row repeats the last one as the decoder does.
    """
    return max(left // 2 - 1, 0), min((left + width - 1) // 2 + 2, size // 2)


@_inlined
def _upsample_row(planes: Array, size: int, y: int, columns: Any, buffers: Any) -> None:
    """Chroma of row `y` of the image, from the first of the columns on, into two rows."""
    first, stop = columns
    sums, cb, cr = buffers
    half, near = size // 2, y // 2
    far = min(max(near + (1 if y % 2 else -1), 0), half - 1)
    a, b = size * size + near * half, size * size + far * half
    _chroma_row(planes[a + first : a + stop], planes[b + first : b + stop], sums, cb)
    a, b = a + half * half, b + half * half
    _chroma_row(planes[a + first : a + stop], planes[b + first : b + stop], sums, cr)


@_inlined
def _buffers(size: int) -> Any:
    """Memory for column sums and for upsampled rows of both chroma planes."""
    return np.empty(size // 2 + 2, np.int16), np.empty(size, np.int16), np.empty(size, np.int16)


@compiled
def rgb_crop(planes: Array, size: int, top: int, left: int, out_HWC: Array) -> None:
    """The RGB pixels of a crop, as `rgb_from_planes(planes, size)` has them there.

    planes: uint8 (plane_bytes(size),); out_HWC: uint8 (height, width, 3), C-contiguous; the crop
    begins at (top, left) and lies inside.
    """
    height, width = out_HWC.shape[0], out_HWC.shape[1]
    columns, buffers = _chroma_columns(size, left, width), _buffers(size)
    _, cb, cr = buffers
    a = left - 2 * columns[0]
    b = a + width
    for row in range(height):
        _upsample_row(planes, size, top + row, columns, buffers)
        start = (top + row) * size + left
        luma, out = planes[start : start + width], out_HWC[row].reshape(3 * width)
        _rgb_row(luma, cb[a:b], cr[a:b], out)


@njit
def _write_crop(
    out: Array, planes: Array, crops: Any, number: int, means: Array, buffers: Any
) -> None:
    side, size = out.shape[-2], means.shape[2]
    top, left, mirror = crops.corners[number]
    mean, levels = means[crops.images[number]], crops.levels[number]
    y, x = crops.origins[number]
    chroma, mirrored = buffers
    _, cb, cr = chroma
    columns = _chroma_columns(size, left, side)
    a = left - 2 * columns[0]
    b = a + side
    for row in range(side):
        _upsample_row(planes, size, top + row, columns, chroma)
        start = (top + row) * size + left
        row_means = (
            mean[0, y + row, x : x + side],
            mean[1, y + row, x : x + side],
            mean[2, y + row, x : x + side],
        )
        if mirror:
            _reverse(planes[start : start + side], mirrored[0])
            _reverse(cb[a:b], mirrored[1])
            _reverse(cr[a:b], mirrored[2])
            pixels = mirrored
        else:
            pixels = (planes[start : start + side], cb[a:b], cr[a:b])
        if out.ndim == 3:  # known to the compiler, which keeps one of the two
            _row_CHW(pixels, row_means, levels, (out[0, row], out[1, row], out[2, row]))
        else:
            _row_HWC(pixels, row_means, levels, out[row])


@compiled
def write_crops(out: Array, crops: StoredCrops, means: Array, start: int, stop: int) -> int:
    """Write crops start..stop-1; the number of the first whose file could not be read, or `stop`.

    out: float32, uint16 for bfloat16, or uint8, which takes whole numbers as they are: (N, 3, H, W)
    or (N, H, 3 W); means: float32 (images, 3, S, S).
    """
    size, side = means.shape[2], out.shape[-2]
    planes = np.empty(size * size * 3 // 2, np.uint8)
    mirrored = (np.empty(side, np.uint8), np.empty(side, np.int16), np.empty(side, np.int16))
    buffers = (_buffers(size), mirrored)
    for number in range(start, stop):
        file, offset = crops.files[number], crops.offsets[number]
        if _pread(file, planes.ctypes, uintp(planes.size), offset) != planes.size:
            return number
        _write_crop(out[number], planes, crops, number, means, buffers)
    return stop
