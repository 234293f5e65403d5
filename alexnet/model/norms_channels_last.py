# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""Both norms on CUDA for channels_last tensors, the layout that training uses.

Response norm: a program takes rows of one group of channels whole. Each value is loaded once, and
the window sums are a product with a band matrix of zeros and ones, which tensor cores do; shifted
loads would be 2-byte accesses there, 160 of them a thread in the backward pass.

Spatial norm: a program takes a block of columns and channels of one image and walks down its rows.
It keeps the horizontal sums of the last five rows, so that a value costs five loads instead of 25;
the loads of neighbours are aligned, for a shift is in pixels and channels are what is contiguous.

Inside, everything is float32; inputs and outputs may be bfloat16 or float16. Sums of bfloat16
values go through tensor cores in tf32, whose 11 bits err by 2**-12 of the sum and the result by .75
times that, where rounding the result to bfloat16 errs by 2**-9. The response norm takes float32
("ieee") for tests alone: compiled, it has 132 instructions a value forward and 287 backward in
layer 1, 368 and 716 in layer 2, and spills; alexnet.model.norms_triton has 30 and 155.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.model.spec import Lrn

# Rows a program of the response norm: 128 of conv1's 48 channels take 158 registers, 128 of conv2's
# 128 channels spill in the backward pass.
ROWS = {64: 128, 128: 64}
WARPS = 8
COLUMNS, CHANNELS = 32, 64  # a tile of the spatial norm: 27 columns are used in layer 2


def response_forward(x: Tensor, groups: int, norm: Lrn, relu: bool = False) -> Tensor:
    """The normalised x (N, C, H, W), or that of its ReLU, channels_last as x."""
    y = torch.empty_like(x)
    grid, options = _response_launch(x, groups, norm, relu)
    with torch.cuda.device_of(x):
        _response_forward[grid](x, y, x.numel() // x.shape[1], **options)
    return y


def response_backward(x: Tensor, g: Tensor, groups: int, norm: Lrn, relu: bool = False) -> Tensor:
    """The gradient at x for the gradient g at y."""
    g = g.contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(x)
    grid, options = _response_launch(x, groups, norm, relu)
    with torch.cuda.device_of(x):
        _response_backward[grid](x, g, dx, x.numel() // x.shape[1], **options)
    return dx


def _response_launch(
    x: Tensor, groups: int, norm: Lrn, relu: bool
) -> tuple[tuple[int, int], dict[str, object]]:
    channels = x.shape[1] // groups
    block = 64 if channels <= 64 else 128
    options = {
        "CHANNELS": channels,
        "GROUPS": groups,
        "SHARE": norm.alpha / norm.size,
        "K": norm.k,
        "HALF": norm.size // 2,
        "RELU": relu,
        "ROWS": ROWS[block],
        "BLOCK": block,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": WARPS,
    }
    return (triton.cdiv(x.numel() // x.shape[1], ROWS[block]), groups), options


def spatial_forward(x: Tensor, norm: Lrn) -> Tensor:
    """The normalised x (N, C, H, W), channels_last as x."""
    y = torch.empty_like(x)
    grid, sides, options = _spatial_launch(x, norm)
    with torch.cuda.device_of(x):
        _spatial[grid](x, x, x, y, *sides, **options, PASS="values")
    return y


def spatial_backward(x: Tensor, g: Tensor, norm: Lrn) -> Tensor:
    """The gradient at x for the gradient g at y.

    Two passes: the terms that are summed over windows need the sums of windows themselves.
    """
    g = g.contiguous(memory_format=torch.channels_last)
    terms, dx = torch.empty_like(x), torch.empty_like(x)
    grid, sides, options = _spatial_launch(x, norm)
    with torch.cuda.device_of(x):
        _spatial[grid](x, g, g, terms, *sides, **options, PASS="terms")
        _spatial[grid](x, g, terms, dx, *sides, **options, PASS="gradient")
    return dx


def _spatial_launch(
    x: Tensor, norm: Lrn
) -> tuple[tuple[int, int, int], tuple[int, int, int], dict[str, object]]:
    images, channels, height, width = x.shape
    grid = (images, triton.cdiv(width, COLUMNS), triton.cdiv(channels, CHANNELS))
    options = {
        "SHARE": norm.alpha / norm.size**2,
        "K": norm.k,
        "COLUMNS": COLUMNS,
        "CHANNELS": CHANNELS,
        "num_warps": WARPS,
    }
    return grid, (channels, height, width), options


@triton.jit
def make_band(BLOCK: tl.constexpr, HALF: tl.constexpr):
    """Ones where row and column are at most HALF apart."""
    distance = tl.arange(0, BLOCK)[:, None] - tl.arange(0, BLOCK)[None, :]
    return tl.where((distance <= HALF) & (distance >= -HALF), 1.0, 0.0)


@triton.jit
def _rows_of_group(
    rows, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Offsets of this program's values (ROWS, BLOCK), and which of them there are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    offset = row.to(tl.int64) * (CHANNELS * GROUPS) + tl.program_id(1) * CHANNELS + channel
    return offset, (row < rows) & (channel < CHANNELS)


@triton.jit
def _response_forward(
    x_pointer, y_pointer, rows,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, K: tl.constexpr,
    HALF: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    offset, valid = _rows_of_group(rows, CHANNELS, GROUPS, ROWS, BLOCK)
    x = tl.load(x_pointer + offset, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        x = tl.where(x <= 0.0, 0.0, x)  # NaN stays
    total = tl.dot(x * x, make_band(BLOCK, HALF), input_precision=PRECISION)
    root = tl.rsqrt(K + SHARE * total)
    y = x * (root * tl.sqrt(root))
    tl.store(y_pointer + offset, y.to(y_pointer.dtype.element_ty), mask=valid)


@triton.jit
def _response_backward(
    x_pointer, g_pointer, dx_pointer, rows,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, SHARE: tl.constexpr, K: tl.constexpr,
    HALF: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    offset, valid = _rows_of_group(rows, CHANNELS, GROUPS, ROWS, BLOCK)
    x = tl.load(x_pointer + offset, mask=valid, other=0.0).to(tl.float32)
    # A tile of 128 channels has no registers for both before the sums are made.
    EARLY: tl.constexpr = BLOCK < 128
    if EARLY:
        g = tl.load(g_pointer + offset, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        x = tl.where(x <= 0.0, 0.0, x)
    band = make_band(BLOCK, HALF)
    root = tl.rsqrt(K + SHARE * tl.dot(x * x, band, input_precision=PRECISION))
    if not EARLY:
        g = tl.load(g_pointer + offset, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        # Where x becomes 0 the terms of its neighbours do too: what is left of dx is that of g.
        g = tl.where(x <= 0.0, 0.0, g)
    direct = g * (root * tl.sqrt(root))
    # The window is symmetric: the sum over it is its own transpose.
    shares = tl.dot(direct * x * (root * root), band, input_precision=PRECISION)
    dx = direct - (2.0 * SHARE * 0.75) * x * shares
    tl.store(dx_pointer + offset, dx.to(dx_pointer.dtype.element_ty), mask=valid)


@triton.jit
def _block_of_columns(channels, height, width, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where this program's image begins; its columns (COLUMNS, 1) and channels (1, CHANNELS)."""
    start = tl.program_id(0).to(tl.int64) * height * width * channels
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return start, column, channel


@triton.jit
def _load_at(pointer, row, column, channel, channels, height, width):
    """Values of a row at some columns; zeros beyond the image."""
    valid = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (channel < channels)
    offset = (row * width + column) * channels + channel
    return tl.load(pointer + offset, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def _row_sums(pointer, row, column, channel, channels, height, width, SQUARES: tl.constexpr):
    """Sums of five neighbouring columns of a row, or of their squares."""
    total = tl.zeros_like(column * channel).to(tl.float32)
    for shift in tl.static_range(-2, 3):
        x = _load_at(pointer, row, column + shift, channel, channels, height, width)
        total += x * x if SQUARES else x
    return total


@triton.jit
def _spatial(
    x_pointer, g_pointer, terms_pointer, out_pointer, channels, height, width,
    SHARE: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    PASS: tl.constexpr,
) -> None:  # fmt: skip
    """The normalised x; or the terms g * x * d ** -1.75; or, from them, the gradient at x."""
    start, column, channel = _block_of_columns(channels, height, width, COLUMNS, CHANNELS)
    x_pointer += start
    g_pointer += start
    terms_pointer += start
    out_pointer += start
    # Horizontal sums of the rows around the one that is written, from two above (fifth) to one
    # below (second); above the image they are zeros.
    third = _row_sums(x_pointer, 0, column, channel, channels, height, width, True)
    second = _row_sums(x_pointer, 1, column, channel, channels, height, width, True)
    fourth, fifth = tl.zeros_like(third), tl.zeros_like(third)
    third_terms, second_terms, fourth_terms, fifth_terms = fourth, fourth, fourth, fourth
    if PASS == "gradient":
        third_terms = _row_sums(terms_pointer, 0, column, channel, channels, height, width, False)
        second_terms = _row_sums(terms_pointer, 1, column, channel, channels, height, width, False)
    for row in range(height):
        below = _row_sums(x_pointer, row + 2, column, channel, channels, height, width, True)
        root = tl.rsqrt(K + SHARE * (fifth + fourth + third + second + below))
        fifth, fourth, third, second = fourth, third, second, below
        out = root * tl.sqrt(root)
        x = _load_at(x_pointer, row, column, channel, channels, height, width)
        if PASS == "values":
            out *= x
        else:
            out *= _load_at(g_pointer, row, column, channel, channels, height, width)
        if PASS == "terms":
            out *= x * (root * root)
        if PASS == "gradient":
            below = _row_sums(
                terms_pointer, row + 2, column, channel, channels, height, width, False
            )
            total = fifth_terms + fourth_terms + third_terms + second_terms + below
            out -= (2.0 * SHARE * 0.75) * x * total
            fifth_terms, fourth_terms = fourth_terms, third_terms
            third_terms, second_terms = second_terms, below
        offset = (row * width + column) * channels + channel
        valid = (column < width) & (channel < channels)
        tl.store(out_pointer + offset, out.to(out_pointer.dtype.element_ty), mask=valid)
