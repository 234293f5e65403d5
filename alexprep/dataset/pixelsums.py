# pyright: reportUnknownMemberType=false, reportUntypedFunctionDecorator=false
# numba has no types.
"""The sums over pixels that `stats` takes of every image, compiled by numba when first imported.

One pass over the bytes has the products of the three colours, another the sum of each value: a
quarter of the time of the same sums in NumPy, which must first make floats or wide integers of the
bytes (benchmarks/results, stats).

Bounds. uint16 holds the sum of 257 images (257 * 255 = 65,535). The products are summed in int64,
which holds 2**63 / 255**2 = 1.4e14 pixels: one image after the other, they are added to uint64.
"""

import numpy as np
from numba import njit  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from alexprep.dataset.moments import Moments

IMAGES_BEFORE_FLUSH = 257
# Rows and columns of the symmetric 3x3 matrix, in the order in which add_products counts.
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@njit("void(uint8[::1], uint64[::1])")
def add_products(values: NDArray[np.uint8], products: NDArray[np.uint64]) -> None:
    """Add the products of the colours of all pixels, R G B R G B ..., to the six `products`."""
    rr = rg = rb = gg = gb = bb = 0
    for pixel in range(values.size // 3):
        red = np.int64(values[3 * pixel])
        green = np.int64(values[3 * pixel + 1])
        blue = np.int64(values[3 * pixel + 2])
        rr += red * red
        rg += red * green
        rb += red * blue
        gg += green * green
        gb += green * blue
        bb += blue * blue
    for index, total in enumerate((rr, rg, rb, gg, gb, bb)):
        products[index] += np.uint64(total)


@njit("void(uint8[::1], uint16[::1])")
def add_values(values: NDArray[np.uint8], sums: NDArray[np.uint16]) -> None:
    """Add each value to the sum at its place."""
    for index in range(values.size):
        sums[index] += values[index]


class Accumulator:
    """Adds images of height x width x RGB one by one; `moments()` gives what was added so far."""

    def __init__(self, height: int, width: int) -> None:
        values = height * width * 3
        self._shape = (height, width, 3)
        self._images = self._pending = 0
        self._sums = np.zeros(values, np.uint16)
        self._total = np.zeros(values, np.uint64)
        self._products = np.zeros(len(PAIRS), np.uint64)

    def add(self, pixels_HWC: NDArray[np.uint8]) -> None:
        """Add one image; TypeError unless it is uint8 and contiguous."""
        values = pixels_HWC.reshape(-1)
        add_values(values, self._sums)
        add_products(values, self._products)
        self._images += 1
        self._pending += 1
        if self._pending == IMAGES_BEFORE_FLUSH:
            self._flush()

    def moments(self) -> Moments:
        self._flush()
        products = [[0] * 3 for _ in range(3)]
        for (i, j), total in zip(PAIRS, self._products, strict=True):
            products[i][j] = products[j][i] = int(total)
        total = self._total.reshape(self._shape).copy()
        return Moments(self._images, total, tuple(tuple(row) for row in products))

    def _flush(self) -> None:
        """Move the small sums to where there is room."""
        self._total += self._sums
        self._sums[:] = 0
        self._pending = 0
