"""The networks as one writes them with torch's own layers: the floor of `alexprep bench step`."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.spec import Dense, ModelConfig, sizes


def plain(config: ModelConfig) -> nn.Sequential:
    """A network of this project as one writes it with torch's layers."""
    modules: list[nn.Module] = [nn.ZeroPad2d((0, config.pad_end, 0, config.pad_end))]
    stages: dict[str, Callable[[], nn.Module]] = {
        "act": nn.ReLU,
        "lrn": partial(ColumnNorm, config),
        "spatial": partial(SpatialNorm, config),
        "pool": partial(nn.MaxPool2d, config.pool_size, config.pool_stride, ceil_mode=True),
        "dropout": partial(nn.Dropout, config.dropout),
    }
    for layer, size in zip(config.layers, sizes(config), strict=True):
        inputs = size.weight[1] * size.groups
        if isinstance(layer, Dense):
            modules += [nn.Flatten(), nn.Linear(inputs, layer.out)]
        else:
            sides = (layer.kernel, layer.stride, layer.pad)
            modules.append(nn.Conv2d(inputs, layer.out, *sides, groups=size.groups))
        modules += [stages[stage]() for stage in layer.then]
    return nn.Sequential(*modules)


class ColumnNorm(nn.Module):
    """One nn.LocalResponseNorm over each column."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.columns = config.columns
        self.norm = nn.LocalResponseNorm(*config.lrn)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.chunk(self.columns, 1)], dim=1)


class SpatialNorm(nn.Module):
    """The released code's second norm, with torch's pooling."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.constants = config.spatial

    def forward(self, x: Tensor) -> Tensor:
        size, alpha, beta, k = self.constants
        return x / (k + alpha * F.avg_pool2d(x * x, size, 1, size // 2)).pow(beta)
