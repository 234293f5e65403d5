# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""Local response normalisation across channels: section 3.3 of the paper, equal to torch's.

y = x / (k + alpha / size * sum of the squares of `size` neighbouring channels) ** beta, each group
of channels on its own: two groups are the two columns. On a CPU and on CUDA (where Triton is
installed) forward and backward are kernels that keep the input alone; elsewhere the plain formula
runs. bf16 and half inputs are summed in float32 and rounded once.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.model import norms_cpu as lrn_cpu
from alexnet.model.spec import Lrn

_KERNELS = {"cpu": lrn_cpu}
# Triton comes with PyTorch for CUDA; without it the plain formula serves there.
if torch.cuda.is_available() and find_spec("triton"):
    from alexnet.model import norms_triton as lrn_triton

    _KERNELS["cuda"] = lrn_triton


def local_response_norm(x: Tensor, norm: Lrn, *, groups: int = 1) -> Tensor:
    """Normalise x (N, C, ...) over neighbouring channels within each of `groups`.

    The result is laid out as x. ValueError where the channels do not divide into the groups.
    """
    if x.shape[1] % groups:
        raise ValueError(f"{x.shape[1]} channels do not divide into {groups} groups.")
    if x.device.type in _KERNELS:
        return _lrn(x, groups, norm.size, [norm.alpha, norm.beta, norm.k])
    return formula(x, norm, groups=groups)


def formula(x: Tensor, norm: Lrn, *, groups: int = 1) -> Tensor:
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.rest = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
    (x,) = ctx.saved_tensors
    return _lrn_backward(x, g, *ctx.rest), None, None, None


_lrn.register_autograd(_backward, setup_context=_keep)


def _dense(x: Tensor) -> Tensor:
    """The tensor itself where it is contiguous or channels_last, else a contiguous copy."""
    return x.contiguous(memory_format=lrn_cpu.memory_format(x))
