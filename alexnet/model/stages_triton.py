# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportAssignmentType=false
# ruff: noqa: ANN001, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""All that follows a convolution on CUDA, in one kernel a pass: for bfloat16 in channels_last.

Bias, ReLU, response norm, spatial norm and pooling of 3 x 3 with stride 2 read the output of the
convolution once and write the maxima, with four bits each for the pixel of its window that it is
(see pooling_triton). Backward the norms are computed again from the output of the convolution, and
its gradient is written with the sums that make the gradient of the bias.

Sums over neighbouring channels, sums over neighbouring columns and the choice of every second
column are products with matrices of zeros and ones, which tensor cores do. A program of the forward
pass takes one group of one image and walks down its rows; what a window of rows needs stays in
registers. The spatial norm's backward pass needs 9 rows of two tensors for one of its gradient,
more than the registers hold: the forward pass therefore keeps the roots of its denominators in 16
bits, 373 KB of an image of 2,085 that the stages of conv2 move in both passes. Without them the
rows above would be computed again, some 70 instructions a value.

Inside, everything is float32. A value that is not finite spreads to the pixels near it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.model.cuda_ops import empty_bits, empty_maps, empty_taps, root_type
from alexnet.model.norms_channels_last import make_band
from alexnet.model.pooling_triton import maximum, pool_gradient, store_maxima
from alexnet.model.spec import Lrn, pooled

CHUNK = 9  # rows of maxima a program where no rows but the last are kept
RELU_OPTIONS: dict[str, int] = {"ROWS": 64, "BLOCK": 64, "num_warps": 4}
# Of a program of the backward passes that keep no rows; pixels are the response norm's.
PIXELS, TILES = 64, 4


def norm_pool_forward(
    x: Tensor, bias: Tensor, groups: int, norms: tuple[Lrn, ...], relu: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima, their taps, and roots of the spatial norm (empty without it) of x (N, C, H, W).

    Args:
        x: output of a convolution without its bias.
        bias: float32 (C,).
        groups: of channels that the response norm does not mix.
        norms: the response norm, and the spatial norm where it follows.
        relu: whether a ReLU stands before the norms, and behind the pooling.
    """
    images, channels, height, width = x.shape
    rows, columns = pooled(height, 3, 2), pooled(width, 3, 2)
    y = empty_maps(x, (images, channels, rows, columns))
    taps = empty_taps(y, 3, groups)
    spatial = len(norms) == 2
    roots = torch.empty_like(x, dtype=root_type(x)) if spatial else x.new_empty(0)
    options = _options(x, groups, norms)
    options |= {"POOLED": max(16, options["COLUMNS"] // 2), "RELU": relu[0], "RELU_AFTER": relu[1]}
    sides = (height, width, rows, columns)
    with torch.cuda.device_of(x):
        if spatial:
            _norms_pool[(images, groups)](x, bias, y, taps, roots, *sides, **options)
        else:
            grid = (images, groups, triton.cdiv(rows, CHUNK))
            options |= {"CHUNK": CHUNK, "num_warps": 16 if options["BLOCK"] == 128 else 8}
            _norm_pool[grid](x, bias, y, taps, *sides, **options)
    return y, taps, roots


def norm_pool_backward(
    x: Tensor, bias: Tensor, g: Tensor, taps: Tensor, roots: Tensor, groups: int,
    norms: tuple[Lrn, ...], relu: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients at x and at the bias for the gradient g at the maxima."""
    g = g.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    sides = (height, width, *g.shape[2:])
    dx = torch.empty_like(x)
    spatial = len(norms) == 2
    options = _options(x, groups, norms)
    tile = _backward_tile(x, options["BLOCK"])
    options |= {"RELU": relu, "num_warps": 8 if spatial or options["BLOCK"] == 128 else 4}
    pixels = images * height * width
    programs = images if spatial else triton.cdiv(pixels, tile * TILES)
    sums = torch.empty(programs, channels, device=x.device)
    with torch.cuda.device_of(x):
        if spatial:
            _norms_pool_backward[(programs, groups)](
                x, bias, g, taps, roots, dx, sums, *sides, **options
            )
        else:
            del options["COLUMNS"]
            options |= {"PIXELS": tile, "TILES": TILES}
            _norm_pool_backward[(programs, groups)](
                x, bias, g, taps, dx, sums, pixels, *sides, **options
            )
    return dx, sums.sum(0)


def _backward_tile(x: Tensor, block: int) -> int:
    """Pixels of a tile for which the compiler keeps all in registers."""
    # Hopper's tensor cores read the band from shared memory, others from registers.
    hopper = not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] == 9
    return PIXELS if hopper and block < 128 else PIXELS // 2


def _options(x: Tensor, groups: int, norms: tuple[Lrn, ...]) -> dict[str, Any]:
    channels, response = x.shape[1] // groups, norms[0]
    options: dict[str, Any] = {
        "CHANNELS": channels,
        "GROUPS": groups,
        "WORDS": triton.cdiv(channels, 8),  # of numbers of pixels, of a group
        "SHARE": response.alpha / response.size,
        "K": response.k,
        "BLOCK": max(16, triton.next_power_of_2(channels)),
        "COLUMNS": max(32, triton.next_power_of_2(x.shape[3])),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": 8,
        "num_stages": 1,  # rows loaded ahead would take shared memory from other programs
    }
    for norm in norms[1:]:
        options |= {"SPATIAL_SHARE": norm.alpha / norm.size**2, "SPATIAL_K": norm.k}
    return options


def bias_relu(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The ReLU of x (N, C, H, W) plus its bias, and bits (N * H * W, C / 8): where it is not 0."""
    y, bits = torch.empty_like(x), empty_bits(x)
    pixels, channels = len(bits), x.shape[1]
    grid = (triton.cdiv(pixels, RELU_OPTIONS["ROWS"]), triton.cdiv(channels, RELU_OPTIONS["BLOCK"]))
    with torch.cuda.device_of(x):
        _bias_relu[grid](x, bias, y, bits, pixels, channels, bits.shape[1], **RELU_OPTIONS)
    return y, bits


def bias_relu_backward(g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients at x and at the bias for the gradient g at the ReLU with these bits."""
    g = g.contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(g)
    pixels, channels = len(bits), g.shape[1]
    rows, block = RELU_OPTIONS["ROWS"] * TILES, RELU_OPTIONS["BLOCK"]
    grid = (triton.cdiv(pixels, rows), triton.cdiv(channels, block))
    sums = torch.empty(grid[0], channels, device=g.device)
    with torch.cuda.device_of(g):
        _bias_relu_backward[grid](
            g, bits, dx, sums, pixels, channels, bits.shape[1], TILES=TILES, **RELU_OPTIONS
        )
    return dx, sums.sum(0)


@triton.jit
def _relu_block(tile, pixels, channels, octets, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A tile's channels (1, B); offsets of values (R, B) and bits (R, B / 8); which exist."""
    row = tile * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    octet = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[None, :]
    valid, present = (row < pixels) & (channel < channels), (row < pixels) & (octet < octets)
    row = row.to(tl.int64)
    return channel, row * channels + channel, valid, row * octets + octet, present


@triton.jit
def _bias_relu(
    x_pointer, bias_pointer, y_pointer, bits_pointer, pixels, channels, octets,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    channel, offset, valid, bits_offset, present = _relu_block(
        tl.program_id(0), pixels, channels, octets, ROWS, BLOCK
    )
    x = tl.load(x_pointer + offset, mask=valid, other=0.0).to(tl.float32)
    x += tl.load(bias_pointer + channel, mask=channel < channels, other=0.0)
    y = tl.where(x <= 0.0, 0.0, x).to(y_pointer.dtype.element_ty)
    tl.store(y_pointer + offset, y, mask=valid)
    # Of what is stored: a small x may round to zero.
    bits = tl.where(y == 0.0, 0, 1 << (channel % 8))
    bits = tl.sum(tl.reshape(bits, (ROWS, BLOCK // 8, 8)), axis=2)
    tl.store(bits_pointer + bits_offset, bits.to(tl.uint8), mask=present)


@triton.jit
def _bias_relu_backward(
    g_pointer, bits_pointer, dx_pointer, sums_pointer, pixels, channels, octets,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
) -> None:  # fmt: skip
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(TILES):
        channel, offset, valid, bits_offset, present = _relu_block(
            tl.program_id(0) * TILES + tile, pixels, channels, octets, ROWS, BLOCK
        )
        bits = tl.load(bits_pointer + bits_offset, mask=present, other=0).to(tl.int32)
        bits = tl.broadcast_to(bits[:, :, None], (ROWS, BLOCK // 8, 8))
        bits = tl.reshape(bits, (ROWS, BLOCK)) >> (channel % 8)
        g = tl.load(g_pointer + offset, mask=valid, other=0.0)
        g = tl.where((bits & 1) == 0, 0.0, g)
        tl.store(dx_pointer + offset, g, mask=valid)
        total += g.to(tl.float32)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = sums_pointer + tl.program_id(0) * channels + channel
    tl.store(own, tl.sum(total, axis=0), mask=channel < channels)


@triton.jit
def _root(total, SHARE: tl.constexpr, K: tl.constexpr):
    """The power -1/2 of the denominator for a sum of squares."""
    return tl.rsqrt(K + SHARE * total)


@triton.jit
def _load_biased(pointer, offset, bias, valid, RELU: tl.constexpr):
    """Values of the convolution with bias and ReLU; zeros where there are none."""
    x = tl.load(pointer + offset, mask=valid, other=0.0).to(tl.float32)
    x = tl.where(valid, x + bias, 0.0)
    if RELU:
        x = tl.where(x <= 0.0, 0.0, x)  # NaN stays
    return x


@triton.jit
def _response_gradient(
    x, dy, root, band, SHARE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr
):
    """The gradient before bias and ReLU for the gradient dy at the response norm's output."""
    if RELU:
        dy = tl.where(x <= 0.0, 0.0, dy)
    direct = dy * (root * tl.sqrt(root))
    # The window is symmetric: the sum over it is its own transpose.
    shares = tl.dot(direct * x * (root * root), band, input_precision=PRECISION)
    return direct - x * ((2.0 * SHARE * 0.75) * shares)


@triton.jit
def _row_maxima(y, row, height, width, POOLED: tl.constexpr):
    """Of a row y (columns, BLOCK) the maxima of three columns, every second one, and which."""
    column = tl.arange(0, POOLED)[:, None] * 2 + tl.zeros((1, y.shape[1]), tl.int32)
    best = tl.full((POOLED, y.shape[1]), float("-inf"), tl.float32)
    best_tap = tl.zeros((POOLED, y.shape[1]), tl.int32)
    for tap in tl.static_range(3):
        x = tl.gather(y, tl.minimum(column + tap, y.shape[0] - 1), 0)
        x = tl.where((row < height) & (column + tap < width), x, float("-inf"))
        best, best_tap = maximum(best, best_tap, x, tap)
    return best, best_tap


@triton.jit
def _normed_row(
    x_pointer, bias, row, column, channel, band, height, width,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, K: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A row of the response norm's output; zeros beyond the image."""
    valid = (row >= 0) & (row < height) & (column < width) & (channel < CHANNELS)
    offset = (row * width + column) * (CHANNELS * GROUPS) + channel
    x = _load_biased(x_pointer, offset, bias, valid, RELU)
    root = _root(tl.dot(x * x, band, input_precision=PRECISION), SHARE, K)
    return x * (root * tl.sqrt(root))


@triton.jit
def _norm_pool(
    x_pointer, bias_pointer, y_pointer, taps_pointer, height, width, rows, columns,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    K: tl.constexpr, RELU: tl.constexpr, RELU_AFTER: tl.constexpr, PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr, POOLED: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Response norm and pooling: some rows of maxima of a group of an image."""
    image, first_channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS
    first = tl.program_id(2) * CHUNK
    column, channel = tl.arange(0, COLUMNS)[:, None], tl.arange(0, BLOCK)[None, :]
    bias = tl.load(bias_pointer + first_channel + channel, mask=channel < CHANNELS, other=0.0)
    x_pointer += image * height * width * (CHANNELS * GROUPS) + first_channel
    y_pointer += image * rows * columns * (CHANNELS * GROUPS) + first_channel
    taps_pointer += (image * rows * columns * GROUPS + tl.program_id(1)) * WORDS
    y_column = tl.arange(0, POOLED)[:, None]
    band = make_band(BLOCK, 2)
    best = tl.full((POOLED, BLOCK), float("-inf"), tl.float32)
    best_tap = tl.zeros((POOLED, BLOCK), tl.int32)
    for row in tl.range(2 * first, 2 * tl.minimum(first + CHUNK, rows) + 1, disable_licm=True):
        y = _normed_row(x_pointer, bias, row, column, channel, band, height, width, CHANNELS,
                        GROUPS, SHARE, K, RELU, PRECISION)  # fmt: skip
        y = y.to(y_pointer.dtype.element_ty).to(tl.float32)
        value, tap = _row_maxima(y, row, height, width, POOLED)
        # Even rows are the last of a window and the first of the next.
        best, best_tap = maximum(best, best_tap, value, 6 - 3 * (row & 1) + tap)
        y_row = row // 2 - 1
        if (row % 2 == 0) & (y_row >= first):
            store_maxima(
                y_pointer, taps_pointer, y_row * columns + y_column, y_column < columns,
                CHANNELS * GROUPS, WORDS * GROUPS, CHANNELS, best, best_tap, RELU_AFTER,
            )  # fmt: skip
        best = tl.where(row % 2 == 0, value, best)
        best_tap = tl.where(row % 2 == 0, tap, best_tap)


@triton.jit
def _norm_pool_backward(
    x_pointer, bias_pointer, g_pointer, taps_pointer, dx_pointer, sums_pointer,
    pixels, height, width, rows, columns,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    K: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, PIXELS: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Response norm and pooling: some tiles of pixels of a group."""
    STEP: tl.constexpr = CHANNELS * GROUPS
    channel = tl.arange(0, BLOCK)[None, :]
    group_channel = tl.program_id(1) * CHANNELS + channel
    bias = tl.load(bias_pointer + group_channel, mask=channel < CHANNELS, other=0.0)
    band = make_band(BLOCK, 2)
    g_pointer += tl.program_id(1) * CHANNELS
    taps_pointer += tl.program_id(1) * WORDS
    total = tl.zeros((BLOCK,), tl.float32)
    # What does not change is read again in every turn: in registers the band takes half of them.
    for tile in tl.range(TILES, disable_licm=True):
        pixel = (tl.program_id(0) * TILES + tile) * PIXELS + tl.arange(0, PIXELS)[:, None]
        valid = (pixel < pixels) & (channel < CHANNELS)
        offset = pixel.to(tl.int64) * STEP + group_channel
        # Before x is loaded: what the gradient is made of takes as many registers as the norm.
        start = (pixel // (height * width)).to(tl.int64) * rows * columns
        dy = pool_gradient(
            g_pointer, taps_pointer, start, pixel // width % height, pixel % width, rows, columns,
            pixel < pixels, STEP, WORDS * GROUPS, CHANNELS, BLOCK, 3, 2,
        )  # fmt: skip
        x = _load_biased(x_pointer, offset, bias, valid, RELU)
        root = _root(tl.dot(x * x, band, input_precision=PRECISION), SHARE, K)
        dx = _response_gradient(x, dy, root, band, SHARE, RELU, PRECISION)
        tl.store(dx_pointer + offset, dx.to(dx_pointer.dtype.element_ty), mask=valid)
        total += tl.sum(tl.where(valid, dx, 0.0), axis=0)
    own = sums_pointer + tl.program_id(0) * STEP + group_channel
    tl.store(own, total[None, :], mask=channel < CHANNELS)


@triton.jit
def _norms_pool(
    x_pointer, bias_pointer, y_pointer, taps_pointer, roots_pointer, height, width, rows, columns,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    K: tl.constexpr, SPATIAL_SHARE: tl.constexpr, SPATIAL_K: tl.constexpr,
    RELU: tl.constexpr, RELU_AFTER: tl.constexpr, PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr, POOLED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Both norms and pooling of a group of an image."""
    image, first_channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS
    column, channel = tl.arange(0, COLUMNS)[:, None], tl.arange(0, BLOCK)[None, :]
    bias = tl.load(bias_pointer + first_channel + channel, mask=channel < CHANNELS, other=0.0)
    start = image * height * width * (CHANNELS * GROUPS) + first_channel
    x_pointer += start
    roots_pointer += start
    y_pointer += image * rows * columns * (CHANNELS * GROUPS) + first_channel
    taps_pointer += (image * rows * columns * GROUPS + tl.program_id(1)) * WORDS
    y_column = tl.arange(0, POOLED)[:, None]
    band, columns_band = make_band(BLOCK, 2), make_band(COLUMNS, 2)
    # The response norm's output of four rows, zeros above the image.
    y_up = tl.zeros((COLUMNS, BLOCK), tl.float32)
    y_above, y, y_below = y_up, y_up, y_up
    best = tl.full((POOLED, BLOCK), float("-inf"), tl.float32)
    best_tap = tl.zeros((POOLED, BLOCK), tl.int32)
    # Row -2 and -1 are zeros that are not pooled: the loop begins with them to fill what is kept.
    for row in tl.range(-2, 2 * rows + 1, disable_licm=True):
        y_front = _normed_row(x_pointer, bias, row + 2, column, channel, band, height, width,
                              CHANNELS, GROUPS, SHARE, K, RELU, PRECISION)  # fmt: skip
        total = y_up * y_up + y_above * y_above + y * y + y_below * y_below + y_front * y_front
        total = tl.dot(columns_band, total, input_precision=PRECISION)
        root = _root(total, SPATIAL_SHARE, SPATIAL_K)
        present = (row >= 0) & (row < height) & (column < width) & (channel < CHANNELS)
        offset = (row * width + column) * (CHANNELS * GROUPS) + channel
        tl.store(roots_pointer + offset, root.to(roots_pointer.dtype.element_ty), mask=present)
        z = y * (root * tl.sqrt(root))
        z = z.to(y_pointer.dtype.element_ty).to(tl.float32)
        value, tap = _row_maxima(z, row, height, width, POOLED)
        # Even rows are the last of a window and the first of the next.
        best, best_tap = maximum(best, best_tap, value, 6 - 3 * (row & 1) + tap)
        y_row = row // 2 - 1
        if (row % 2 == 0) & (y_row >= 0):
            store_maxima(
                y_pointer, taps_pointer, y_row * columns + y_column, y_column < columns,
                CHANNELS * GROUPS, WORDS * GROUPS, CHANNELS, best, best_tap, RELU_AFTER,
            )  # fmt: skip
        best = tl.where(row % 2 == 0, value, best)
        best_tap = tl.where(row % 2 == 0, tap, best_tap)
        y_up, y_above, y, y_below = y_above, y, y_below, y_front


@triton.jit
def _norms_pool_backward(
    x_pointer, bias_pointer, g_pointer, taps_pointer, roots_pointer, dx_pointer, sums_pointer,
    height, width, rows, columns,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, SHARE: tl.constexpr,
    K: tl.constexpr, SPATIAL_SHARE: tl.constexpr, SPATIAL_K: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Both norms and pooling of a group of an image."""
    STEP: tl.constexpr = CHANNELS * GROUPS
    image, first_channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS
    column, channel = tl.arange(0, COLUMNS)[:, None], tl.arange(0, BLOCK)[None, :]
    bias = tl.load(bias_pointer + first_channel + channel, mask=channel < CHANNELS, other=0.0)
    start = image * height * width * STEP + first_channel
    x_pointer += start
    roots_pointer += start
    dx_pointer += start
    g_pointer += image * rows * columns * STEP + first_channel
    taps_pointer += (image * rows * columns * GROUPS + tl.program_id(1)) * WORDS
    band, columns_band = make_band(BLOCK, 2), make_band(COLUMNS, 2)
    inside = (column < width) & (channel < CHANNELS)
    # Horizontal sums of the spatial norm's terms of four rows, and what passes it straight, of two.
    fifth = tl.zeros((COLUMNS, BLOCK), tl.float32)
    fourth, third, second = fifth, fifth, fifth
    direct, direct_below = fifth, fifth
    total = tl.zeros((BLOCK,), tl.float32)
    for front in tl.range(height + 2, disable_licm=True):  # as above, a quarter of the registers
        present = inside & (front < height)
        offset = (front * width + column) * STEP + channel
        dz = pool_gradient(
            g_pointer, taps_pointer, 0, front, column, rows, columns,
            column < width, STEP, WORDS * GROUPS, CHANNELS, BLOCK, 3, 2,
        )  # fmt: skip
        root = tl.load(roots_pointer + offset, mask=present, other=0.0).to(tl.float32)
        direct_front = dz * (root * tl.sqrt(root))
        terms = direct_front * (root * root)
        x = _load_biased(x_pointer, offset, bias, present, RELU)
        root = _root(tl.dot(x * x, band, input_precision=PRECISION), SHARE, K)
        terms *= x * (root * tl.sqrt(root))
        terms = tl.dot(columns_band, terms, input_precision=PRECISION)
        # The row two above has all of its window now.
        row = front - 2
        present = inside & (row >= 0)
        offset = (row * width + column) * STEP + channel
        x = _load_biased(x_pointer, offset, bias, present, RELU)
        root = _root(tl.dot(x * x, band, input_precision=PRECISION), SHARE, K)
        dy = direct - (2.0 * SPATIAL_SHARE * 0.75) * (x * (root * tl.sqrt(root))) * (
            fifth + fourth + third + second + terms
        )
        dx = _response_gradient(x, dy, root, band, SHARE, RELU, PRECISION)
        tl.store(dx_pointer + offset, dx.to(dx_pointer.dtype.element_ty), mask=present)
        total += tl.sum(tl.where(present, dx, 0.0), axis=0)
        fifth, fourth, third, second = fourth, third, second, terms
        direct, direct_below = direct_below, direct_front
    own = sums_pointer + image * STEP + first_channel + channel
    tl.store(own, total[None, :], mask=channel < CHANNELS)
