# pyright: basic, reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# ruff: noqa: ANN001, PLR0913
# Triton's kernels are Python to the eye alone, and a user without CUDA need not have Triton.
"""Momentum SGD on CUDA for a weight that the network has in bfloat16, in one pass over memory.

Reads the float32 weight, its velocity and the gradient in bfloat16, and writes the weight, the
velocity and the network's copy: 20 bytes a value. Apart, the cast of the weight before each step
and that of the gradient behind it are 12 bytes a value more, 730 MB a step of code2012.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
OPTIONS: dict[str, int] = {"BLOCK": BLOCK, "num_warps": 8}


def update(
    weight: Tensor,
    velocity: Tensor,
    copy: Tensor,
    gradient: Tensor,
    rate: Tensor,
    *,
    decay: float,
    momentum: float,
) -> None:
    """The update of torch.optim.SGD, in place; `copy` becomes the rounded weight.

    Args:
        weight: float32, dense in any layout.
        velocity: float32, laid out as the weight, zeros before the first update.
        copy: in the type of the gradient, laid out as the weight.
        gradient: of the copy.
        rate: float32 scalar on the device; a captured step reads it at every replay.
        decay: of the weight.
        momentum: of the velocity.
    """
    if gradient.stride() != weight.stride():
        gradient = torch.empty_like(copy).copy_(gradient)
    count = weight.numel()
    with torch.cuda.device_of(weight):
        _update[(triton.cdiv(count, BLOCK),)](
            weight, velocity, copy, gradient, rate, count, DECAY=decay, MOMENTUM=momentum, **OPTIONS
        )


@triton.jit
def _update(
    weight_pointer, velocity_pointer, copy_pointer, gradient_pointer, rate_pointer, count,
    DECAY: tl.constexpr, MOMENTUM: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = offset < count
    weight = tl.load(weight_pointer + offset, mask=valid, other=0.0)
    velocity = tl.load(velocity_pointer + offset, mask=valid, other=0.0)
    gradient = tl.load(gradient_pointer + offset, mask=valid, other=0.0).to(tl.float32)
    velocity = MOMENTUM * velocity + (gradient + DECAY * weight)
    weight -= tl.load(rate_pointer) * velocity
    tl.store(weight_pointer + offset, weight, mask=valid)
    tl.store(velocity_pointer + offset, velocity, mask=valid)
    tl.store(copy_pointer + offset, weight.to(copy_pointer.dtype.element_ty), mask=valid)
