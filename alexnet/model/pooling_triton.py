# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""Overlapping max-pooling on CUDA for channels_last tensors, with the neuron, in one kernel a pass.

torch keeps where a maximum was found as int64, four times the bytes of a bfloat16 value. Here it is
one byte: the number of the window's pixel, row by row, or NONE where a ReLU passes no gradient.
Which of equal values counts as the maximum, and what NaN does, is as in torch: the first, and NaN
wins.

Backward, every pixel of the input adds up the gradients of the windows whose maximum it is, at most
four of them, in float32. Nothing is written twice, so that the sum is the same in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.model.cuda_ops import NO_TAP, empty_maps

PIXELS = 32  # of a program, with 32 or 64 channels
NONE: tl.constexpr = tl.constexpr(NO_TAP)
OPTIONS: dict[str, int] = {"PIXELS": PIXELS, "num_warps": 4}


def forward(
    x: Tensor, bias: Tensor | None, size: int, stride: int, side: tuple[int, int], relu: bool
) -> tuple[Tensor, Tensor]:
    """The maxima (N, C, *side) of windows of x (N, C, H, W), and which pixel of a window each is.

    Windows may reach beyond the lower and the right edge, where nothing is. A bias (C,) is added.
    """
    images, channels, height, width = x.shape
    y = empty_maps(x, (images, channels, *side))
    taps = torch.empty_like(y, dtype=torch.uint8)
    pixels, block = images * side[0] * side[1], _channel_block(channels)
    with torch.cuda.device_of(x):
        _pool[(triton.cdiv(pixels, PIXELS), triton.cdiv(channels, block))](
            x, x if bias is None else bias, y, taps, pixels, channels, height, width, *side,
            SIZE=size, STRIDE=stride, BIAS=bias is not None, RELU=relu, CHANNELS=block, **OPTIONS,
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
    with torch.cuda.device_of(g):
        _pool_backward[(triton.cdiv(pixels, PIXELS), triton.cdiv(channels, block))](
            g, taps, dx, pixels, channels, *side, *pooled,
            SIZE=size, STRIDE=stride, CHANNELS=block, **OPTIONS,
        )  # fmt: skip
    # Every gradient goes to one pixel, or to none.
    total = g.masked_fill(taps == NO_TAP, 0.0).sum((0, 2, 3), dtype=torch.float32)
    return dx, total


def _channel_block(channels: int) -> int:
    return 64 if channels % 64 == 0 else 32


@triton.jit
def _block(pixels, channels, height, width, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's pixels: image, row, column (P, 1); offsets, and which values there are."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    image = (pixel // (height * width)).to(tl.int64)
    row = pixel // width % height
    column = pixel % width
    valid = (pixel < pixels) & (channel < channels)
    return image, row, column, channel, pixel.to(tl.int64) * channels + channel, valid


@triton.jit
def maximum(best, best_tap, x, tap):
    """The greater of two, the first of equal ones; NaN, which equals nothing, wins."""
    better = (x > best) | (x != x)
    return tl.where(better, x, best), tl.where(better, tap, best_tap)


@triton.jit
def store_maxima(
    y_pointer, taps_pointer, offset, valid, best, best_tap, RELU: tl.constexpr
) -> None:
    """The end of every kernel that pools: the maxima, or the ReLU of them, and their pixels."""
    if RELU:
        silent = best <= 0.0
        best = tl.where(silent, 0.0, best)
        best_tap = tl.where(silent, NONE, best_tap)
    tl.store(y_pointer + offset, best.to(y_pointer.dtype.element_ty), mask=valid)
    tl.store(taps_pointer + offset, best_tap.to(tl.uint8), mask=valid)


@triton.jit
def pool_gradient(
    g_pointer, taps_pointer, start, row, column, rows, columns, valid, step,
    SIZE: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """The gradient at pixels of what was pooled: of the windows that lie over each.

    `step` is from one pixel of the maxima to the next, `start` is at their first.
    """
    dz = tl.zeros_like(valid.to(tl.float32))
    REACH: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE
    for window in tl.static_range(REACH * REACH):
        # From the window that starts nearest to the pixel upwards and to the left.
        y_row, y_column = row // STRIDE - window // REACH, column // STRIDE - window % REACH
        tap_row = row % STRIDE + STRIDE * (window // REACH)
        tap_column = column % STRIDE + STRIDE * (window % REACH)
        present = valid & (y_row >= 0) & (y_row < rows) & (y_column >= 0) & (y_column < columns)
        present = present & (tap_row < SIZE) & (tap_column < SIZE)
        offset = start + (y_row * columns + y_column) * step
        tap = tl.load(taps_pointer + offset, mask=present, other=NONE).to(tl.int32)
        g = tl.load(g_pointer + offset, mask=present, other=0.0).to(tl.float32)
        dz += tl.where(tap == tap_row * SIZE + tap_column, g, 0.0)
    return dz


@triton.jit
def _pool(
    x_pointer, bias_pointer, y_pointer, taps_pointer,
    pixels, channels, height, width, rows, columns,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    image, row, column, channel, offset, valid = _block(
        pixels, channels, rows, columns, PIXELS, CHANNELS
    )
    start = x_pointer + image * height * width * channels + channel
    best = tl.full((PIXELS, CHANNELS), float("-inf"), tl.float32)
    best_tap = tl.zeros((PIXELS, CHANNELS), tl.int32)
    for tap in tl.static_range(SIZE * SIZE):
        x_row = row * STRIDE + tap // SIZE
        x_column = column * STRIDE + tap % SIZE
        present = valid & (x_row < height) & (x_column < width)
        x = tl.load(
            start + (x_row * width + x_column) * channels, mask=present, other=float("-inf")
        ).to(tl.float32)
        best, best_tap = maximum(best, best_tap, x, tap)
    if BIAS:  # the same for all of a window
        best += tl.load(bias_pointer + channel, mask=channel < channels, other=0.0)
    store_maxima(y_pointer, taps_pointer, offset, valid, best, best_tap, RELU)


@triton.jit
def _pool_backward(
    g_pointer, taps_pointer, dx_pointer, pixels, channels, height, width, rows, columns,
    SIZE: tl.constexpr, STRIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    image, row, column, channel, offset, valid = _block(
        pixels, channels, height, width, PIXELS, CHANNELS
    )
    start = image * rows * columns * channels + channel
    dx = pool_gradient(g_pointer, taps_pointer, start, row, column, rows, columns, valid, channels,
                       SIZE, STRIDE)  # fmt: skip
    tl.store(dx_pointer + offset, dx.to(dx_pointer.dtype.element_ty), mask=valid)
