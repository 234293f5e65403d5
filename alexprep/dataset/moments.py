"""Exact first and second moments of pixels, as integers; and the statistics that follow from them.

Everything summed is a whole number and every sum is exact, so the result does not depend on how the
images are divided among workers or in which order the parts are added.

Bounds. All of ILSVRC2012 at 256x256: a pixel's sum is at most 1,281,167 * 255 = 3.3e8, a channel
product's sum at most 1,281,167 * 65,536 * 255**2 = 5.46e15; uint64 and int hold both, and so would
float64 (2**53 = 9.0e15).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.imagestats import ImageStats

Ints = tuple[tuple[int, ...], ...]

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


def image_stats(split: str, moments: Moments, shards: Mapping[str, str]) -> ImageStats:
    """Mean image, mean, covariance and principal axes, from exact integers.

    All means and the covariance are exact fractions rounded once to float64; sd and axes follow
    from them by additions, multiplications, divisions and square roots, which IEEE 754 rounds alike
    on every machine (LAPACK's last bits depend on the processor).
    """
    count, sums = moments.pixels, moments.channel_sums
    # Integers to the end: a float64 sum of squares would lose the last bits of a covariance.
    mean = [float(Fraction(value, count)) for value in sums]
    covariance = [
        [
            float(Fraction(count * moments.products[i][j] - sums[i] * sums[j], count * count))
            for j in range(3)
        ]
        for i in range(3)
    ]
    values, vectors = principal_axes(covariance)
    height, width = moments.sum_HWC.shape[:2]
    return ImageStats(
        split=split,
        images=moments.images,
        height=height,
        width=width,
        mean_image_HWC=moments.sum_HWC / np.float64(moments.images),
        mean=np.array(mean),
        sd=np.array([math.sqrt(covariance[i][i]) for i in range(3)]),
        covariance=np.array(covariance),
        eigenvalues=np.array(values),
        stdevs=np.array([math.sqrt(value) for value in values]),
        eigenvectors=np.array(vectors),
        shards=shards,
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
