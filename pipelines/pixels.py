# pyright: basic, reportPrivateImportUsage=false
# ruff: noqa: N802
"""What DALI's numba operator runs for each crop, in DALI's threads: all of the formula at once.

DALI's crop_mirror_normalize knows one mean a channel: with a mean image the floats would be written
twice, and writing them to memory is most of the work.

    out = (pixels - mean) * unit + added

    out     float32 (3, H, W) or (H, W, 3)
    pixels  uint8 (H, W, 3), the crop
    place   int32 (4,): mirror the crop; which mean image; row and column where its part begins
    unit    float32 (3,): 1 / (divide * sd)
    added   float32 (3,): lighting shift * unit
    means   float32 (K, 3, S, S) or (K, S, S, 3), as `out` is laid out

The compiler makes vectors of the loops over a row only: of arrays with one axis, all colours of a
pixel together, and indices that cannot be negative, which is what the unsigned ones are for. Other
ways of writing them take three to five times as long. Compiling takes two seconds; numba keeps the
code beside this file, or among the user's caches, for the next process.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, cfunc, float32, njit, types, uintp

Array = Any  # numba's
Code = Any
_ADDRESSES, _SHAPES = types.CPointer(types.voidptr), types.CPointer(types.CPointer(types.int64))
# Data and shapes of outputs and inputs of one sample, each with their numbers of axes and a count.
RUN = types.void(
    *(_ADDRESSES, _SHAPES, types.voidptr, types.int32),
    *(_ADDRESSES, _SHAPES, types.voidptr, types.int32),
)
# Shapes of all samples' outputs, to be filled in, and inputs, likewise; and how many samples.
SETUP = types.void(
    *(_SHAPES, types.voidptr, types.int32),
    *(_SHAPES, types.voidptr, types.int32, types.int32),
)


def _compiled(signature: Any) -> Callable[[Callable[..., None]], Code]:
    """A function for DALI to call by its address, from numba's cache if there can be one."""

    def compile_(function: Callable[..., None]) -> Code:
        try:
            return cfunc(signature, cache=True)(function)
        except RuntimeError:  # no folder that can be written to
            return cfunc(signature)(function)

    return compile_


@_compiled(SETUP)
def shape_CHW(outs, _1, _2, ins, _3, _4, samples):  # noqa: ANN001, ANN201
    """The shape of each `out` from that of its `pixels`."""
    for sample in range(samples):
        outs[sample][0] = 3
        outs[sample][1] = ins[sample][0]
        outs[sample][2] = ins[sample][1]


@_compiled(SETUP)
def shape_HWC(outs, _1, _2, ins, _3, _4, samples):  # noqa: ANN001, ANN201
    """The same where colours come last."""
    for sample in range(samples):
        for axis in range(3):
            outs[sample][axis] = ins[sample][axis]


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
    for at in range(red.size):
        x = last - uintp(at)
        red[x] = (float32(pixels[3 * at]) - mean_r[x]) * unit_r + add_r
        green[x] = (float32(pixels[3 * at + 1]) - mean_g[x]) * unit_g + add_g
        blue[x] = (float32(pixels[3 * at + 2]) - mean_b[x]) * unit_b + add_b


@njit
def _row_HWC(out: Array, pixels: Array, mean: Array, units: Array, shifts: Array) -> None:
    for at in range(out.size):
        out[at] = (float32(pixels[at]) - mean[at]) * units[at] + shifts[at]


@njit
def _mirrored_HWC(out: Array, pixels: Array, mean: Array, unit: Array, added: Array) -> None:
    unit_r, unit_g, unit_b = unit[0], unit[1], unit[2]
    add_r, add_g, add_b = added[0], added[1], added[2]
    last = uintp(out.size // 3 - 1)
    for at in range(out.size // 3):
        x = uintp(3) * (last - uintp(at))
        out[x] = (float32(pixels[3 * at]) - mean[x]) * unit_r + add_r
        x += uintp(1)
        out[x] = (float32(pixels[3 * at + 1]) - mean[x]) * unit_g + add_g
        x += uintp(1)
        out[x] = (float32(pixels[3 * at + 2]) - mean[x]) * unit_b + add_b


@_compiled(RUN)
def normalise_CHW(outs, _1, _2, _3, ins, shapes, _4, _5):  # noqa: ANN001, ANN201
    """One crop, colours first."""
    height, width, side = shapes[0][0], shapes[0][1], shapes[4][2]
    plane, mean_plane = height * width, side * side
    out = carray(outs[0], 3 * plane, np.float32)
    pixels = carray(ins[0], 3 * plane, np.uint8)
    place, unit = carray(ins[1], 4, np.int32), carray(ins[2], 3, np.float32)
    added = carray(ins[3], 3, np.float32)
    means = carray(ins[4], shapes[4][0] * 3 * mean_plane, np.float32)
    for y in range(height):
        a = y * width
        b, c = a + plane, a + 2 * plane
        m = 3 * place[1] * mean_plane + (place[2] + y) * side + place[3]
        n, k = m + mean_plane, m + 2 * mean_plane
        into = (out[a : a + width], out[b : b + width], out[c : c + width])
        mean = (means[m : m + width], means[n : n + width], means[k : k + width])
        row = pixels[3 * a : 3 * a + 3 * width]
        if place[0]:
            _mirrored_CHW(into, row, mean, unit, added)
        else:
            _row_CHW(into, row, mean, unit, added)


@_compiled(RUN)
def normalise_HWC(outs, _1, _2, _3, ins, shapes, _4, _5):  # noqa: ANN001, ANN201
    """One crop, colours last."""
    height, row, side = shapes[0][0], 3 * shapes[0][1], shapes[4][1]
    out = carray(outs[0], height * row, np.float32)
    pixels = carray(ins[0], height * row, np.uint8)
    place, unit = carray(ins[1], 4, np.int32), carray(ins[2], 3, np.float32)
    added = carray(ins[3], 3, np.float32)
    means = carray(ins[4], shapes[4][0] * side * side * 3, np.float32)
    units, shifts = np.empty(row, np.float32), np.empty(row, np.float32)
    for at in range(row):
        units[at], shifts[at] = unit[at % 3], added[at % 3]
    for y in range(height):
        a = y * row
        m = 3 * (place[1] * side * side + (place[2] + y) * side + place[3])
        into, values, mean = out[a : a + row], pixels[a : a + row], means[m : m + row]
        if place[0]:
            _mirrored_HWC(into, values, mean, unit, added)
        else:
            _row_HWC(into, values, mean, units, shifts)
