"""The network on one device: columns are groups of a convolution. The oracle for the split.

Letters: N images, C channels, H rows, W columns of pixels, K classes, F units.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.spec import Dense, Layer, ModelConfig, sizes
from alexnet.model.stages import Stages


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
        x = prepared(images_NCHW, self.config)
        for number, name in enumerate(self.layers[:-1]):
            x = self.stages(self.get_submodule(name)(x), number)
        return x

    def set_dropout_position(self, position: int) -> None:
        """The number, in the whole run, of the first image of the next batch."""
        self.stages.dropout.set_position(position)


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
        parts = zip(
            x.chunk(self.groups, 1),
            self.weight.chunk(self.groups),
            self.bias.chunk(self.groups),
            strict=True,
        )
        return torch.cat([F.linear(*part) for part in parts], dim=1)


def weight_layer(row: Layer, weight: tuple[int, ...], groups: int) -> nn.Module:
    """The module of a row for a weight of this shape; it holds nothing until a state is loaded."""
    if isinstance(row, Dense):
        return GroupedLinear(weight[1], weight[0], groups)
    return nn.Conv2d(
        weight[1] * groups,
        weight[0],
        row.kernel,
        stride=row.stride,
        padding=row.pad,
        groups=groups,
    )


def prepared(images_NCHW: Tensor, config: ModelConfig) -> Tensor:
    """Images as conv1 takes them: padded at the right and the bottom, divided by `input_sd`."""
    expected = (3, config.crop, config.crop)
    if images_NCHW.shape[1:] != expected:
        raise ValueError(
            f"This network takes images (N, 3, {config.crop}, {config.crop}), got "
            f"{tuple(images_NCHW.shape)}. Crop to its size, or set ModelConfig.crop."
        )
    if config.input_sd != (1.0, 1.0, 1.0):
        images_NCHW = images_NCHW / images_NCHW.new_tensor(config.input_sd)[:, None, None]
    if config.pad_end:
        images_NCHW = F.pad(images_NCHW, (0, config.pad_end, 0, config.pad_end))
    return images_NCHW
