# pyright: basic
# ruff: noqa: N802
"""The formula of pipelines.normalize compiled by numba: one pass over the pixels of a crop.

The compiler makes vectors of the loops over a row only: of arrays with one contiguous axis, all
colours of a pixel together, and indices that cannot be negative, which is what the unsigned ones
are for. Other ways of writing them take three to five times as long. Compiling takes two seconds;
numba keeps the code next to this file, or among the user's caches, for the next process.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import float32, njit, uintp

Array = Any  # numba's
T = TypeVar("T")


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Compile for threads that run at the same time; cached on disk if there is a place for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that can be written to
        return njit(nogil=True)(function)


@njit
def _row_CHW(outs: Array, pixels: Array, means: Array, unit: Array, added: Array) -> None:
    red, green, blue = outs
    mean_r, mean_g, mean_b = means
    unit_r, unit_g, unit_b = unit[0], unit[1], unit[2]
    add_r, add_g, add_b = added[0], added[1], added[2]
    for x in range(red.size):
        red[x] = (float32(pixels[3 * x]) - mean_r[x]) * unit_r + add_r
        green[x] = (float32(pixels[3 * x + 1]) - mean_g[x]) * unit_g + add_g
        blue[x] = (float32(pixels[3 * x + 2]) - mean_b[x]) * unit_b + add_b


@njit
def _mirrored_CHW(outs: Array, pixels: Array, means: Array, unit: Array, added: Array) -> None:
    red, green, blue = outs
    mean_r, mean_g, mean_b = means
    unit_r, unit_g, unit_b = unit[0], unit[1], unit[2]
    add_r, add_g, add_b = added[0], added[1], added[2]
    last = uintp(red.size - 1)
    for i in range(red.size):
        x = last - uintp(i)
        red[x] = (float32(pixels[3 * i]) - mean_r[x]) * unit_r + add_r
        green[x] = (float32(pixels[3 * i + 1]) - mean_g[x]) * unit_g + add_g
        blue[x] = (float32(pixels[3 * i + 2]) - mean_b[x]) * unit_b + add_b


@njit
def _row_HWC(out: Array, pixels: Array, mean: Array, units: Array, shifts: Array) -> None:
    for i in range(out.size):
        out[i] = (float32(pixels[i]) - mean[i]) * units[i] + shifts[i]


@njit
def _mirrored_HWC(out: Array, pixels: Array, mean: Array, unit: Array, added: Array) -> None:
    unit_r, unit_g, unit_b = unit[0], unit[1], unit[2]
    add_r, add_g, add_b = added[0], added[1], added[2]
    last = uintp(out.size // 3 - 1)
    for i in range(out.size // 3):
        x = uintp(3) * (last - uintp(i))
        out[x] = (float32(pixels[3 * i]) - mean[x]) * unit_r + add_r
        x += uintp(1)
        out[x] = (float32(pixels[3 * i + 1]) - mean[x]) * unit_g + add_g
        x += uintp(1)
        out[x] = (float32(pixels[3 * i + 2]) - mean[x]) * unit_b + add_b


@njit
def _crop_CHW(
    out: Array, pixels: Array, mean: Array, origin: Array, mirror: bool, levels: Array
) -> None:
    height, width = out.shape[1], out.shape[2]
    top, left = origin[0], origin[1]
    for y in range(height):
        rows = (out[0, y], out[1, y], out[2, y])
        means = (
            mean[0, top + y, left : left + width],
            mean[1, top + y, left : left + width],
            mean[2, top + y, left : left + width],
        )
        if mirror:
            _mirrored_CHW(rows, pixels[y], means, levels[0], levels[1])
        else:
            _row_CHW(rows, pixels[y], means, levels[0], levels[1])


@njit
def _crop_HWC(
    out: Array, pixels: Array, mean: Array, origin: Array, mirror: bool, levels: Array
) -> None:
    height, row = out.shape
    top, left = origin[0], 3 * origin[1]
    units, shifts = np.empty(row, np.float32), np.empty(row, np.float32)
    for i in range(row):
        units[i], shifts[i] = levels[0, i % 3], levels[1, i % 3]
    for y in range(height):
        means = mean[top + y, left : left + row]
        if mirror:
            _mirrored_HWC(out[y], pixels[y], means, levels[0], levels[1])
        else:
            _row_HWC(out[y], pixels[y], means, units, shifts)


@compiled
def crops_CHW(out: Array, pixels: Array, means: Array, factors: Array) -> None:
    """Crops, colours first.

    out: float32 (N, 3, H, W); pixels: uint8 (N, H, 3 W); means: mean images, float32 (2, 3, S, S);
    factors: a normalize.Factors of N crops.
    """
    for i in range(len(out)):
        mean, origin = means[factors.image[i]], factors.origin[i]
        _crop_CHW(out[i], pixels[i], mean, origin, factors.mirror[i], factors.levels[i])


@compiled
def crops_HWC(out: Array, pixels: Array, means: Array, factors: Array) -> None:
    """Crops, colours last: as `crops_CHW`, but out is (N, H, 3 W) and means (2, S, 3 S)."""
    for i in range(len(out)):
        mean, origin = means[factors.image[i]], factors.origin[i]
        _crop_HWC(out[i], pixels[i], mean, origin, factors.mirror[i], factors.levels[i])
