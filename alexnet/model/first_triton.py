# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
# ruff: noqa: ANN001, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""The first convolution of AlexNet with all that follows it, in one kernel a pass: for Hopper.

11 x 11 with stride 4 over three colors, bias, response norm, pooling of 3 x 3 with stride 2, ReLU.
Forward, images are read and maxima with the numbers of their pixels are written; backward, the
convolution is computed again, and what is written is the gradient of its weights. Its output, 581
KB an image in bfloat16, the largest of the network, and the gradient of it are never in memory.

A product of tensor cores is of 128 pixels of the output and the terms of the sum that each of them
is. A row of the convolution's window is 33 values, which lie one after the other in an image in
channels_last: the first 32 of 11 rows make 352 terms, loaded 4 at a time, and the last values of
all rows 11 more, in a chunk of 16. Two more in it are ones and have the bias as their weight, as
two numbers of bfloat16 that make up 16 bits of it: so the product adds the bias forward, and sums
up its gradient backward.

Inside, sums are float32. Sums over neighbouring channels are products with a band of ones, for
values in two parts of bfloat16. The pooling compares integers: 16 bits of a value, and below them
the number of its pixel, so that the first of equal values wins.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.model import first_layer
from alexnet.model.cuda_ops import empty_maps, empty_taps
from alexnet.model.norms_channels_last import make_band
from alexnet.model.pooling_triton import pool_gradient, store_maxima
from alexnet.model.spec import Lrn, pooled

COLORS: tl.constexpr = tl.constexpr(first_layer.COLORS)
KERNEL: tl.constexpr = tl.constexpr(first_layer.KERNEL)
STRIDE: tl.constexpr = tl.constexpr(first_layer.STRIDE)
ROW: tl.constexpr = tl.constexpr(32)  # values of a window's row in its first terms
LAST: tl.constexpr = tl.constexpr(352)  # the first term of those with the last value of a row
TERMS: tl.constexpr = tl.constexpr(first_layer.TERMS)
PIXELS: tl.constexpr = tl.constexpr(128)  # of a product: two rows
COLUMNS: tl.constexpr = tl.constexpr(64)  # of them a row
BLOCK: tl.constexpr = tl.constexpr(64)  # channels of a group, and zeros
ABSENT: tl.constexpr = tl.constexpr(-(2**24))  # less than the key of any value
# What is multiplied. Triton's interpreter would take the bits of bfloat16 for integers.
FACTOR: tl.constexpr = tl.constexpr(tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16)
CHUNK = 9  # rows of maxima of a program of the forward pass
OPTIONS = {"num_warps": 8, "num_stages": 1}
PROCESSORS = 132  # of an H100 or H200, each of which has a program of the backward pass


def forward(
    images: Tensor, weight: Tensor, bias: Tensor, sizes: Sequence[int], norm: Lrn, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima (N, F, rows, rows), their taps (see pooling_triton), and weights as terms.

    Args:
        images: bfloat16 (N, 3, S, S) in channels_last, S divisible by 4; zeros follow them at the
            right and the bottom.
        weight: of the convolution (F, 3, 11, 11), at most 64 channels a group.
        bias: of the convolution (F,).
        sizes: rows and columns of the convolution's output, 64 at most; and the groups of channels
            that the norm does not mix.
        norm: over 5 channels with beta .75.
        relu: whether a ReLU stands next to the pooling.
    """
    side, groups = sizes
    rows = pooled(side, 3, 2)
    y = empty_maps(images, (len(images), len(weight), rows, rows))
    taps = empty_taps(y, 3, groups)
    packed = torch.empty(TERMS.value, len(weight), dtype=torch.bfloat16, device=images.device)
    with torch.cuda.device_of(images):
        _pack[(TERMS.value // 16,)](
            weight, bias.contiguous(), packed, *weight.stride(), OUT=len(weight),
            BLOCK=triton.next_power_of_2(len(weight)),
        )  # fmt: skip
        _forward[(len(images), groups, triton.cdiv(rows, CHUNK))](
            images, packed, y, taps,
            RELU=relu, CHUNK=CHUNK, **_options(images, taps, sizes, packed, norm),
        )  # fmt: skip
    return y, taps, packed


def backward(
    g: Tensor, saved: Sequence[Tensor], sizes: Sequence[int], norm: Lrn
) -> tuple[Tensor, Tensor]:
    """The gradients at weight and bias, in their types, for the gradient g at the maxima.

    Saved are images, weight, bias, and what `forward` gave besides maxima.
    """
    images, weight, bias, taps, packed = saved
    side, groups = sizes
    g = g.contiguous(memory_format=torch.channels_last)
    tiles = len(images) * triton.cdiv(side, 2)
    programs = max(1, min(_processors(images) // groups, tiles))
    sums = torch.empty(programs, len(weight), TERMS.value, device=images.device)
    weight_gradient = torch.empty_like(weight)
    bias_gradient = torch.empty_like(bias, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(images):
        _backward[(programs, groups)](
            images, packed, g, taps, sums, tiles, **_options(images, taps, sizes, packed, norm)
        )
        _unpack[(len(weight), triton.cdiv(TERMS.value, 128))](
            sums, weight_gradient, bias_gradient, programs, *weight_gradient.stride(),
            OUT=len(weight),
        )  # fmt: skip
    return weight_gradient, bias_gradient


def _processors(x: Tensor) -> int:
    if not x.is_cuda:
        return PROCESSORS
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def _options(
    images: Tensor, taps: Tensor, sizes: Sequence[int], packed: Tensor, norm: Lrn
) -> dict[str, object]:
    side, groups = sizes
    return {
        "SIDE": images.shape[-1],
        "OUT_SIDE": side,
        "ROWS": taps.shape[2],
        "CHANNELS": packed.shape[1] // groups,
        "WORDS": taps.shape[1] // groups,
        "GROUPS": groups,
        "SHARE": norm.alpha / norm.size,
        "K": norm.k,
        **OPTIONS,
    }


@triton.jit
def _place(term, step_color, step_row, step_column):
    """Where the weight of a term is in those of a channel; its row is below KERNEL if it is one."""
    row = tl.where(term < LAST, term // ROW, term - LAST)
    value = tl.where(term < LAST, term % ROW, ROW)
    offset = value % COLORS * step_color + row * step_row + value // COLORS * step_column
    return row, offset


@triton.jit
def _pack(
    weight_pointer, bias_pointer, packed_pointer, step_out, step_color, step_row, step_column,
    OUT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Sixteen terms of every channel."""
    term, channel = tl.program_id(0) * 16 + tl.arange(0, 16)[:, None], tl.arange(0, BLOCK)[None, :]
    row, offset = _place(term, step_color, step_row, step_column)
    present = channel < OUT
    x = tl.load(
        weight_pointer + offset + channel * step_out, mask=present & (row < KERNEL), other=0.0
    ).to(tl.float32)
    bias = tl.load(bias_pointer + channel, mask=present, other=0.0).to(tl.float32)
    high = bias.to(tl.bfloat16).to(tl.float32)
    x = tl.where(row == KERNEL, high, x)
    x = tl.where(row == KERNEL + 1, bias - high, x)
    tl.store(packed_pointer + term * OUT + channel, x.to(tl.bfloat16), mask=present)


@triton.jit
def _unpack(
    sums_pointer, weight_pointer, bias_pointer, programs, step_out, step_color, step_row,
    step_column, OUT: tl.constexpr,
) -> None:  # fmt: skip
    """The gradients of a channel: of some terms, the sums of all programs."""
    channel = tl.program_id(0)
    term = tl.program_id(1) * 128 + tl.arange(0, 128)
    program = tl.arange(0, 32)[:, None]
    total = tl.zeros((128,), tl.float32)
    for first in range(0, programs, 32):
        offset = ((first + program) * OUT + channel) * TERMS + term[None, :]
        present = (first + program < programs) & (term[None, :] < TERMS)
        total += tl.sum(tl.load(sums_pointer + offset, mask=present, other=0.0), axis=0)
    row, offset = _place(term, step_color, step_row, step_column)
    weight_pointer += channel * step_out + offset
    tl.store(weight_pointer, total.to(weight_pointer.dtype.element_ty), mask=row < KERNEL)
    bias_pointer += channel + term * 0
    tl.store(bias_pointer, total.to(bias_pointer.dtype.element_ty), mask=row == KERNEL)


@triton.jit
def _weights_at(
    pointer,
    channel,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
):
    term = FIRST + tl.arange(0, COUNT)[:, None]
    x = tl.load(pointer + term * OUT + channel, mask=channel < CHANNELS, other=0.0)
    return x.to(FACTOR)


@triton.jit
def _weights(pointer, channel, CHANNELS: tl.constexpr, OUT: tl.constexpr):
    """Weights (terms, BLOCK) in the chunks for which the compiler keeps all in registers."""
    return (
        _weights_at(pointer, channel, 0, 128, CHANNELS, OUT),
        _weights_at(pointer, channel, 128, 128, CHANNELS, OUT),
        _weights_at(pointer, channel, 256, 64, CHANNELS, OUT),
        _weights_at(pointer, channel, 320, 32, CHANNELS, OUT),
        _weights_at(pointer, channel, 352, 16, CHANNELS, OUT),
    )


@triton.jit
def _patches_at(
    pointer, row, column, inside, FIRST: tl.constexpr, COUNT: tl.constexpr, SIDE: tl.constexpr
):
    term = FIRST + tl.arange(0, COUNT)[None, :]
    if FIRST < LAST:
        term_row, term_value = term // ROW, term % ROW
    else:
        term_row, term_value = term - LAST, ROW
    row, value = row * STRIDE, column * (STRIDE * COLORS)
    rows = tl.where(inside, SIDE - row, 0)  # of the image, from this one on
    if FIRST == LAST:
        rows = tl.minimum(rows, KERNEL)
    present = (term_row < rows) & (SIDE * COLORS - value > term_value)
    pointer += row * (SIDE * COLORS) + value
    x = tl.load(pointer + (term_row * (SIDE * COLORS) + term_value), mask=present, other=0.0)
    x = x.to(FACTOR)
    if FIRST == LAST:
        x = tl.where(term_row >= KERNEL, inside.to(FACTOR), x)
    return x


@triton.jit
def _patches(pointer, row, column, inside, SIDE: tl.constexpr):
    """Values of the terms at pixels (PIXELS, 1) of the output; zeros where they are not inside."""
    return (
        _patches_at(pointer, row, column, inside, 0, 128, SIDE),
        _patches_at(pointer, row, column, inside, 128, 128, SIDE),
        _patches_at(pointer, row, column, inside, 256, 64, SIDE),
        _patches_at(pointer, row, column, inside, 320, 32, SIDE),
        _patches_at(pointer, row, column, inside, 352, 16, SIDE),
    )


@triton.jit
def _convolved(patches, weights):
    """The convolution with its bias (PIXELS, BLOCK)."""
    x = tl.dot(patches[0], weights[0])
    x = tl.dot(patches[1], weights[1], x)
    x = tl.dot(patches[2], weights[2], x)
    x = tl.dot(patches[3], weights[3], x)
    x = tl.dot(patches[4], weights[4], x)
    return x


@triton.jit
def _window_sums(x, band):
    """Sums over five neighbouring channels, of 16 bits of each x."""
    high = x.to(tl.bfloat16)
    low = (x - high.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(low.to(FACTOR), band, tl.dot(high.to(FACTOR), band))


@triton.jit
def _key(y, present):
    """An integer for y in bfloat16: in the same order, NaN the largest; its lowest 8 bits are 0."""
    bits = y.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32)
    bits = tl.where(y == 0.0, 0, bits)  # -0 is no less than 0
    bits = tl.where(y != y, 0x7FC0, bits)
    return tl.where(present, (bits ^ ((bits >> 15) & 0x7FFF)) * 256, ABSENT)


@triton.jit
def _value(key):
    """What a key was made of, in float32."""
    bits = key >> 8
    return ((bits ^ ((bits >> 15) & 0x7FFF)) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _forward(
    images_pointer, weights_pointer, y_pointer, taps_pointer,
    SIDE: tl.constexpr, OUT_SIDE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, K: tl.constexpr,
    RELU: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Some rows of maxima of a group of an image."""
    OUT: tl.constexpr = CHANNELS * GROUPS
    image, first_channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS
    first = tl.program_id(2) * CHUNK
    channel = tl.arange(0, BLOCK)[None, :]
    weights = _weights(weights_pointer + first_channel, channel, CHANNELS, OUT)
    images_pointer += image * (SIDE * SIDE * COLORS)
    band = make_band(BLOCK, 2).to(FACTOR)
    # A thread has those values of a product that are 8 of its rows apart: they lie below each other
    # in the image, and are compared at once.
    pixel = tl.arange(0, PIXELS)[:, None]
    below, column = pixel // 8 % 2, pixel // 16 * 8 + pixel % 8
    y_column = tl.arange(0, COLUMNS // 2)[:, None]
    window = 2 * y_column + tl.zeros((1, BLOCK), tl.int32)
    y_pointer += image * ROWS * ROWS * OUT + first_channel
    taps_pointer += (image * ROWS * ROWS * GROUPS + tl.program_id(1)) * WORDS
    above = tl.full((COLUMNS, BLOCK), ABSENT, tl.int32)
    # The first two rows are those above the first window.
    for y_row in tl.range(first - 1, tl.minimum(first + CHUNK, ROWS), disable_licm=True):
        row = 2 * y_row + 1 + below
        inside = (row >= 0) & (row < OUT_SIDE) & (column < OUT_SIDE)
        x = _convolved(_patches(images_pointer, row, column, inside, SIDE), weights)
        root = tl.rsqrt(K + SHARE * _window_sums(x * x, band))
        key = _key(x * (root * tl.sqrt(root)), inside)
        key = tl.permute(tl.reshape(key, (COLUMNS // 8, 2, 8, BLOCK)), (0, 2, 3, 1))
        upper, lower = tl.split(key)
        upper = tl.reshape(upper, (COLUMNS, BLOCK))
        lower = tl.reshape(lower, (COLUMNS, BLOCK))
        # The lowest bits of the largest key are 8 less the number of its pixel.
        best = tl.maximum(tl.maximum(above + 6, upper + 3), lower)
        above = lower
        y = tl.gather(best, window, 0) + 2
        y = tl.maximum(y, tl.gather(best, window + 1, 0) + 1)
        y = tl.maximum(y, tl.gather(best, tl.minimum(window + 2, COLUMNS - 1), 0))
        store_maxima(
            y_pointer, taps_pointer, y_row * ROWS + y_column, (y_column < ROWS) & (y_row >= first),
            OUT, WORDS * GROUPS, CHANNELS, _value(y), 8 - (y & 255), RELU,
        )  # fmt: skip


# The last batch of an epoch has other tiles: no reason to compile it again.
@triton.jit(do_not_specialize=["tiles"])
def _backward(
    images_pointer, weights_pointer, g_pointer, taps_pointer, sums_pointer, tiles,
    SIDE: tl.constexpr, OUT_SIDE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    WORDS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, K: tl.constexpr,
) -> None:  # fmt: skip
    """The gradients at the terms of a group, summed over some tiles of two rows of an image."""
    OUT: tl.constexpr = CHANNELS * GROUPS
    first_channel = tl.program_id(1) * CHANNELS
    channel = tl.arange(0, BLOCK)[None, :]
    weights = _weights(weights_pointer + first_channel, channel, CHANNELS, OUT)
    band = make_band(BLOCK, 2).to(FACTOR)
    dw0 = tl.zeros((BLOCK, 128), tl.float32)
    dw1 = tl.zeros((BLOCK, 128), tl.float32)
    dw2 = tl.zeros((BLOCK, 64), tl.float32)
    dw3 = tl.zeros((BLOCK, 32), tl.float32)
    dw4 = tl.zeros((BLOCK, 16), tl.float32)
    tiles_of_image = tl.cdiv(OUT_SIDE, 2)
    # What does not change is computed again: it would keep registers.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        image = (tile // tiles_of_image).to(tl.int64)
        pixel = tl.arange(0, PIXELS)[:, None]
        row = tile % tiles_of_image * 2 + pixel // COLUMNS
        column = pixel % COLUMNS
        inside = (row < OUT_SIDE) & (column < OUT_SIDE)
        patches = _patches(
            images_pointer + image * (SIDE * SIDE * COLORS), row, column, inside, SIDE
        )
        first = image * ROWS * ROWS
        g = g_pointer + first * OUT + first_channel
        taps = taps_pointer + (first * GROUPS + tl.program_id(1)) * WORDS
        dy = pool_gradient(
            g, taps, 0, row, column, ROWS, ROWS, inside, OUT, WORDS * GROUPS, CHANNELS, BLOCK, 3, 2
        )
        x = _convolved(patches, weights)
        root = tl.rsqrt(K + SHARE * _window_sums(x * x, band))
        dx = dy * (root * tl.sqrt(root))
        # The window is symmetric: the sum over it is its own transpose.
        shares = _window_sums(dx * x * (root * root), band)
        dx -= (2.0 * SHARE * 0.75) * x * shares
        dx = tl.trans(dx.to(tl.bfloat16).to(FACTOR))
        dw0 = tl.dot(dx, patches[0], dw0)
        dw1 = tl.dot(dx, patches[1], dw1)
        dw2 = tl.dot(dx, patches[2], dw2)
        dw3 = tl.dot(dx, patches[3], dw3)
        dw4 = tl.dot(dx, patches[4], dw4)
    channel = tl.arange(0, BLOCK)[:, None]
    sums_pointer += (tl.program_id(0).to(tl.int64) * OUT + first_channel + channel) * TERMS
    tl.store(sums_pointer + 0 + tl.arange(0, 128)[None, :], dw0, mask=channel < CHANNELS)
    tl.store(sums_pointer + 128 + tl.arange(0, 128)[None, :], dw1, mask=channel < CHANNELS)
    tl.store(sums_pointer + 256 + tl.arange(0, 64)[None, :], dw2, mask=channel < CHANNELS)
    tl.store(sums_pointer + 320 + tl.arange(0, 32)[None, :], dw3, mask=channel < CHANNELS)
    tl.store(sums_pointer + 352 + tl.arange(0, 16)[None, :], dw4, mask=channel < CHANNELS)
