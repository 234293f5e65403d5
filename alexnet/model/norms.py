# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""The two norms of the network: local response normalisation, and the code's spatial norm.

Both are y = x / (k + alpha * mean of the squares of the neighbours) ** beta. Neighbours are `size`
channels (section 3.3 of the paper; equal to torch's) or size x size pixels of the same channel (the
released code's second norm of layer 2, which the paper does not mention; its "response
normalisation" delta includes it). Beyond the edges are zeros that count.

Forward and backward are kernels that save only their input: across channels on a CPU and, where
Triton is installed, on CUDA; the spatial norm on a CPU. Elsewhere the plain formula runs. bf16 and
half inputs are summed in float32 and rounded once.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.model import norms_cpu
from alexnet.model.norms_cpu import memory_format
from alexnet.model.spec import Lrn

# Values of one block of the spatial norm: avg_pool2d works on whole images, of which two of the
# full network's layer 2 were faster than one or four.
SPATIAL_BLOCK = 384 * 1024

_KERNELS = {"cpu": norms_cpu}
# Triton comes with PyTorch for CUDA; without it the plain formula serves there.
if torch.cuda.is_available() and find_spec("triton"):
    from alexnet.model import norms_triton

    _KERNELS["cuda"] = norms_triton


def local_response_norm(x: Tensor, norm: Lrn, *, groups: int = 1) -> Tensor:
    """Normalise x (N, C, ...) over neighbouring channels within each of `groups`.

    The result is laid out as x. ValueError where the channels do not divide into the groups.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not divide into {groups} groups.")
    if x.device.type in _KERNELS:
        return _lrn(x, groups, norm.size, [norm.alpha, norm.beta, norm.k])
    return lrn_formula(x, norm, groups=groups)


def lrn_formula(x: Tensor, norm: Lrn, *, groups: int = 1) -> Tensor:
    """The same in operations that every device has; autograd keeps several tensors of x's size."""
    split = x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])
    return F.local_response_norm(split, norm.size, norm.alpha, norm.beta, norm.k).reshape(x.shape)


# Custom operators, because torch.compile must not look inside: it would unroll the blocks.
@torch.library.custom_op("alexnet::lrn", mutates_args=())
def _lrn(x: Tensor, groups: int, size: int, constants: Sequence[float]) -> Tensor:
    return _KERNELS[x.device.type].forward(_dense(x), groups, Lrn(size, *constants))


@torch.library.custom_op("alexnet::lrn_backward", mutates_args=())
def _lrn_backward(
    x: Tensor, g: Tensor, groups: int, size: int, constants: Sequence[float]
) -> Tensor:
    return _KERNELS[x.device.type].backward(_dense(x), g, groups, Lrn(size, *constants))


@_lrn.register_fake
def _(x: Tensor, groups: int, size: int, constants: Sequence[float]) -> Tensor:
    return torch.empty_like(_dense(x))


@_lrn_backward.register_fake
def _(x: Tensor, g: Tensor, groups: int, size: int, constants: Sequence[float]) -> Tensor:
    return torch.empty_like(_dense(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.constants = inputs
    ctx.save_for_backward(x)


def _lrn_gradient(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
    (x,) = ctx.saved_tensors
    return _lrn_backward(x, g, *ctx.constants), None, None, None


_lrn.register_autograd(_lrn_gradient, setup_context=_save)


def _dense(x: Tensor) -> Tensor:
    """The tensor itself where it is contiguous or channels_last, else a contiguous copy."""
    return x.contiguous(memory_format=memory_format(x))


def spatial_norm(x: Tensor, norm: Lrn) -> Tensor:
    """Normalise x (N, C, H, W) over neighbouring places; the result is laid out as x.

    On a CPU forward and backward go by blocks that fit the cache and keep the input alone.
    """
    if x.device.type == "cpu":
        return _spatial(x, norm.size, [norm.alpha, norm.beta, norm.k])
    return spatial_formula(x, norm)


def spatial_formula(x: Tensor, norm: Lrn) -> Tensor:
    """The same in operations that every device has."""
    return x * _denominators(x, norm).pow(-norm.beta)


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
    y = torch.empty_like(x)
    for x_block, y_block in zip(_blocks(x), _blocks(y), strict=True):
        wide = x_block.to(torch.promote_types(x.dtype, torch.float32))
        torch.mul(wide, _power(_denominators(wide, norm), norm.beta), out=y_block)
    return y


@torch.library.custom_op("alexnet::spatial_backward", mutates_args=())
def _spatial_backward(x: Tensor, g: Tensor, size: int, constants: Sequence[float]) -> Tensor:
    norm, x = Lrn(size, *constants), _dense(x)
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
    return torch.split(x, max(SPATIAL_BLOCK // x[0].numel(), 1))
