# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch.distributed is typed only in part.
"""Several processes that train one network: sums over shares of a batch, and common decisions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def directly(collective: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Call it."""
    collective(*args, **options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicas:
    """This process among `world` that hold the same weights and share each batch.

    Attributes:
        rank: of this process among them.
        world: how many there are.
        group: of torch.distributed; None: all processes.
        processes: of the run in all; more than `world` where columns have processes of their own.
        writes: whether this process writes the files of the run and reports.
        exchange: calls a collective; alexnet.mesh.Team.exchange names a process that has died.
    """

    rank: int = 0
    world: int = 1
    group: Any = None
    processes: int = 1
    writes: bool = True
    exchange: Callable[..., None] = directly

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
        flat = torch.cat([*(g.reshape(-1) * images for g in gradients), count])
        self.exchange(dist.all_reduce, flat, group=self.group)
        flat = flat[:-1] / flat[-1]
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the replicas, in place."""
        if self.world > 1:
            self.exchange(dist.all_reduce, values, group=self.group)
        return values

    def any(self, here: tuple[bool, ...], device: torch.device) -> tuple[bool, ...]:
        """Which of several questions some process of the run answers with yes."""
        if self.processes == 1:
            return here
        votes = torch.tensor([int(vote) for vote in here], device=device)
        self.exchange(dist.all_reduce, votes)
        return tuple(bool(vote) for vote in votes)


ALONE = Replicas()
