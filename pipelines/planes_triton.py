# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportCallIssue=false
# ruff: noqa: ANN001, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""From planes to a network's input on CUDA: one kernel for everything an augmentation does.

Crop, upsampling of chroma, colour, mirror, mean, lighting, division, layout, padding and conversion
to the network's dtype, each pixel read once and written once:

    out = (pixel - mean) * unit + added

The integer part is that of pipelines.planes, so pixels are the CPU decoder's own bit for bit. The
float part must not be contracted to a fused multiply-add, which would round once where the CPU
rounds twice: kernels are compiled with enable_fp_fusion=False.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pixels of a program. More pixels a thread would share column sums of chroma, but 32 to 90
# registers are used already.
BLOCK = 512


def crop_planes(
    addresses: Tensor,
    origins: Tensor,
    levels: Tensor,
    mean_HWC: Tensor,
    out: Tensor,
    *,
    size: int,
    crop: int,
    mean_moves: bool,
) -> None:
    """Fill `out` with crops of stored images.

    Args:
        addresses: int64 (N,), where the planes of the image of each crop begin: in memory of the
            device, of the host, page-locked, or of another GPU that the device may read.
        origins: int32 (N, 3): top, left and mirror of each crop.
        levels: float32 (N, 6): unit of red, green and blue, then `added` of each.
        mean_HWC: float32 (size, size, 3), or (1, 1, 3) for one mean a channel.
        out: (N, 3, side, side), channels_last, side >= crop: what is beyond the crop becomes zero.
        size: side of the stored images.
        crop: side of the crops.
        mean_moves: whether the mean is taken where the crop was, or always in the centre.
    """
    side = out.shape[-1]
    if not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("crop_planes fills channels_last memory alone.")
    grid = (len(out), triton.cdiv(side * side, BLOCK))
    # Triton launches on the current device, which need not be that of `out`.
    with torch.cuda.device_of(out):
        _crop_planes[grid](
            addresses, origins, levels, mean_HWC, out,
            SIZE=size, CROP=crop, SIDE=side, MEAN=mean_HWC.shape[0], MOVES=mean_moves,
            BLOCK=BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit
def _upsample(chroma, near_row, far_row, column, odd, HALF: tl.constexpr, mask):
    """One upsampled chroma value less 128; the rows above or below are mixed first, as on a CPU."""
    beside = tl.minimum(tl.maximum(column + tl.where(odd, 1, -1), 0), HALF - 1)
    near = tl.load(chroma + near_row * HALF + column, mask=mask, other=0).to(tl.int32) * 3
    near += tl.load(chroma + far_row * HALF + column, mask=mask, other=0).to(tl.int32)
    far = tl.load(chroma + near_row * HALF + beside, mask=mask, other=0).to(tl.int32) * 3
    far += tl.load(chroma + far_row * HALF + beside, mask=mask, other=0).to(tl.int32)
    return ((near * 3 + far + tl.where(odd, 7, 8)) >> 4) - 128


@triton.jit
def _grey_level(value):
    return tl.minimum(tl.maximum(value, 0), 255).to(tl.float32)


@triton.jit
def _crop_planes(
    addresses, origins, levels, mean, out,
    SIZE: tl.constexpr, CROP: tl.constexpr, SIDE: tl.constexpr, MEAN: tl.constexpr,
    MOVES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    HALF: tl.constexpr = SIZE // 2
    CENTRE: tl.constexpr = (SIZE - CROP) // 2
    number = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out_y, out_x = pixel // SIDE, pixel % SIDE
    inside = (out_y < CROP) & (out_x < CROP)
    mirror = tl.load(origins + 3 * number + 2)
    y = out_y + tl.load(origins + 3 * number)
    x = tl.load(origins + 3 * number + 1) + tl.where(mirror != 0, CROP - 1 - out_x, out_x)
    # One kernel for every memory: what differs between them is where an image is.
    image = tl.load(addresses + number).to(tl.pointer_type(tl.uint8))
    luma = tl.load(image + y * SIZE + x, mask=inside, other=0).to(tl.int32)
    row, column = y >> 1, x >> 1
    far_row = tl.minimum(tl.maximum(row + tl.where((y & 1) == 1, 1, -1), 0), HALF - 1)
    odd = (x & 1) == 1
    cb = _upsample(image + SIZE * SIZE, row, far_row, column, odd, HALF, inside)
    cr = _upsample(image + SIZE * SIZE + HALF * HALF, row, far_row, column, odd, HALF, inside)
    red = _grey_level(luma + ((91881 * cr + 32768) >> 16))
    green = _grey_level(luma + ((-22554 * cb - 46802 * cr + 32768) >> 16))
    blue = _grey_level(luma + ((116130 * cb + 32768) >> 16))
    if MEAN == 1:
        mean_at = mean + 0 * pixel
    elif MOVES:
        mean_at = mean + (y * SIZE + x) * 3
    else:
        mean_at = mean + ((CENTRE + out_y) * SIZE + CENTRE + out_x) * 3
    red -= tl.load(mean_at, mask=inside, other=0.0)
    green -= tl.load(mean_at + 1, mask=inside, other=0.0)
    blue -= tl.load(mean_at + 2, mask=inside, other=0.0)
    level = levels + 6 * number
    red = red * tl.load(level) + tl.load(level + 3)
    green = green * tl.load(level + 1) + tl.load(level + 4)
    blue = blue * tl.load(level + 2) + tl.load(level + 5)
    into = out + (number.to(tl.int64) * SIDE * SIDE + pixel) * 3
    valid = pixel < SIDE * SIDE
    kind = out.dtype.element_ty
    tl.store(into, tl.where(inside, red, 0.0).to(kind), mask=valid)
    tl.store(into + 1, tl.where(inside, green, 0.0).to(kind), mask=valid)
    tl.store(into + 2, tl.where(inside, blue, 0.0).to(kind), mask=valid)
