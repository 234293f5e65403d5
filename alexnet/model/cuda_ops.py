# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""Operators for CUDA alone, each one Triton kernel a pass: what follows a convolution, and dropout.

A CPU has them as operations of torch (alexnet.model.grouped, alexnet.model.dropout), which these
equal: dropout in its bits, pooling in its values and gradients, norms up to rounding. They take the
bias of the convolution, which torch would add in a pass of its own over memory and sum up in
another. Norms alone, which have kernels for a CPU too, are in alexnet.model.norms.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from alexnet.model.spec import Lrn, pooled

# Types of devices that run the kernels. Triton comes with PyTorch for CUDA; without it the same is
# done by operations of torch.
KERNEL_DEVICES = {"cuda"} if torch.cuda.is_available() and find_spec("triton") else set[str]()

_POOL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_PIXELS = 255  # of a window, that numbers of one byte know: 255 means none


def serves_maps(x: Tensor) -> bool:
    """Whether the kernels know maps like x: channels_last, of a type that they compute with."""
    return (
        x.device.type in KERNEL_DEVICES
        and x.dtype in _POOL_TYPES
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def serves_pool(x: Tensor, size: int) -> bool:
    """Whether `max_pool` knows maps like x and windows of this size."""
    return serves_maps(x) and size * size <= _PIXELS


def max_pool(x: Tensor, bias: Tensor | None, size: int, stride: int, *, relu: bool) -> Tensor:
    """max_pool2d of x (N, C, H, W) plus its bias (C,), with ceil_mode; with `relu` the ReLU of it.

    The ReLU may as well come before: values and gradients are the same in both orders.
    """
    return _max_pool(x, bias, size, stride, relu)[0]


@torch.library.custom_op("alexnet::max_pool", mutates_args=())
def _max_pool(
    x: Tensor, bias: Tensor | None, size: int, stride: int, relu: bool
) -> tuple[Tensor, Tensor]:
    from alexnet.model import pooling_triton  # noqa: PLC0415 - Triton is not everywhere

    return pooling_triton.forward(x, bias, size, stride, _pooled_side(x, size, stride), relu)


@_max_pool.register_fake
def _(x: Tensor, bias: Tensor | None, size: int, stride: int, relu: bool) -> tuple[Tensor, Tensor]:
    y = empty_maps(x, (*x.shape[:2], *_pooled_side(x, size, stride)))
    return y, empty_taps(y, size)


def empty_maps(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """Maps (N, C, H, W) on x's device, of its type or another, in channels_last, with no values."""
    dtype = dtype or x.dtype
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def tap_bits(size: int) -> int:
    """Bits for the number of a window's pixel. All of them ones mean none."""
    return 4 if size * size <= 15 else 8


def empty_taps(y: Tensor, size: int, groups: int = 1) -> Tensor:
    """For maxima y (N, C, H, W) of windows of this size: the pixel of its window that each is.

    Words of 32 bits, in channels_last as y is: each holds the numbers of eight (or four) channels,
    of the first in its lowest bits. Every group of channels begins with a new word.
    """
    images, channels, *side = y.shape
    words = (channels // groups * tap_bits(size) + 31) // 32  # of a group
    return empty_maps(y, (images, groups * words, *side), torch.int32)


def _pooled_side(x: Tensor, size: int, stride: int) -> tuple[int, int]:
    return pooled(x.shape[2], size, stride), pooled(x.shape[3], size, stride)


@torch.library.custom_op("alexnet::max_pool_backward", mutates_args=())
def _max_pool_backward(
    g: Tensor, taps: Tensor, size: int, stride: int, side: Sequence[int]
) -> tuple[Tensor, Tensor]:
    from alexnet.model import pooling_triton  # noqa: PLC0415 - Triton is not everywhere

    return pooling_triton.backward(g, taps, size, stride, (side[0], side[1]))


@_max_pool_backward.register_fake
def _(
    g: Tensor, taps: Tensor, size: int, stride: int, side: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return empty_maps(g, (*g.shape[:2], *side)), _sum_of(g)


def _sum_of(x: Tensor) -> Tensor:
    """Empty, as the gradient of a bias is that was added to x."""
    return x.new_empty(x.shape[1], dtype=torch.float32)


def _save_taps(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, bias, ctx.size, ctx.stride, _ = inputs
    ctx.side, ctx.biased = list(x.shape[2:]), bias is not None
    ctx.set_materialize_grads(False)  # none is made for the numbers of pixels
    ctx.save_for_backward(output[1])


def _pool_gradient(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 5
    (taps,) = ctx.saved_tensors
    dx, total = _max_pool_backward(g, taps, ctx.size, ctx.stride, ctx.side)
    return dx, total if ctx.biased else None, None, None, None


_max_pool.register_autograd(_pool_gradient, setup_context=_save_taps)


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """The ReLU of x (N, C, H, W) plus its bias (C,)."""
    return _bias_relu(x, bias)[0]


def empty_bits(x: Tensor) -> Tensor:
    """uint8 (N * H * W, C / 8 rounded up) for one bit a value of maps x (N, C, H, W)."""
    return x.new_empty((x.numel() // x.shape[1], -(-x.shape[1] // 8)), dtype=torch.uint8)


@torch.library.custom_op("alexnet::bias_relu", mutates_args=())
def _bias_relu(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from alexnet.model import stages_triton  # noqa: PLC0415 - Triton is not everywhere

    return stages_triton.bias_relu(x, bias)


@_bias_relu.register_fake
def _(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), empty_bits(x)


@torch.library.custom_op("alexnet::bias_relu_backward", mutates_args=())
def _bias_relu_backward(g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    from alexnet.model import stages_triton  # noqa: PLC0415 - Triton is not everywhere

    return stages_triton.bias_relu_backward(g, bits)


@_bias_relu_backward.register_fake
def _(g: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    return empty_maps(g, g.shape), _sum_of(g)


def _save_bits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # none is made for the bits
    ctx.save_for_backward(output[1])


def _relu_gradient(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if g is None else _bias_relu_backward(g, *ctx.saved_tensors)


_bias_relu.register_autograd(_relu_gradient, setup_context=_save_bits)

# What `norm_pool` knows: types of 16 bits (float32 has tensor cores for exact products nowhere; the
# kernels compute it for tests), the windows and the power of the released code and the paper, and
# tiles that fit the registers: so many columns of so many channels of a group at most.
NORM_POOL_TYPES = {torch.bfloat16, torch.float16}
WINDOW, BETA = 5, 0.75
POOL = (3, 2)
_TILE = 4096
_COLUMNS = 64


def serves_norm_pool(x: Tensor, groups: int, norms: Sequence[Lrn], pool: tuple[int, int]) -> bool:
    """Whether `norm_pool` knows maps like x, these norms, and windows of `pool` (size, stride)."""
    known = all((norm.size, norm.beta) == (WINDOW, BETA) for norm in norms) and pool == POOL
    columns, channels = (
        1 << (side - 1).bit_length() for side in (x.shape[-1], x.shape[1] // groups)
    )
    return (
        known
        and serves_maps(x)
        and x.dtype in NORM_POOL_TYPES
        and 3 <= x.shape[-1] <= _COLUMNS
        and x.shape[-2] >= 3
        and columns * channels <= _TILE
    )


def norm_pool(
    x: Tensor, bias: Tensor, groups: int, norms: Sequence[Lrn], relu: tuple[bool, bool]
) -> Tensor:
    """Maxima (3 x 3, stride 2, ceil_mode) of the norms of x (N, C, H, W) plus its bias (C,).

    Args:
        x: output of a convolution without its bias; see `serves_norm_pool`.
        bias: of the convolution.
        groups: of channels that the response norm does not mix.
        norms: the response norm, and the spatial norm where it follows.
        relu: whether a ReLU stands before the norms, and next to the pooling.
    """
    constants = [value for norm in norms for value in (norm.alpha, norm.k)]
    return _norm_pool(x, bias, groups, constants, *relu)[0]


def root_type(x: Tensor) -> torch.dtype:
    """What roots of the spatial norm of x are kept in: float16 has 3 bits more than bfloat16."""
    return torch.float32 if x.dtype == torch.float32 else torch.float16


def _norms(constants: Sequence[float]) -> tuple[Lrn, ...]:
    pairs = zip(constants[::2], constants[1::2], strict=True)
    return tuple(Lrn(WINDOW, alpha, BETA, k) for alpha, k in pairs)


@torch.library.custom_op("alexnet::norm_pool", mutates_args=())
def _norm_pool(
    x: Tensor, bias: Tensor, groups: int, constants: Sequence[float], relu: bool, relu_after: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from alexnet.model import stages_triton  # noqa: PLC0415 - Triton is not everywhere

    norms = _norms(constants)
    return stages_triton.norm_pool_forward(x, bias, groups, norms, (relu, relu_after))


@_norm_pool.register_fake
def _(
    x: Tensor, bias: Tensor, groups: int, constants: Sequence[float], relu: bool, relu_after: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = empty_maps(x, (*x.shape[:2], *_pooled_side(x, *POOL)))
    spatial = len(constants) == 4
    roots = torch.empty_like(x, dtype=root_type(x)) if spatial else x.new_empty(0)
    return y, empty_taps(y, POOL[0], groups), roots


@torch.library.custom_op("alexnet::norm_pool_backward", mutates_args=())
def _norm_pool_backward(
    g: Tensor, saved: Sequence[Tensor], groups: int, constants: Sequence[float], relu: bool
) -> tuple[Tensor, Tensor]:
    from alexnet.model import stages_triton  # noqa: PLC0415 - Triton is not everywhere

    x, bias, taps, roots = saved
    norms = _norms(constants)
    return stages_triton.norm_pool_backward(x, bias, g, taps, roots, groups, norms, relu)


@_norm_pool_backward.register_fake
def _(
    g: Tensor, saved: Sequence[Tensor], groups: int, constants: Sequence[float], relu: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(saved[0]), _sum_of(g)


def _save_maxima(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, *ctx.constants, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, bias, *output[1:])


def _maxima_gradient(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 6
    dx, total = _norm_pool_backward(g, list(ctx.saved_tensors), *ctx.constants)
    return dx, total, None, None, None, None


_norm_pool.register_autograd(_maxima_gradient, setup_context=_save_maxima)


def serves_dropout(x: Tensor) -> bool:
    """Whether `drop` knows units like x."""
    return x.device.type in KERNEL_DEVICES and x.dtype in _POOL_TYPES


@torch.library.custom_op("alexnet::drop", mutates_args=())
def drop(
    x: Tensor, position: Tensor, key: Sequence[int], keep: float, inverted: bool, relu: bool
) -> Tensor:
    """X (N, F) times its mask, which is drawn forward and again backward and never stored.

    Args:
        x: the units of the columns, one column after the other; contiguous.
        position: int64 scalar, the number of the first image in the run.
        key: of seed and layer (dropout.layer_key), first and last + 1 of the columns, and the step
            from one image's number to the next.
        keep: probability of a unit to be kept.
        inverted: whether kept units are divided by `keep`.
        relu: whether x passes a ReLU before.
    """
    x = x.contiguous()
    return _dropped(x, x if relu else None, position, key, keep, inverted)


def _dropped(
    x: Tensor,
    gate: Tensor | None,
    position: Tensor,
    key: Sequence[int],
    keep: float,
    inverted: bool,
) -> Tensor:
    from alexnet.model import dropout_triton  # noqa: PLC0415 - Triton is not everywhere

    start, first, stop, stride = key
    # Rounded to x's type, as a mask of that type is.
    scale = float(torch.tensor(1.0, dtype=x.dtype, device="cpu") / keep) if inverted else 1.0
    columns = range(first, stop)
    return dropout_triton.drop(x, gate, position, start, columns, stride, keep, scale)


@drop.register_fake
def _(
    x: Tensor, position: Tensor, key: Sequence[int], keep: float, inverted: bool, relu: bool
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("alexnet::drop_backward", mutates_args=())
def _drop_backward(
    g: Tensor, y: Tensor, position: Tensor, key: Sequence[int], keep: float, inverted: bool
) -> Tensor:
    return _dropped(g.contiguous(), y, position, key, keep, inverted)


@_drop_backward.register_fake
def _(
    g: Tensor, y: Tensor, position: Tensor, key: Sequence[int], keep: float, inverted: bool
) -> Tensor:
    return torch.empty_like(y)


def _save_position(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, position, *ctx.constants, relu = inputs
    ctx.save_for_backward(position, *([output] if relu else []))


def _drop_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    position, *outputs = ctx.saved_tensors
    if outputs:
        dx = _drop_backward(g, *outputs, position, *ctx.constants)
    else:
        dx = drop(g, position, *ctx.constants, relu=False)
    return dx, None, None, None, None, None


drop.register_autograd(_drop_gradient, setup_context=_save_position)
