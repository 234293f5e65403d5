"""Random bits as a pure function of (key, counter): Philox4x32-10, over whole arrays at once.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). NumPy has the
4x64 variant for one counter at a time; a batch needs the words of 128 counters without a loop.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(key: int, counters: tuple[Words, Words, Words, Words]) -> tuple[Words, ...]:
    """Four arrays of 32 random bits (in uint64) for arrays of 32-bit counter words.

    Args:
        key: 0..2**64-1.
        counters: four arrays that broadcast together, least significant word first.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> HALF) ^ c1 ^ np.uint64(k0),
            p1 & LOW,
            (p0 >> HALF) ^ c3 ^ np.uint64(k1),
            p0 & LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def below(bound: int | NDArray[np.int64], words: Words) -> NDArray[np.int64]:
    """Integers 0..bound-1 from 32-bit words; for bounds of an image the bias is under 1e-6."""
    return (words * np.asarray(bound).astype(np.uint64) >> HALF).astype(np.int64)


def uniforms(words: Words) -> NDArray[np.float64]:
    """Numbers between 0 and 1, neither of them, from 32-bit words."""
    return (words.astype(np.float64) + 0.5) / 2**32


def normals(words: tuple[Words, ...]) -> NDArray[np.float64]:
    """(N, 4) independent standard normals from four (N,) arrays of words (Box and Muller 1958)."""
    uniform = [uniforms(word) for word in words]
    columns: list[NDArray[np.float64]] = []
    for first, second in (uniform[:2], uniform[2:]):
        radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
        columns += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(columns, axis=1)
