"""What stands between the weight layers: neuron, norms, pooling, dropout; for one or more columns.

A tensor holds the maps of `columns` side by side; norms never look across from one to another
(unless the config says so), which makes the one-device form equal to separate columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.dropout import Dropout
from alexnet.lrn import local_response_norm
from alexnet.spatial import spatial_norm
from alexnet.spec import Layer, ModelConfig, Stage


class Stages(nn.Module):
    """Carries the output of a weight layer through the stages of its row, in their order."""

    def __init__(self, config: ModelConfig, *, seed: int, columns: range) -> None:
        super().__init__()
        self.config = config
        self.groups = len(columns) if config.lrn_across == "own" else 1
        self.dropout = Dropout(config.dropout, config.dropout_kind, seed=seed, columns=columns)

    def forward(self, x: Tensor, row: Layer) -> Tensor:
        for stage in row.then:
            x = self._one(x, stage, row)
        return x

    def _one(self, x: Tensor, stage: Stage, row: Layer) -> Tensor:
        config = self.config
        if stage == "act":
            return torch.relu(x) if config.act == "relu" else torch.tanh(x)
        if stage == "lrn":
            return local_response_norm(x, config.lrn, groups=self.groups)
        if stage == "spatial":
            return spatial_norm(x, config.spatial)
        if stage == "pool":
            return F.max_pool2d(x, config.pool_size, config.pool_stride, ceil_mode=True)
        return self.dropout(x, config.layers.index(row))
