# pyright: reportUnknownMemberType=false
# torch.library types the methods of an operator only in part.
"""Dropout whose masks are a function of seed, layer, column, unit and image, not of a generator.

So the one-device form, two columns and any number of replicas drop the same units of the same
images, a resumed run drops what an unstopped one would have, and CPU and GPU agree.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexnet.model.cuda_ops import drop, serves_dropout

# The two multipliers and the shift of MurmurHash3's 64-bit finaliser, as signed integers.
_FIRST = 0xFF51AFD7ED558CCD - 2**64
_SECOND = 0xC4CEB9FE1A85EC53 - 2**64
# Keeps the 31 bits that a logical shift by 33 would leave: torch's shift repeats the sign.
_LOW = (1 << 31) - 1
# An odd constant (2**64 divided by the golden ratio) spreads consecutive numbers over all bits.
_SPREAD = 0x9E3779B97F4A7C15 - 2**64


def mix(x: Tensor) -> Tensor:
    """A bijection of int64 after which every bit depends on all the bits of x."""
    x = (x ^ ((x >> 33) & _LOW)) * _FIRST
    x = (x ^ ((x >> 33) & _LOW)) * _SECOND
    return x ^ ((x >> 33) & _LOW)


def layer_key(seed: int, layer: int) -> int:
    """What all units of a layer have in common: `mix` of seed and layer, by numbers of Python."""
    x = (seed * _SPREAD + layer) % 2**64
    for factor in (_FIRST, _SECOND):
        x = (x ^ (x >> 33)) * factor % 2**64
    x ^= x >> 33
    return x - 2**64 if x >= 2**63 else x


def keep_mask(images: Tensor, units: Tensor, probability: float) -> Tensor:
    """Bool (N, F): which unit of which image is kept, each with `probability`.

    Args:
        images: int64 (N,), one number an image of the whole run.
        units: int64 (F,), keys as `unit_keys` makes them.
        probability: of being kept.
    """
    drawn = (mix(mix(images * _SPREAD)[:, None] ^ units) >> 33) & _LOW
    return drawn < round(probability * 2**31)


def unit_keys(seed: int, layer: int, columns: range, units: int, device: torch.device) -> Tensor:
    """int64 (columns * units,): a key for every unit of a layer, a column after the other."""
    unit = torch.arange(units, device=device)
    column = torch.arange(columns.start, columns.stop, device=device)[:, None]
    return mix(mix(layer_key(seed, layer) + column * _SPREAD) + unit * _SPREAD).flatten()


# An operator of its own: what torch.compile of torch 2.13 makes of these shifts and products for a
# CPU computes other bits.
@torch.library.custom_op("alexnet::dropout_mask", mutates_args=())
def _mask(position: Tensor, key: Sequence[int], size: Sequence[int], keep: float) -> Tensor:
    seed, layer, first, stop, stride = key
    images = position + torch.arange(size[0], device=position.device) * stride
    units = size[1] // (stop - first)
    keys = unit_keys(seed, layer, range(first, stop), units, position.device)
    return keep_mask(images, keys, keep)


@_mask.register_fake
def _(position: Tensor, key: Sequence[int], size: Sequence[int], keep: float) -> Tensor:
    return position.new_empty((size[0], size[1]), dtype=torch.bool)


class Dropout(nn.Module):
    """Drops units with a probability; which ones depends on `set_position`, called each step.

    Kind "mask" leaves kept units as they are and scales by 1 - p in use (2012); "inverted" divides
    kept units by 1 - p in training (PyTorch).
    """

    position: Tensor

    def __init__(self, probability: float, kind: str, *, seed: int, columns: range) -> None:
        super().__init__()
        self.keep = 1.0 - probability
        self.inverted = kind == "inverted"
        self.seed = seed
        self.columns = columns
        self.stride = 1
        # A tensor, so that compiled code and CUDA graphs read it anew each step.
        self.register_buffer("position", torch.zeros((), dtype=torch.int64), persistent=False)

    def set_position(self, position: int, stride: int = 1) -> None:
        """The number, in the whole run, of the first image of the next batch.

        `stride` is the step to the number of the next image: replica r of W that takes each W-th
        image of a batch, from r on, sets the batch's number + r and W, and drops what one process
        would have dropped.
        """
        self.position.fill_(position)
        self.stride = stride

    def forward(self, x: Tensor, layer: int, *, relu: bool = False) -> Tensor:
        """Drop of x (N, F, ...), the output of layer number `layer`, its columns side by side.

        With `relu`, of the ReLU of x.
        """
        own = (self.columns.start, self.columns.stop, self.stride)
        if self.training and self.keep < 1.0 and serves_dropout(x):
            key = (layer_key(self.seed, layer), *own)
            dropped = drop(x.flatten(1), self.position, key, self.keep, self.inverted, relu)
            return dropped.view(x.shape)
        x = torch.relu(x) if relu else x
        if self.keep == 1.0:
            return x
        if not self.training:
            return x if self.inverted else x * self.keep
        size = (len(x), x.shape[1:].numel())
        keep_units = _mask(self.position, (self.seed, layer, *own), size, self.keep)
        mask = keep_units.view(x.shape).to(x.dtype)
        return x * (mask / self.keep if self.inverted else mask)
