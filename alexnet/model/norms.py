# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""The two norms of the network: local response normalisation, and the code's spatial norm.

Both are y = x / (k + alpha * mean of the squares of the neighbours) ** beta. Neighbours are `size`
channels (section 3.3 of the paper; equal to torch's) or size x size pixels of the same channel (the
released code's second norm of layer 2, which the paper does not mention; its "response
normalisation" delta includes it). Beyond the edges are zeros that count.

Forward and backward are kernels that save only their input, on a CPU and, where Triton is
installed, on CUDA. Elsewhere the plain formula runs. bf16 and half inputs are summed in float32 and
rounded once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.model import norms_cpu
from alexnet.model.cuda_ops import KERNEL_DEVICES
from alexnet.model.norms_cpu import memory_format
from alexnet.model.spec import Lrn

# Values of one block of the spatial norm: avg_pool2d works on whole images, of which two of the
# full network's layer 2 were faster than one or four.
SPATIAL_BLOCK = 384 * 1024

# What the Triton kernels for channels_last know: the window and power of the released code and the
# paper, and groups of so many channels at most.
_WINDOW, _BETA, _GROUP_CHANNELS = 5, 0.75, 128
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def serves_spatial(x: Tensor, norm: Lrn) -> bool:
    """Whether the Triton kernels know the spatial norm of x; elsewhere torch's operations serve."""
    known = norm.size == _WINDOW and norm.beta == _BETA and x.dtype in _TYPES
    return known and memory_format(x) is torch.channels_last


def serves_response(x: Tensor, groups: int, norm: Lrn) -> bool:
    """Whether the Triton kernels for channels_last are the ones for the response norm of x.

    Those of alexnet.model.norms_triton are for every other one: float32, which tensor cores do not
    multiply exactly, float64, NCHW, other windows.
    """
    narrow = x.dtype in _TYPES and x.dtype != torch.float32
    return narrow and serves_spatial(x, norm) and x.shape[1] // groups <= _GROUP_CHANNELS


def local_response_norm(x: Tensor, norm: Lrn, *, groups: int = 1, relu: bool = False) -> Tensor:
    """Normalise x (N, C, ...), or its ReLU, over neighbouring channels within each of `groups`.

    The result is laid out as x. ValueError where the channels do not divide into the groups.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not divide into {groups} groups.")
    on_cuda = x.device.type in KERNEL_DEVICES
    if relu and not (on_cuda and serves_response(x, groups, norm)):
        x, relu = torch.relu(x), False
    if on_cuda or x.device.type == "cpu":
        return _lrn(x, groups, norm.size, [norm.alpha, norm.beta, norm.k], relu)
    return lrn_formula(x, norm, groups=groups)


def lrn_formula(x: Tensor, norm: Lrn, *, groups: int = 1) -> Tensor:
    """The same in operations that every device has; autograd keeps several tensors of x's size."""
    split = x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])
    return F.local_response_norm(split, norm.size, norm.alpha, norm.beta, norm.k).reshape(x.shape)


# Custom operators, because torch.compile must not look inside: it would unroll the blocks.
@torch.library.custom_op("alexnet::lrn", mutates_args=())
def _lrn(x: Tensor, groups: int, size: int, constants: Sequence[float], relu: bool) -> Tensor:
    norm, x = Lrn(size, *constants), _dense(x)
    if x.device.type not in KERNEL_DEVICES:
        return norms_cpu.forward(x, groups, norm)
    if serves_response(x, groups, norm):
        return _channels_last().response_forward(x, groups, norm, relu)
    from alexnet.model import norms_triton  # noqa: PLC0415 - Triton is not everywhere

    return norms_triton.forward(x, groups, norm)


@torch.library.custom_op("alexnet::lrn_backward", mutates_args=())
def _lrn_backward(
    x: Tensor, g: Tensor, groups: int, size: int, constants: Sequence[float], relu: bool
) -> Tensor:
    norm, x = Lrn(size, *constants), _dense(x)
    if x.device.type not in KERNEL_DEVICES:
        return norms_cpu.backward(x, g, groups, norm)
    if serves_response(x, groups, norm):
        return _channels_last().response_backward(x, g, groups, norm, relu)
    from alexnet.model import norms_triton  # noqa: PLC0415 - Triton is not everywhere

    return norms_triton.backward(x, g, groups, norm)


def _channels_last() -> Any:
    from alexnet.model import norms_channels_last  # noqa: PLC0415 - Triton is not everywhere

    return norms_channels_last


@_lrn.register_fake
def _(x: Tensor, groups: int, size: int, constants: Sequence[float], relu: bool) -> Tensor:
    return torch.empty_like(_dense(x))


@_lrn_backward.register_fake
def _(
    x: Tensor, g: Tensor, groups: int, size: int, constants: Sequence[float], relu: bool
) -> Tensor:
    return torch.empty_like(_dense(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.constants = inputs
    ctx.save_for_backward(x)


def _lrn_gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
    (x,) = ctx.saved_tensors
    return _lrn_backward(x, g, *ctx.constants), None, None, None, None


_lrn.register_autograd(_lrn_gradient, setup_context=_save)


def _dense(x: Tensor) -> Tensor:
    """The tensor itself where it is contiguous or channels_last, else a contiguous copy."""
    return x.contiguous(memory_format=memory_format(x))


def spatial_norm(x: Tensor, norm: Lrn) -> Tensor:
    """Normalise x (N, C, H, W) over neighbouring pixels; the result is laid out as x.

    Forward and backward keep the input alone: on a CPU by blocks that fit the cache, on CUDA by
    Triton kernels where they know x.
    """
    on_cuda = x.device.type in KERNEL_DEVICES
    if serves_spatial(x, norm) if on_cuda else x.device.type == "cpu":
        return _spatial(x, norm.size, [norm.alpha, norm.beta, norm.k])
    return spatial_formula(x, norm)


def spatial_formula(x: Tensor, norm: Lrn) -> Tensor:
    """The same in operations that every device has; `pow` is float32 under autocast."""
    return (x * _denominators(x, norm).pow(-norm.beta)).to(x.dtype)


def _denominators(x: Tensor, norm: Lrn) -> Tensor:
    return F.avg_pool2d(x * x, norm.size, 1, norm.size // 2) * norm.alpha + norm.k


def _power(d: Tensor, beta: float) -> Tensor:
    if beta != 0.75:
        return d.pow(-beta)
    root = d.rsqrt()
    return root.sqrt().mul_(root)


# Operators of their own, because torch.compile must not unroll the blocks.
@torch.library.custom_op("alexnet::spatial", mutates_args=())
def _spatial(x: Tensor, size: int, constants: Sequence[float]) -> Tensor:
    norm, x = Lrn(size, *constants), _dense(x)
    if x.device.type in KERNEL_DEVICES:
        return _channels_last().spatial_forward(x, norm)
    y = torch.empty_like(x)
    for x_block, y_block in zip(_blocks(x), _blocks(y), strict=True):
        wide = x_block.to(torch.promote_types(x.dtype, torch.float32))
        torch.mul(wide, _power(_denominators(wide, norm), norm.beta), out=y_block)
    return y


@torch.library.custom_op("alexnet::spatial_backward", mutates_args=())
def _spatial_backward(x: Tensor, g: Tensor, size: int, constants: Sequence[float]) -> Tensor:
    norm, x = Lrn(size, *constants), _dense(x)
    if x.device.type in KERNEL_DEVICES:
        return _channels_last().spatial_backward(x, g, norm)
    dx = torch.empty_like(x)
    g = g.contiguous(memory_format=memory_format(x))
    factor = -2 * norm.alpha * norm.beta
    for x_block, g_block, dx_block in zip(_blocks(x), _blocks(g), _blocks(dx), strict=True):
        wide = x_block.to(torch.promote_types(x.dtype, torch.float32))
        d = _denominators(wide, norm)
        direct = _power(d, norm.beta).mul_(g_block)
        # The window is symmetric: a mean over it is its own transpose.
        mean = F.avg_pool2d((direct * wide).div_(d), size, 1, size // 2)
        torch.addcmul(direct, wide, mean, value=factor, out=dx_block)
    return dx


@_spatial.register_fake
def _(x: Tensor, size: int, constants: Sequence[float]) -> Tensor:
    return torch.empty_like(_dense(x))


@_spatial_backward.register_fake
def _(x: Tensor, g: Tensor, size: int, constants: Sequence[float]) -> Tensor:
    return torch.empty_like(_dense(x))


def _spatial_gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return _spatial_backward(x, g, *ctx.constants), None, None


_spatial.register_autograd(_spatial_gradient, setup_context=_save)


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x, max(SPATIAL_BLOCK // x.shape[1:].numel(), 1))
