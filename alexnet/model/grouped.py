"""The network on one device: columns are groups of a convolution. The oracle for the split.

Letters: N images, C channels, H rows, W columns of pixels, K classes, F units.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.dropout import Dropout
from alexnet.model.norms import local_response_norm, spatial_norm
from alexnet.model.spec import Dense, Layer, ModelConfig, Stage, sizes


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


class Stages(nn.Module):
    """What follows each weight layer (neuron, norms, pooling, dropout), in the order of its row.

    A tensor holds the maps of `columns` side by side. Norms never look across from one column to
    another, unless the config says so: this makes the one-device form equal to separate columns.
    """

    def __init__(self, config: ModelConfig, *, seed: int, columns: range) -> None:
        super().__init__()
        # Plain values: torch.compile cannot carry frozen dataclasses.
        self.then = tuple(row.then for row in config.layers)
        self.act = torch.relu if config.act == "relu" else torch.tanh
        self.lrn, self.spatial = config.lrn, config.spatial
        self.pool = (config.pool_size, config.pool_stride)
        self.groups = len(columns) if config.lrn_across == "own" else 1
        self.dropout = Dropout(config.dropout, config.dropout_kind, seed=seed, columns=columns)

    def forward(self, x: Tensor, number: int) -> Tensor:
        """The output x of layer `number` (0 is the first), as the next layer sees it."""
        for stage in self.then[number]:
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
