# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportOperatorIssue=false
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""Overlapping max-pooling on CUDA for channels_last tensors, with the neuron, in one kernel a pass.

torch keeps where a maximum was found as int64, four times the bytes of a bfloat16 value. Here it is
four bits, or eight for windows of more than 15 pixels (see cuda_ops.empty_taps): the number of the
window's pixel, row by row, or ones where a ReLU passes no gradient. Which of equal values counts as
the maximum, and what NaN does, is as in torch: the first, and NaN wins.

Backward, every pixel of the input adds up the gradients of the windows whose maximum it is, at most
four of them, in float32. Nothing is written twice, so that the sum is the same in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.model.cuda_ops import empty_maps, empty_taps, tap_bits

PIXELS = 32  # of a program, with 32 or 64 channels
OPTIONS: dict[str, int] = {"PIXELS": PIXELS, "num_warps": 4}


def forward(
    x: Tensor, bias: Tensor | None, size: int, stride: int, side: tuple[int, int], relu: bool
) -> tuple[Tensor, Tensor]:
    """The maxima (N, C, *side) of windows of x (N, C, H, W), and which pixel of a window each is.

    Windows may reach beyond the lower and the right edge, where nothing is. A bias (C,) is added.
    """
    images, channels, height, width = x.shape
    y = empty_maps(x, (images, channels, *side))
    taps = empty_taps(y, size)
    pixels, block = images * side[0] * side[1], _channel_block(channels)
    with torch.cuda.device_of(x):
        _pool[(triton.cdiv(pixels, PIXELS), triton.cdiv(channels, block))](
            x, x if bias is None else bias, y, taps, pixels, channels, taps.shape[1], height, width,
            *side, SIZE=size, STRIDE=stride, BIAS=bias is not None, RELU=relu, CHANNELS=block,
            BITS=tap_bits(size), **OPTIONS,
        )  # fmt: skip
    return y, taps


def backward(
    g: Tensor, taps: Tensor, size: int, stride: int, side: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The gradients at x (N, C, *side) and at the bias (C,) for the gradient g at the maxima."""
    g = g.contiguous(memory_format=torch.channels_last)
    images, channels, *pooled = g.shape
    dx = empty_maps(g, (images, channels, *side))
    pixels, block = images * side[0] * side[1], _channel_block(channels)
    programs = triton.cdiv(pixels, PIXELS)
    sums = torch.empty(programs, channels, device=g.device)
    with torch.cuda.device_of(g):
        _pool_backward[(programs, triton.cdiv(channels, block))](
            g, taps, dx, sums, pixels, channels, taps.shape[1], *side, *pooled,
            SIZE=size, STRIDE=stride, CHANNELS=block, BITS=tap_bits(size), **OPTIONS,
        )  # fmt: skip
    return dx, sums.sum(0)


def _channel_block(channels: int) -> int:
    return 64 if channels % 64 == 0 else 32


@triton.jit
def _block(pixels, channels, height, width, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's pixels (P, 1): number, image, row, column, and which there are.

    Then its first channel, and how many there are from it.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    first = tl.program_id(1) * CHANNELS
    image = (pixel // (height * width)).to(tl.int64)
    row = pixel // width % height
    column = pixel % width
    return pixel.to(tl.int64), image, row, column, pixel < pixels, first, channels - first


@triton.jit
def maximum(best, best_tap, x, tap):
    """The greater of two, the first of equal ones; NaN, which equals nothing, wins."""
    better = (x > best) | (x != x)
    return tl.where(better, x, best), tl.where(better, tap, best_tap)


@triton.jit
def store_maxima(
    y_pointer, taps_pointer, pixel, valid, step, tap_step, channels, best, best_tap,
    RELU: tl.constexpr, BITS: tl.constexpr = 4,
) -> None:  # fmt: skip
    """The end of every kernel that pools: the maxima, or the ReLU of them, and their pixels.

    `pixel` (P, 1) are maxima, of which there are those that are `valid`. Pointers are at the first
    of the tile's channels, and of its words; `step` and `tap_step` are from one maximum to the
    next. Of the tile's channels there are `channels`.
    """
    PIXELS: tl.constexpr = best.shape[0]
    BLOCK: tl.constexpr = best.shape[1]
    SHARE: tl.constexpr = 32 // BITS
    if RELU:
        silent = best <= 0.0
        best = tl.where(silent, 0.0, best)
        best_tap = tl.where(silent, (1 << BITS) - 1, best_tap)
    channel = tl.arange(0, BLOCK)[None, :]
    present = valid & (channel < channels)
    tl.store(y_pointer + pixel * step + channel, best.to(y_pointer.dtype.element_ty), mask=present)
    shift = BITS * tl.arange(0, SHARE)[None, None, :]
    taps = tl.sum(tl.reshape(best_tap, (PIXELS, BLOCK // SHARE, SHARE)) << shift, axis=2)
    word = tl.arange(0, BLOCK // SHARE)[None, :]
    tl.store(taps_pointer + pixel * tap_step + word, taps, mask=valid & (word * SHARE < channels))


@triton.jit
def pool_gradient(
    g_pointer, taps_pointer, start, row, column, rows, columns, valid, step, tap_step, channels,
    BLOCK: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, BITS: tl.constexpr = 4,
):  # fmt: skip
    """The gradient (P, BLOCK) at pixels of what was pooled: of the windows that lie over each.

    Pixels (P, 1) have a row, a column, and are `valid` or not; `start` is the number of their
    image's first maximum. The others are as in `store_maxima`.
    """
    SHARE: tl.constexpr = 32 // BITS
    REACH: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE
    dz = tl.zeros((column.shape[0], BLOCK), tl.float32)
    channel = tl.arange(0, BLOCK)[None, :]
    # A word a thread: then it is of the channels whose eight values of 16 bits the thread loads.
    word = tl.multiple_of(tl.arange(0, BLOCK // SHARE)[None, :], (1, 1))
    digit = ((1 << BITS) - 1) << (BITS * tl.arange(0, SHARE)[None, None, :])
    # The window that starts nearest to the pixel; the others are above and to the left.
    y_row, y_column = row // STRIDE, column // STRIDE
    tap_row, tap_column = row % STRIDE, column % STRIDE
    pixel = start + y_row * columns + y_column
    for up in tl.static_range(REACH):
        for aside in tl.static_range(REACH):
            present = valid & (y_row >= up) & (y_row < rows + up)
            present = present & (y_column >= aside) & (y_column < columns + aside)
            present = (
                present & (tap_row < SIZE - STRIDE * up) & (tap_column < SIZE - STRIDE * aside)
            )
            maximum = pixel - (up * columns + aside)
            taps = tl.load(
                taps_pointer + maximum * tap_step + word,
                mask=present & (word * SHARE < channels), other=-1,
            )  # fmt: skip
            g = tl.load(
                g_pointer + maximum * step + channel, mask=present & (channel < channels), other=0.0
            ).to(tl.float32)
            # The pixel's number in this window, as often as a word has one: equal ones become 0.
            number = (tap_row + STRIDE * up) * SIZE + (tap_column + STRIDE * aside)
            difference = taps ^ (number * (0x11111111 if BITS == 4 else 0x01010101))
            chosen = tl.reshape((difference[:, :, None] & digit) == 0, (column.shape[0], BLOCK))
            dz += tl.where(chosen, g, 0.0)
    return dz


@triton.jit
def _pool(
    x_pointer, bias_pointer, y_pointer, taps_pointer,
    pixels, channels, tap_step, height, width, rows, columns,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
) -> None:  # fmt: skip
    pixel, image, row, column, valid, first, own = _block(
        pixels, channels, rows, columns, PIXELS, CHANNELS
    )
    channel = tl.arange(0, CHANNELS)[None, :]
    start = x_pointer + first + image * height * width * channels + channel
    best = tl.full((PIXELS, CHANNELS), float("-inf"), tl.float32)
    best_tap = tl.zeros((PIXELS, CHANNELS), tl.int32)
    for tap in tl.static_range(SIZE * SIZE):
        x_row = row * STRIDE + tap // SIZE
        x_column = column * STRIDE + tap % SIZE
        present = valid & (channel < own) & (x_row < height) & (x_column < width)
        x = tl.load(
            start + (x_row * width + x_column) * channels, mask=present, other=float("-inf")
        ).to(tl.float32)
        best, best_tap = maximum(best, best_tap, x, tap)
    if BIAS:  # the same for all of a window
        best += tl.load(bias_pointer + first + channel, mask=channel < own, other=0.0)
    store_maxima(y_pointer + first, taps_pointer + first // (32 // BITS), pixel, valid, channels,
                 tap_step, own, best, best_tap, RELU, BITS)  # fmt: skip


@triton.jit
def _pool_backward(
    g_pointer, taps_pointer, dx_pointer, sums_pointer,
    pixels, channels, tap_step, height, width, rows, columns,
    SIZE: tl.constexpr, STRIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr,
) -> None:  # fmt: skip
    pixel, image, row, column, valid, first, own = _block(
        pixels, channels, height, width, PIXELS, CHANNELS
    )
    dx = pool_gradient(
        g_pointer + first, taps_pointer + first // (32 // BITS), image * rows * columns, row,
        column, rows, columns, valid, channels, tap_step, own, CHANNELS, SIZE, STRIDE, BITS,
    )  # fmt: skip
    channel = tl.arange(0, CHANNELS)[None, :]
    offset = pixel * channels + first + channel
    tl.store(dx_pointer + offset, dx.to(dx_pointer.dtype.element_ty), mask=valid & (channel < own))
    # Every gradient at a maximum goes to one pixel, or to none: these are the bias's too.
    total = tl.sum(dx, axis=0)[None, :]
    own_sums = sums_pointer + tl.program_id(0) * channels + first + channel
    tl.store(own_sums, total, mask=channel < own)
