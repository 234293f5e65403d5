# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""The released code's second norm of layer 2: squares around a place, within its channel.

y = x / (k + alpha * mean of the squares of size x size neighbours) ** beta; beyond the edges are
zeros that count. The paper does not mention it; its "response normalisation" delta includes it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.model.norms_cpu import memory_format
from alexnet.model.spec import Lrn

# Values of one block: avg_pool2d works on whole images, of which two of the full network's layer
# 2 were faster than one or four.
BLOCK = 384 * 1024


def spatial_norm(x: Tensor, norm: Lrn) -> Tensor:
    """Normalise x (N, C, H, W) over neighbouring places; the result is laid out as x.

    On a CPU forward and backward go by blocks that fit the cache and keep the input alone.
    """
    if x.device.type == "cpu":
        return _spatial(x, norm.size, [norm.alpha, norm.beta, norm.k])
    return formula(x, norm)


def formula(x: Tensor, norm: Lrn) -> Tensor:
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.rest = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return _spatial_backward(x, g, *ctx.rest), None, None


_spatial.register_autograd(_backward, setup_context=_keep)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=memory_format(x))


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x, max(BLOCK // x[0].numel(), 1))
