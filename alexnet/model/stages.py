"""What stands between the weight layers: neuron, norms, pooling, dropout; for one or more columns.

A tensor holds the maps of `columns` side by side; norms never look across from one to another
(unless the config says so), which makes the one-device form equal to separate columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.dropout import Dropout
from alexnet.model.norms import local_response_norm
from alexnet.model.spatial import spatial_norm
from alexnet.model.spec import ModelConfig, Stage


class Stages(nn.Module):
    """Carries the output of each weight layer through the stages of its row, in their order."""

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
            x = self._one(x, stage, number)
        return x

    def _one(self, x: Tensor, stage: Stage, number: int) -> Tensor:
        if stage == "act":
            return self.act(x)
        if stage == "lrn":
            return local_response_norm(x, self.lrn, groups=self.groups)
        if stage == "spatial":
            return spatial_norm(x, self.spatial)
        if stage == "pool":
            return F.max_pool2d(x, *self.pool, ceil_mode=True)
        return self.dropout(x, number)
