# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# ruff: noqa: ANN001, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""Local response normalisation on CUDA: one kernel forward, one backward, the input kept.

A program takes a tile of pixels x channels of one group of one image. Neighbouring channels are
loaded again for every pixel of the window: they are in the first cache, so that main memory is
read once, x forward and x and g backward, and written once. Strides make NCHW and channels_last
the same code. Names are those of alexnet.model.norms_cpu.

The constants are compiled into the kernels: as arguments they would be float32 for float64 too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alexnet.model.norms_cpu import memory_format
from alexnet.model.spec import Lrn

# Lanes run over what is contiguous: pixels in NCHW, channels in channels_last.
TILES = {torch.contiguous_format: (128, 8), torch.channels_last: (16, 64)}


def forward(x: Tensor, groups: int, norm: Lrn) -> Tensor:
    """The normalised x, laid out as x, which must be dense."""
    y = torch.empty_like(x)
    grid, sides = _launch(x, groups)
    # Triton launches on the current device, which need not be that of x.
    with torch.cuda.device_of(x):
        _forward[grid](x, y, *sides, **_options(x, norm))
    return y


def backward(x: Tensor, g: Tensor, groups: int, norm: Lrn) -> Tensor:
    """The gradient at x for the gradient g at y."""
    g = g.contiguous(memory_format=memory_format(x))
    dx = torch.empty_like(x)
    grid, sides = _launch(x, groups)
    with torch.cuda.device_of(x):
        _backward[grid](x, g, dx, *sides, **_options(x, norm))
    return dx


def _launch(x: Tensor, groups: int) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The grid, and (groups, channels of one, pixels, strides of image, channel, pixel)."""
    channels, pixels = x.shape[1] // groups, x.shape[2:].numel()
    tile_pixels, tile_channels = TILES[memory_format(x)]
    grid = (
        x.shape[0] * groups,
        triton.cdiv(pixels, tile_pixels),
        triton.cdiv(channels, tile_channels),
    )
    last = memory_format(x) is torch.channels_last
    step_channel, step_pixel = (1, x.shape[1]) if last else (pixels, 1)
    return grid, (groups, channels, pixels, x.shape[1:].numel(), step_channel, step_pixel)


def _options(x: Tensor, norm: Lrn) -> dict[str, object]:
    tile_pixels, tile_channels = TILES[memory_format(x)]
    return {
        "SHARE": norm.alpha / norm.size,
        "BETA": norm.beta,
        "K": norm.k,
        "HALF": norm.size // 2,
        "WIDE": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "PIXELS": tile_pixels,
        "CHANNELS": tile_channels,
    }


@triton.jit
def _tile(groups, channels, step_image, step_channel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where the group of this program begins, its pixels (P, 1) and its channels (1, C)."""
    row = tl.program_id(0).to(tl.int64)
    start = row // groups * step_image + row % groups * channels * step_channel
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return start, pixel, channel


@triton.jit
def _load(
    source, start, pixel, channel, channels, pixels, step_channel, step_pixel, WIDE: tl.constexpr
):
    """A tile of values; zeros beyond the group and the pixels."""
    valid = (channel >= 0) & (channel < channels) & (pixel < pixels)
    address = source + start + channel * step_channel + pixel * step_pixel
    return tl.load(address, mask=valid, other=0.0).to(WIDE)


@triton.jit
def _power(d, BETA: tl.constexpr):
    """The power -BETA of d."""
    if BETA == 0.75:
        root = tl.rsqrt(d)
        return root * tl.sqrt(root)
    return tl.exp2(-BETA * tl.log2(d))


@triton.jit
def _forward(
    x_pointer, y_pointer,
    groups, channels, pixels, step_image, step_channel, step_pixel,
    SHARE: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    HALF: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    start, pixel, channel = _tile(groups, channels, step_image, step_channel, PIXELS, CHANNELS)
    total = tl.zeros((PIXELS, CHANNELS), WIDE)
    for offset in tl.static_range(-HALF, HALF + 1):
        near = _load(x_pointer, start, pixel, channel + offset, channels, pixels, step_channel,
                     step_pixel, WIDE)  # fmt: skip
        total += near * near
    x = _load(x_pointer, start, pixel, channel, channels, pixels, step_channel, step_pixel, WIDE)
    y = x * _power(K + SHARE * total, BETA)
    address = y_pointer + start + channel * step_channel + pixel * step_pixel
    tl.store(address, y, mask=(channel < channels) & (pixel < pixels))


@triton.jit
def _backward(
    x_pointer, g_pointer, dx_pointer,
    groups, channels, pixels, step_image, step_channel, step_pixel,
    SHARE: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    HALF: tl.constexpr, WIDE: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    start, pixel, channel = _tile(groups, channels, step_image, step_channel, PIXELS, CHANNELS)
    direct = tl.zeros((PIXELS, CHANNELS), WIDE)
    shares = tl.zeros((PIXELS, CHANNELS), WIDE)
    for offset in tl.static_range(-HALF, HALF + 1):
        total = tl.zeros((PIXELS, CHANNELS), WIDE)
        for further in tl.static_range(-HALF, HALF + 1):
            near = _load(x_pointer, start, pixel, channel + offset + further, channels, pixels,
                         step_channel, step_pixel, WIDE)  # fmt: skip
            total += near * near
        d = K + SHARE * total
        # Beyond the group g is 0, so that those pixels add nothing.
        g = _load(g_pointer, start, pixel, channel + offset, channels, pixels, step_channel,
                  step_pixel, WIDE)  # fmt: skip
        x = _load(x_pointer, start, pixel, channel + offset, channels, pixels, step_channel,
                  step_pixel, WIDE)  # fmt: skip
        passed = g * _power(d, BETA)
        shares += passed * x / d
        if offset == 0:
            direct = passed
    x = _load(x_pointer, start, pixel, channel, channels, pixels, step_channel, step_pixel, WIDE)
    dx = direct - 2.0 * SHARE * BETA * x * shares
    address = dx_pointer + start + channel * step_channel + pixel * step_pixel
    tl.store(address, dx, mask=(channel < channels) & (pixel < pixels))
