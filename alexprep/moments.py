"""Exact first and second moments of pixels, as integers; and the statistics that follow from them.

Everything summed is a whole number and every sum is exact, so the result does not depend on how the
images are divided among workers or in which order the parts are added.

Bounds. All of ILSVRC2012 at 256x256: a pixel's sum is at most 1,281,167 * 255 = 3.3e8, a channel
product's sum at most 1,281,167 * 65,536 * 255**2 = 5.46e15; uint64 and int hold both, and so would
float64 (2**53 = 9.0e15). Within `Accumulator`: uint16 holds the sum of 257 images (257 * 255 =
65,535), and float32, which is exact up to 2**24, the sum of 256 products (256 * 255**2 < 2**24), in
whatever order they are added.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = tuple[tuple[int, ...], ...]

IMAGES_BEFORE_FLUSH = 257
ROWS = 256
COLUMNS = 1024 * 3
# (lag, colour of the first factor, of the second): in R G B R G B ..., the value `lag` further on.
LAGS = ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 1), (1, 1, 2), (2, 0, 2))
# Below this a component of a unit axis counts as zero where the sign of the axis is chosen.
ZERO = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over images of height x width x RGB in 0..255.

    sum_HWC: of each pixel over the images, uint64
    products: 3x3, of the products of two channels of a pixel, over all pixels of all images
    """

    images: int
    sum_HWC: NDArray[np.uint64]  # noqa: N815 - the shape belongs to the name
    products: Ints

    @classmethod
    def none(cls, height: int, width: int) -> Self:
        """The moments of no images: what adding starts from."""
        return cls(0, np.zeros((height, width, 3), np.uint64), ((0, 0, 0),) * 3)

    def __add__(self, other: "Moments") -> "Moments":
        products = tuple(
            tuple(a + b for a, b in zip(*rows, strict=True))
            for rows in zip(self.products, other.products, strict=True)
        )
        return Moments(self.images + other.images, self.sum_HWC + other.sum_HWC, products)

    @property
    def pixels(self) -> int:
        """Pixels over all images."""
        return self.images * self.sum_HWC.shape[0] * self.sum_HWC.shape[1]

    @property
    def channel_sums(self) -> tuple[int, int, int]:
        red, green, blue = (int(self.sum_HWC[..., channel].sum()) for channel in range(3))
        return red, green, blue


class Accumulator:
    """Adds images one by one; `moments()` gives what was added so far.

    The values of an image, R G B R G B ..., are laid out in at most 256 rows of a multiple of three
    columns. The product of the values with themselves, one and two further on, summed down the
    rows, has every pair of colours in a third of its columns. Pulling the colours apart first
    takes longer than the third of these products that nobody needs.
    """

    def __init__(self, height: int, width: int) -> None:
        values = height * width * 3
        columns = max(COLUMNS, 3 * -(-values // (3 * ROWS)))
        self._shape = (height, width, 3)
        self._grid = (-(-values // columns), columns)
        self._images = self._pending = 0
        self._sums = np.zeros(values, np.uint16)
        self._total = np.zeros(values, np.uint64)
        # What lies beyond the last value stays zero and adds nothing to a product.
        self._floats = np.zeros(self._grid[0] * columns + 2, np.float32)
        self._lagged = np.zeros((3, columns))
        self._products = dict.fromkeys(LAGS, 0)

    def add(self, pixels_HWC: NDArray[np.uint8]) -> None:
        """Add one image of height x width x RGB."""
        values = pixels_HWC.reshape(-1)
        np.add(self._sums, values, out=self._sums)
        np.copyto(self._floats[: len(values)], values)
        whole = len(self._floats) - 2
        first = self._floats[:whole].reshape(self._grid)
        for lag in range(3):
            second = self._floats[lag : lag + whole].reshape(self._grid)
            self._lagged[lag] += np.einsum("ij,ij->j", first, second)
        self._images += 1
        self._pending += 1
        if self._pending == IMAGES_BEFORE_FLUSH:
            self._flush()

    def moments(self) -> Moments:
        self._flush()
        products = [[0] * 3 for _ in range(3)]
        for (_, i, j), total in self._products.items():
            products[i][j] = products[j][i] = total
        total = self._total.reshape(self._shape).copy()
        return Moments(self._images, total, tuple(tuple(row) for row in products))

    def _flush(self) -> None:
        """Move the small sums to where there is room."""
        self._total += self._sums
        self._sums[:] = 0
        for key in LAGS:
            lag, colour, _ = key
            self._products[key] += int(self._lagged[lag, colour::3].sum())
        self._lagged[:] = 0
        self._pending = 0


@dataclass(frozen=True, slots=True, eq=False)
class Colour:
    """What `ImageStats` says of colour, in 0..255 units; see there."""

    mean: Floats
    sd: Floats
    covariance: Floats
    eigenvalues: Floats
    stdevs: Floats
    eigenvectors: Floats


def mean_image(moments: Moments) -> Floats:
    """Mean of each pixel, (height, width, 3): a quotient of whole numbers, rounded once."""
    return moments.sum_HWC / np.float64(moments.images)


def colour(moments: Moments) -> Colour:
    """Mean, covariance and principal axes, from exact integers.

    Mean and covariance are exact fractions rounded once to float64; sd and axes follow from them
    by additions, multiplications, divisions and square roots, which IEEE 754 rounds alike on every
    machine (LAPACK's last bits depend on the processor).
    """
    count, sums = moments.pixels, moments.channel_sums
    mean = [float(Fraction(value, count)) for value in sums]
    covariance = [
        [
            float(Fraction(count * moments.products[i][j] - sums[i] * sums[j], count * count))
            for j in range(3)
        ]
        for i in range(3)
    ]
    values, vectors = principal_axes(covariance)
    return Colour(
        mean=np.array(mean),
        sd=np.array([math.sqrt(covariance[i][i]) for i in range(3)]),
        covariance=np.array(covariance),
        eigenvalues=np.array(values),
        stdevs=np.array([math.sqrt(value) for value in values]),
        eigenvectors=np.array(vectors),
    )


def principal_axes(covariance: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Eigenvalues, largest first, and eigenvectors in COLUMNS of a symmetric 3x3 matrix.

    Jacobi's method. An axis points where its first component that is not zero is positive: red, in
    photographs. Eigenvalues that rounding made negative are zero.
    """
    matrix = [list(row) for row in covariance]
    axes = [[float(i == j) for j in range(3)] for i in range(3)]
    while max(abs(matrix[p][q]) for p, q in ((0, 1), (0, 2), (1, 2))) > 0.0:
        for p, q in ((0, 1), (0, 2), (1, 2)):
            _rotate(matrix, axes, p, q)
    order = sorted(range(3), key=lambda i: -matrix[i][i])
    values = [max(0.0, matrix[i][i]) for i in order]
    columns = [_pointing([axes[row][i] for row in range(3)]) for i in order]
    return values, [[column[row] for column in columns] for row in range(3)]


def _rotate(matrix: list[list[float]], axes: list[list[float]], p: int, q: int) -> None:
    """Make matrix[p][q] zero by a rotation in the plane of p and q; turn the axes with it."""
    small, span = matrix[p][q], matrix[q][q] - matrix[p][p]
    if abs(small) <= 2.0**-60 * (abs(matrix[p][p]) + abs(matrix[q][q])):
        matrix[p][q] = matrix[q][p] = 0.0
        return
    theta = span / (2.0 * small)
    tangent = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(theta * theta + 1.0))
    cosine = 1.0 / math.sqrt(tangent * tangent + 1.0)
    sine = tangent * cosine
    for grid in (matrix, axes):
        for row in grid:
            row[p], row[q] = cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]
    for k in range(3):
        above, below = matrix[p][k], matrix[q][k]
        matrix[p][k], matrix[q][k] = cosine * above - sine * below, sine * above + cosine * below
    matrix[p][q] = matrix[q][p] = 0.0


def _pointing(axis: list[float]) -> list[float]:
    first = next(value for value in axis if abs(value) > ZERO)
    return [math.copysign(1.0, first) * value for value in axis]
