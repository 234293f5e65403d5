# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch.distributed is typed only in part.
"""Several processes that train one network: sums over shares of a batch, and common decisions."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.distributed.mesh import Team


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicas:
    """This process among those that hold the same weights and share each batch.

    Attributes:
        team: all processes of the run; None: this one is alone.
    """

    team: Team | None = None

    @property
    def rank(self) -> int:
        """Of this process's replica."""
        return self.team.replica if self.team else 0

    @property
    def world(self) -> int:
        """How many replicas there are."""
        return self.team.replicas if self.team else 1

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of the run and reports."""
        return self.team is None or (self.team.replica, self.team.column) == (0, 0)

    def average_gradients(self, optimizer: torch.optim.Optimizer, images: int) -> None:
        """Turn gradients of mean losses over shares into that of the mean over the whole batch.

        `images` is the size of this process's share; shares may differ by one.
        """
        if self.world == 1:
            return
        gradients: list[Tensor] = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        count = gradients[0].new_tensor([float(images)])
        flat = self.total(torch.cat([*(g.reshape(-1) * images for g in gradients), count]))
        flat = flat[:-1] / flat[-1]
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the replicas, in place."""
        if self.team and self.world > 1:
            group = self.team.mesh.get_group("replica")
            self.team.exchange(dist.all_reduce, values, group=group)
        return values

    def any(self, here: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which of several questions some process of the run answers with yes."""
        if self.team is None:
            return here
        votes = torch.tensor([int(vote) for vote in here])
        self.team.exchange(dist.all_reduce, votes)
        return tuple(bool(vote) for vote in votes)


ALONE = Replicas()
