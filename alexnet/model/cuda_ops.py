# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""Operators for CUDA alone, each one Triton kernel a pass: pooling with the neuron, and dropout.

A CPU has them as operations of torch (alexnet.model.grouped, alexnet.model.dropout), which these
equal: dropout in its bits, pooling in its values and gradients. The norms, which have kernels for
both, are in alexnet.model.norms.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from alexnet.model.spec import pooled

# Types of devices that run the kernels. Triton comes with PyTorch for CUDA; without it the same is
# done by operations of torch.
KERNEL_DEVICES = {"cuda"} if torch.cuda.is_available() and find_spec("triton") else set[str]()

_POOL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_NO_TAP = 255  # a window's pixels are numbered in one byte, of which 255 means none


def serves_pool(x: Tensor, size: int) -> bool:
    """Whether `max_pool` knows maps like x and windows of this size."""
    return (
        x.device.type in KERNEL_DEVICES
        and x.dtype in _POOL_TYPES
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and size * size <= _NO_TAP
    )


def max_pool(x: Tensor, size: int, stride: int, *, relu: bool) -> Tensor:
    """max_pool2d of x (N, C, H, W) with ceil_mode; with `relu` the ReLU of it.

    The ReLU may as well come before: values and gradients are the same in both orders.
    """
    return _max_pool(x, size, stride, relu)[0]


@torch.library.custom_op("alexnet::max_pool", mutates_args=())
def _max_pool(x: Tensor, size: int, stride: int, relu: bool) -> tuple[Tensor, Tensor]:
    from alexnet.model import pooling_triton  # noqa: PLC0415 - Triton is not everywhere

    return pooling_triton.forward(x, size, stride, _pooled_side(x, size, stride), relu)


@_max_pool.register_fake
def _(x: Tensor, size: int, stride: int, relu: bool) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], *_pooled_side(x, size, stride))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return y, torch.empty_like(y, dtype=torch.uint8)


def _pooled_side(x: Tensor, size: int, stride: int) -> tuple[int, int]:
    return pooled(x.shape[2], size, stride), pooled(x.shape[3], size, stride)


@torch.library.custom_op("alexnet::max_pool_backward", mutates_args=())
def _max_pool_backward(
    g: Tensor, taps: Tensor, size: int, stride: int, side: Sequence[int]
) -> Tensor:
    from alexnet.model import pooling_triton  # noqa: PLC0415 - Triton is not everywhere

    return pooling_triton.backward(g, taps, size, stride, (side[0], side[1]))


@_max_pool_backward.register_fake
def _(g: Tensor, taps: Tensor, size: int, stride: int, side: Sequence[int]) -> Tensor:
    shape = (*g.shape[:2], *side)
    return torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=torch.channels_last)


def _save_taps(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.size, ctx.stride, _ = inputs
    ctx.side = list(x.shape[2:])
    ctx.set_materialize_grads(False)  # none is made for the numbers of pixels
    ctx.save_for_backward(output[1])


def _pool_gradient(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None]:
    if g is None:
        return None, None, None, None
    (taps,) = ctx.saved_tensors
    return _max_pool_backward(g, taps, ctx.size, ctx.stride, ctx.side), None, None, None


_max_pool.register_autograd(_pool_gradient, setup_context=_save_taps)


def serves_dropout(x: Tensor) -> bool:
    """Whether `drop` knows units like x."""
    return x.device.type in KERNEL_DEVICES and x.dtype in _POOL_TYPES


@torch.library.custom_op("alexnet::drop", mutates_args=())
def drop(x: Tensor, position: Tensor, key: Sequence[int], keep: float, inverted: bool) -> Tensor:
    """X (N, F) times its mask, which is drawn forward and again backward and never stored.

    Args:
        x: the units of the columns, one column after the other; contiguous.
        position: int64 scalar, the number of the first image in the run.
        key: of seed and layer (dropout.layer_key), first and last + 1 of the columns, and the step
            from one image's number to the next.
        keep: probability of a unit to be kept.
        inverted: whether kept units are divided by `keep`.
    """
    from alexnet.model import dropout_triton  # noqa: PLC0415 - Triton is not everywhere

    start, first, stop, stride = key
    # Rounded to x's type, as a mask of that type is.
    scale = float(torch.ones((), dtype=x.dtype, device="cpu") / keep) if inverted else 1.0
    columns = range(first, stop)
    return dropout_triton.drop(x.contiguous(), position, start, columns, stride, keep, scale)


@drop.register_fake
def _(x: Tensor, position: Tensor, key: Sequence[int], keep: float, inverted: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_position(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, position, *ctx.constants = inputs
    ctx.save_for_backward(position)


def _drop_gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
    (position,) = ctx.saved_tensors
    return drop(g, position, *ctx.constants), None, None, None, None


drop.register_autograd(_drop_gradient, setup_context=_save_position)
