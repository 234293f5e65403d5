# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""Images and the convolution that sees them: what CUDA has instead of a shape that is slow on it.

A convolution of 11 x 11 with stride 4 over three channels leaves most of a tensor core idle. Either
images come as blocks, or the convolution is a kernel of our own with all that follows it
(alexnet.model.first_triton).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.cuda_ops import BETA, KERNEL_DEVICES, POOL, WINDOW, empty_maps, empty_taps
from alexnet.model.spec import Conv, Lrn, ModelConfig, pooled

# What `conv_norm_pool` knows: colors, kernel and stride of conv1, and what its tiles hold.
COLORS, KERNEL, STRIDE = 3, 11, 4
TERMS = 368  # of a sum, see first_triton
_CHANNELS, _COLUMNS = 64, 64
_HOPPER = 9  # the tensor cores and registers of others need other tiles


class Convolution(nn.Conv2d):
    """A convolution whose images CUDA may be given as blocks, see `blocks_of_images`."""

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.bias)

    def convolve(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with this bias, or with none."""
        if input.shape[1] == self.in_channels:
            return self._conv_forward(input, self.weight, bias)
        return F.conv2d(input, blocks_of_weight(self.weight, self.stride[0]), bias)


def network_images(images_NCHW: Tensor, config: ModelConfig) -> Tensor:
    """Images as the network takes them: divided by `input_sd`, in the type of its products.

    ValueError if they have another shape.
    """
    expected = (3, config.crop, config.crop)
    if images_NCHW.shape[1:] != expected:
        raise ValueError(
            f"This network takes images (N, 3, {config.crop}, {config.crop}), got "
            f"{tuple(images_NCHW.shape)}. Crop to its size, or set ModelConfig.crop."
        )
    if config.input_sd != (1.0, 1.0, 1.0):
        # Filled, not copied from the host: a CUDA graph may not copy. In float32 at least, in which
        # the quotient is then too: bfloat16 would change an sd by up to 1/256.
        dtype = torch.promote_types(images_NCHW.dtype, torch.float32)
        sd = torch.cat([images_NCHW.new_full((1, 1, 1), sd, dtype=dtype) for sd in config.input_sd])
        images_NCHW = images_NCHW / sd
    return images_NCHW


def product_type(images: Tensor) -> torch.dtype:
    """The type in which a convolution takes images: autocast's, where it is on."""
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype


def padded_images(images: Tensor, config: ModelConfig) -> Tensor:
    """Images with `pad_end` zeros at the right and the bottom; in channels_last on CUDA as blocks.

    Blocks are in the type of autocast.
    """
    row = config.layers[0]
    if (
        isinstance(row, Conv)
        and row.stride > 1
        and images.device.type in KERNEL_DEVICES
        and images.is_contiguous(memory_format=torch.channels_last)
    ):
        return blocks_of_images(images, row, config.pad_end, product_type(images))
    if config.pad_end:
        images = F.pad(images, (0, config.pad_end, 0, config.pad_end))
    return images


def blocks_of_images(images: Tensor, row: Conv, pad_end: int, dtype: torch.dtype) -> Tensor:
    """Images (N, C, H, H) padded for `row`, a block of stride x stride pixels in the channels.

    (N, C * stride ** 2, B, B) in channels_last. A convolution of 11 x 11 with stride 4 over three
    channels is one of 3 x 3 with stride 1 over 48, a shape that tensor cores are made for: the same
    sums, and 19% more products with zeros. One pass makes blocks, padding and type.
    """
    side, step = images.shape[-1], row.stride
    outputs = (side + pad_end + 2 * row.pad - row.kernel) // step + 1
    blocks = outputs - 1 + -(-row.kernel // step)
    if row.pad or side % step or side > blocks * step:
        end = blocks * step - side - row.pad
        images = F.pad(images, (row.pad, end, row.pad, end))
    filled = images.shape[-1] // step
    out = images.new_empty((len(images), blocks, blocks, images.shape[1], step, step), dtype=dtype)
    rows, border = out.narrow(1, 0, filled), blocks - filled
    rows.narrow(2, 0, filled).copy_(_split_sides(images, step).permute(0, 2, 4, 1, 3, 5))
    rows.narrow(2, filled, border).zero_()
    out.narrow(1, filled, border).zero_()
    return out.flatten(3).permute(0, 3, 1, 2)


def blocks_of_weight(weight: Tensor, stride: int) -> Tensor:
    """A weight (F, C, K, K) of that stride as one of stride 1 for `blocks_of_images`."""
    end = -weight.shape[-1] % stride
    split = _split_sides(F.pad(weight, (0, end, 0, end)), stride)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).permute(0, 3, 1, 2)


def _split_sides(x: Tensor, step: int) -> Tensor:
    """(N, C, H, W) as (N, C, H / step, step, W / step, step)."""
    images, channels, height, width = x.shape
    return x.view(images, channels, height // step, step, width // step, step)


def serves_conv_norm_pool(
    images: Tensor, first: Convolution, pad_end: int, groups: int, norm: Lrn, pool: tuple[int, int]
) -> bool:
    """Whether `conv_norm_pool` knows these images, this convolution, norm and pooling.

    It gives images no gradient.
    """
    side = images.shape[-1]
    return (
        images.device.type in KERNEL_DEVICES
        and _is_hopper(images.device)
        and images.dtype == torch.bfloat16
        and images.is_contiguous(memory_format=torch.channels_last)
        and not images.requires_grad
        and (images.shape[1], *first.kernel_size) == (COLORS, KERNEL, KERNEL)
        and first.stride == (STRIDE, STRIDE)
        and first.padding == (0, 0)
        and first.bias is not None
        and first.out_channels <= groups * _CHANNELS
        and side % STRIDE == 0  # so that four values are loaded at once
        and 3 <= output_side(side, pad_end) <= _COLUMNS
        and (norm.size, norm.beta) == (WINDOW, BETA)
        and pool == POOL
    )


def _is_hopper(device: torch.device) -> bool:
    """Whether a GPU is one; what is none has no other kernels to offer."""
    if device.type != "cuda":
        return True
    # AMD's have numbers of their own.
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == _HOPPER


def output_side(side: int, pad_end: int) -> int:
    """Rows and columns of conv1's output for images of so many, and zeros behind them."""
    return (side + pad_end - KERNEL) // STRIDE + 1


def conv_norm_pool(
    images: Tensor, first: Convolution, pad_end: int, groups: int, norm: Lrn, *, relu: bool
) -> Tensor:
    """Maxima (3 x 3, stride 2, ceil_mode) of the response norm of a convolution of images.

    Args:
        images: see `serves_conv_norm_pool`.
        first: the convolution.
        pad_end: zeros that follow the images at the right and the bottom.
        groups: of channels that the norm does not mix.
        norm: of the convolution with its bias.
        relu: whether a ReLU stands next to the pooling.
    """
    sizes, constants = (output_side(images.shape[-1], pad_end), groups), (norm.alpha, norm.k)
    return _conv_norm_pool(images, first.weight, cast(Tensor, first.bias), sizes, constants, relu)[
        0
    ]


@torch.library.custom_op("alexnet::conv_norm_pool", mutates_args=())
def _conv_norm_pool(
    images: Tensor, weight: Tensor, bias: Tensor, sizes: Sequence[int], constants: Sequence[float],
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from alexnet.model import first_triton  # noqa: PLC0415 - Triton is not everywhere

    return first_triton.forward(images, weight, bias, sizes, _norm(constants), relu)


@_conv_norm_pool.register_fake
def _(
    images: Tensor, weight: Tensor, bias: Tensor, sizes: Sequence[int], constants: Sequence[float],
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    side, groups = sizes
    rows = pooled(side, *POOL)
    y = empty_maps(images, (len(images), len(weight), rows, rows))
    return y, empty_taps(y, POOL[0], groups), images.new_empty(TERMS, len(weight))


def _norm(constants: Sequence[float]) -> Lrn:
    alpha, k = constants
    return Lrn(WINDOW, alpha, BETA, k)


@torch.library.custom_op("alexnet::conv_norm_pool_backward", mutates_args=())
def _conv_norm_pool_backward(
    g: Tensor, saved: Sequence[Tensor], sizes: Sequence[int], constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    from alexnet.model import first_triton  # noqa: PLC0415 - Triton is not everywhere

    return first_triton.backward(g, saved, sizes, _norm(constants))


@_conv_norm_pool_backward.register_fake
def _(
    g: Tensor, saved: Sequence[Tensor], sizes: Sequence[int], constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    _, weight, bias, *_ = saved
    return torch.empty_like(weight), torch.empty_like(bias)


def _save_images(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    images, weight, bias, *ctx.constants, _ = inputs
    ctx.set_materialize_grads(False)  # the maxima alone have a gradient
    ctx.save_for_backward(images, weight, bias, *output[1:])


def _weight_gradient(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    weight, bias = (
        (None, None)
        if g is None
        else _conv_norm_pool_backward(g, list(ctx.saved_tensors), *ctx.constants)
    )
    return None, weight, bias, None, None, None


_conv_norm_pool.register_autograd(_weight_gradient, setup_context=_save_images)
