# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportAssignmentType=false
# ruff: noqa: ANN001, ANN202, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""ReLU and dropout on CUDA in one kernel: the bits of alexnet.model.dropout, drawn where used.

As torch operations a mask is 69 kernels of 64-bit integers. Here the hash of (seed, layer, column,
unit, image) is computed in registers, forward and again backward, so that no mask is stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def drop(
    x: Tensor, gate: Tensor | None, position: Tensor, start: int, columns: range, stride: int,
    keep: float, scale: float,
) -> Tensor:  # fmt: skip
    """X (N, F) with the units that are dropped set to zero and the others times `scale`.

    Args:
        x: outputs of a dense layer, its columns side by side; or a gradient of them.
        gate: (N, F), x is zero where this is at most zero: x itself for its ReLU, what came of it
            for the gradient; None without a ReLU.
        position: int64 scalar on the device, the number of the first image in the run.
        start: the key of seed and layer, as dropout.layer_key gives it.
        columns: of the network that x holds.
        stride: from one image's number to the next.
        keep: the probability of being kept.
        scale: of kept units.
    """
    out = torch.empty_like(x)
    images, units = x.shape
    with torch.cuda.device_of(x):
        _drop[(images, triton.cdiv(units, BLOCK))](
            x, x if gate is None else gate, position, out,
            start, units, units // len(columns), columns.start, stride,
            THRESHOLD=round(keep * 2**31), SCALE=scale, RELU=gate is not None,
            GATED=gate is not x, BLOCK=BLOCK,
        )  # fmt: skip
    return out


@triton.jit
def _mix(x):
    """alexnet.model.dropout.mix: MurmurHash3's finaliser; int64 products wrap around."""
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -49064778989728563
    x = (x ^ ((x >> 33) & 0x7FFFFFFF)) * -4265267296055464877
    return x ^ ((x >> 33) & 0x7FFFFFFF)


@triton.jit
def _drop(
    x_pointer, gate_pointer, position_pointer, out_pointer,
    start, units, units_of_column, first_column, stride,
    THRESHOLD: tl.constexpr, SCALE: tl.constexpr, RELU: tl.constexpr, GATED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    SPREAD: tl.constexpr = -7046029254386353131
    row = tl.program_id(0).to(tl.int64)
    image = _mix((tl.load(position_pointer) + row * stride) * SPREAD)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = (first_column + unit // units_of_column).to(tl.int64)
    index = (unit % units_of_column).to(tl.int64)
    key = _mix(_mix(start + column * SPREAD) + index * SPREAD)
    drawn = (_mix(image ^ key) >> 33) & 0x7FFFFFFF
    valid = unit < units
    offset = row * units + unit
    x = tl.load(x_pointer + offset, mask=valid, other=0.0)
    if RELU:
        gate = tl.load(gate_pointer + offset, mask=valid, other=0.0) if GATED else x
        x = tl.where(gate <= 0.0, 0.0, x)
    # Multiplied, not selected: what is not a number stays so, as with the mask of a CPU.
    factor = tl.where(drawn < THRESHOLD, SCALE, 0.0)
    out = x.to(tl.float32) * factor
    tl.store(out_pointer + offset, out.to(out_pointer.dtype.element_ty), mask=valid)
