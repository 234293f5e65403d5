"""The network on one device: columns are groups of a convolution. The oracle for the split.

Letters: N images, C channels, H rows, W columns of pixels, K classes, F units.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.cuda_ops import (
    KERNEL_DEVICES,
    bias_relu,
    max_pool,
    norm_pool,
    serves_maps,
    serves_norm_pool,
    serves_pool,
)
from alexnet.model.dropout import Dropout
from alexnet.model.first_layer import (
    Convolution,
    conv_norm_pool,
    network_images,
    padded_images,
    product_type,
    serves_conv_norm_pool,
)
from alexnet.model.norms import local_response_norm, spatial_norm
from alexnet.model.spec import Dense, Layer, ModelConfig, Stage, sizes

Pairs = tuple[tuple[Stage, ...], ...]
# Stages that have a kernel in common where "act" is a ReLU.
PAIRS = (("act", "lrn"), ("act", "pool"), ("pool", "act"), ("act", "dropout"))


class Grouped(nn.Module):
    """All columns on one device. Parameters are named conv1.weight, conv1.bias, ... fc8.bias."""

    def __init__(self, config: ModelConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.layers = tuple(row.name for row in config.layers)
        for row, size in zip(config.layers, sizes(config), strict=True):
            self.add_module(row.name, weight_layer(row, size.weight, size.groups))
        self.stages = Stages(config, seed=seed, columns=range(config.columns))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) of float images in grey levels minus their mean."""
        return self.get_submodule(self.layers[-1])(self.features(images_NCHW))

    def features(self, images_NCHW: Tensor) -> Tensor:
        """The last hidden layer (N, F), as the last weight layer sees it."""
        first = self.get_submodule(self.layers[0])
        x = self.stages.prepare(first, network_images(images_NCHW, self.config), self.config)
        for number, name in enumerate(self.layers[:-1]):
            x = self.stages(self.get_submodule(name), x, number)
        return x.flatten(1)

    def set_dropout_position(self, position: int) -> None:
        """The number, in the whole run, of the first image of the next batch."""
        self.stages.dropout.set_position(position)


class Stages(nn.Module):
    """What follows each weight layer (neuron, norms, pooling, dropout), in the order of its row.

    A tensor holds the maps of `columns` side by side. Norms never look across from one column to
    another, unless the config says so: this makes the one-device form equal to separate columns.
    """

    def __init__(self, config: ModelConfig, *, seed: int, columns: range) -> None:
        super().__init__()
        # Plain values: torch.compile cannot carry frozen dataclasses.
        self.then = tuple(fused_stages(row.then, config.act) for row in config.layers)
        self.act = torch.relu if config.act == "relu" else torch.tanh
        self.lrn, self.spatial = config.lrn, config.spatial
        self.pool = (config.pool_size, config.pool_stride)
        self.groups = len(columns) if config.lrn_across == "own" else 1
        self.dropout = Dropout(config.dropout, config.dropout_kind, seed=seed, columns=columns)
        # Whether the first convolution is one kernel with what follows it, for maps that it knows.
        self.fuse_first = False
        self.pad_end = config.pad_end

    def prepare(self, first: nn.Module, images: Tensor, config: ModelConfig) -> Tensor:
        """The network's images as its first layer takes them."""
        if self.fuse_first:
            rounded = images.to(product_type(images))
            if self.serves_first(first, rounded):
                return rounded
        return padded_images(images, config)

    def serves_first(self, first: nn.Module, images: Tensor) -> TypeGuard[Convolution]:
        """Whether the first layer is one kernel with what follows it."""
        pairs: Pairs = self.then[0][0] if len(self.then[0]) == 1 else ()
        return (
            self.fuse_first
            and isinstance(first, Convolution)
            and len(pairs) == 2
            and pairs[0] == ("lrn",)
            and "pool" in pairs[1]
            and serves_conv_norm_pool(images, first, self.pad_end, self.groups, self.lrn, self.pool)
        )

    def forward(self, layer: nn.Module, x: Tensor, number: int) -> Tensor:
        """From what weight layer `number` (0 is the first) sees to what the next layer sees."""
        if number == 0 and self.serves_first(layer, x):
            relu = "act" in self.then[0][0][-1]
            return conv_norm_pool(x, layer, self.pad_end, self.groups, self.lrn, relu=relu)
        bias = None
        if isinstance(layer, Convolution) and x.device.type in KERNEL_DEVICES:
            # Left to the kernel of what follows: torch adds it in another pass over memory.
            x, bias = layer.convolve(x, None), layer.bias
        else:
            x = layer(x)
        for pairs in self.then[number]:
            x, bias = self.apply_pairs(x, bias, pairs, number), None
        return x if bias is None else _biased(x, bias)

    def apply_pairs(self, x: Tensor, bias: Tensor | None, pairs: Pairs, number: int) -> Tensor:
        """Some stages of layer `number` on x plus a bias: as one kernel where there is one."""
        if len(pairs) > 1 and bias is not None:
            norms = (self.lrn, self.spatial)[: len(pairs) - 1]
            if serves_norm_pool(x, self.groups, norms, self.pool):
                relu = ("act" in pairs[0], "act" in pairs[-1])
                return norm_pool(x, bias, self.groups, norms, relu)
        for pair in pairs:
            x, bias = self._apply_pair(x, bias, pair, number), None
        return x

    def _apply_pair(
        self, x: Tensor, bias: Tensor | None, pair: tuple[Stage, ...], number: int
    ) -> Tensor:
        # A maximum is the same before and after a ReLU: one kernel serves both orders.
        if "pool" in pair and serves_pool(x, self.pool[0]):
            return max_pool(x, bias, *self.pool, relu="act" in pair)
        if bias is not None:
            if pair in (("act",), ("act", "dropout")) and self.act is torch.relu and serves_maps(x):
                x, pair = bias_relu(x, bias), pair[1:]
            else:
                x = _biased(x, bias)
        if pair == ("act", "lrn"):
            return local_response_norm(x, self.lrn, groups=self.groups, relu=True)
        if pair == ("act", "dropout"):
            return self.dropout(x, number, relu=True)
        for stage in pair:
            x = self._apply_stage(x, stage, number)
        return x

    def _apply_stage(self, x: Tensor, stage: Stage, number: int) -> Tensor:
        if stage == "act":
            return self.act(x)
        if stage == "lrn":
            return local_response_norm(x, self.lrn, groups=self.groups)
        if stage == "spatial":
            return spatial_norm(x, self.spatial)
        if stage == "pool":
            return F.max_pool2d(x, *self.pool, ceil_mode=True)
        return self.dropout(x, number)


def _biased(x: Tensor, bias: Tensor) -> Tensor:
    return x + bias.to(x.dtype)[:, None, None]


def fused_stages(stages: tuple[Stage, ...], act: str) -> tuple[Pairs, ...]:
    """The stages of a layer in order, those together that CUDA has as one kernel.

    A ReLU is a pair with the norm or dropout behind it, or with the pooling before or behind it.
    Norms and the pooling behind them are one kernel for some maps, and for others one each.
    """
    pairs: list[tuple[Stage, ...]] = []
    for stage in stages:
        pair = (*pairs[-1], stage) if pairs else (stage,)
        if act == "relu" and pair in PAIRS:
            pairs[-1] = pair
        else:
            pairs.append((stage,))
    fused: list[Pairs] = []
    for pair in pairs:
        before = [stage for own in fused[-1] for stage in own if stage != "act"] if fused else []
        joins = before == ["lrn"] and ("pool" in pair or pair == ("spatial",))
        joins |= before == ["lrn", "spatial"] and "pool" in pair
        if joins and act == "relu":
            fused[-1] = (*fused[-1], pair)
        else:
            fused.append((pair,))
    return tuple(fused)


class GroupedLinear(nn.Module):
    """Dense columns side by side: weight (out, inputs of one), as a grouped convolution's.

    Takes maps (N, C, H, W) or units (N, F); flattened, a column's inputs stand together.
    """

    def __init__(self, inputs: int, out: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out, inputs))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        columns = zip(
            x.chunk(self.groups, 1),
            self.weight.chunk(self.groups),
            self.bias.chunk(self.groups),
            strict=True,
        )
        return torch.cat([F.linear(*column) for column in columns], dim=1)


def weight_layer(row: Layer, weight: tuple[int, ...], groups: int) -> nn.Module:
    """The module of a row for a weight of this shape; it holds nothing until a state is loaded."""
    if isinstance(row, Dense):
        return GroupedLinear(weight[1], weight[0], groups)
    return Convolution(
        weight[1] * groups,
        weight[0],
        row.kernel,
        stride=row.stride,
        padding=row.pad,
        groups=groups,
    )
