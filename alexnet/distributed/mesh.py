# pyright: basic
# torch.distributed and autograd.Function are typed too loosely for the strict mode.
"""Columns in processes of their own: the seam over an axis of a torch DeviceMesh.

The mesh has two axes, "replica" x "column". The processes of one row are the columns of one
replica and see the same images; the processes of one column hold the same weights and average
their gradients. Two processes are the network of 2012; 2 x N is the same grown to more GPUs.

Every process has the same logits and the same loss, yet the gradient must count once. It comes
from the first column's logits alone (`publish` passes none back), and what `gather` sends back is
the sum over the columns that used a part, which are different uses.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alexnet.distributed.heartbeat import Watch
from alexnet.errors import RunError
from alexnet.model.norms_cpu import memory_format

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """The processes of a run: their mesh, this one's device, and the watch over them."""

    mesh: DeviceMesh
    device: torch.device
    watch: Watch
    # The columns of this replica again, so that batches travel beside activations.
    feed: Any
    # Bytes this process has sent to other columns, by what they were and one image's shape.
    sent: Counter[tuple[str, tuple[int, ...]]] = field(
        default_factory=Counter[tuple[str, tuple[int, ...]]]
    )

    @property
    def column(self) -> int:
        return self.mesh.get_local_rank("column")

    @property
    def replica(self) -> int:
        return self.mesh.get_local_rank("replica")

    @property
    def replicas(self) -> int:
        return self.mesh.size(0)

    @property
    def group(self) -> dist.ProcessGroup:
        """The columns of this replica."""
        return self.mesh.get_group("column")

    @property
    def columns(self) -> int:
        return self.mesh.size(1)

    def exchange(self, collective: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run a collective of torch.distributed; RunError names the process that has died."""
        try:
            return collective(*args, **options)
        except RuntimeError as error:
            rank = dist.get_rank()
            if cause := self.watch.cause():
                raise RunError(f"Rank {rank} ends because of {cause}") from error
            raise RunError(
                f"Rank {rank} lost {self.watch.lost()} during an exchange between "
                "processes. Start the run again: it goes on from its last checkpoint."
            ) from error

    def count(self, what: str, tensor: Tensor, receivers: int = 1) -> None:
        """Note that `tensor` (N, ...) goes from this process to so many others."""
        self.sent[what, tuple(tensor.shape[1:])] += tensor.nbytes * receivers

    def close(self) -> None:
        """Leave after the last step, when all have come this far."""
        self.exchange(dist.barrier)
        self.watch.close()
        dist.destroy_process_group()


def join(device: str = "cpu", *, columns: int = 2, timeout: float = TIMEOUT_SECONDS) -> Team:
    """Join the processes that torchrun (or any that sets its variables) started.

    Neighbouring ranks are the columns of one replica: they exchange the most. A process that dies
    ends the others: within seconds where the exchange notices (gloo), else after `timeout` seconds.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL; the device is the local rank's).
        columns: of the network.
        timeout: seconds of silence after which a process counts as lost.

    Raises:
        RunError: the number of processes does not divide by the columns.
    """
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    # Votes and headers of batches are of the host: on a GPU they would wait for its queue.
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    rank, world = dist.get_rank(), dist.get_world_size()
    if world % columns:
        dist.destroy_process_group()
        raise RunError(
            f"{world} processes do not make replicas of {columns} columns. Start a multiple of "
            f"{columns}: torchrun --nproc-per-node {columns} ..."
        )
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shape, axes = (world // columns, columns), ("replica", "column")
    replicas = [list(range(first, first + columns)) for first in range(0, world, columns)]
    feed, _ = dist.new_subgroups_by_enumeration(replicas)
    return Team(
        mesh=init_device_mesh(place.type, shape, mesh_dim_names=axes),
        device=place,
        watch=Watch(host, port, rank=rank, world=world, timeout=timeout),
        feed=feed,
    )


def _apply(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)


def _out_of_sight() -> Callable[..., Any]:
    """Not at import: the compiler takes longer to load than torch."""
    return torch.compiler.disable(_apply)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeamSeam:
    """One column in this process; the others are the other processes of its replica."""

    team: Team
    # Exchanges are kept from the compiler: it compiles what lies between two.
    apply: Callable[..., Any] = field(default_factory=_out_of_sight, repr=False)

    @property
    def columns(self) -> Sequence[int]:
        return (self.team.column,)

    @property
    def devices(self) -> Sequence[torch.device]:
        return (self.team.device,)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [self.apply(_Gather, part, self.team) for part in parts]

    def to_first(self, parts: Sequence[Tensor]) -> Tensor:
        return self.apply(_ToFirst, parts[0], self.team)

    def publish(self, answer: Tensor, units: int) -> Tensor:
        return self.apply(_Publish, answer, self.team, units)


class _Gather(Function):
    """The parts of all columns for each; back goes the sum of what the columns found."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, team: Team) -> Tensor:
        ctx.team, ctx.format = team, memory_format(part)
        mine = as_rows(part, ctx.format)
        parts = [torch.empty_like(mine) for _ in range(team.columns)]
        team.count("gather", part, team.columns - 1)
        team.exchange(dist.all_gather, parts, mine, group=team.group)
        return as_maps(
            torch.cat(parts, dim=-1 if ctx.format is torch.channels_last else 1), ctx.format
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        team: Team = ctx.team
        # Each column gets its part's gradients and adds them up in order. Not reduce_scatter,
        # which sends twice as much with gloo.
        chunks = grad.chunk(team.columns, dim=1)
        shares = torch.stack([as_rows(chunk, ctx.format) for chunk in chunks])
        mine = torch.empty_like(shares)
        team.count("gather, gradient", chunks[0], team.columns - 1)
        team.exchange(dist.all_to_all_single, mine, shares, group=team.group)
        return as_maps(mine.sum(0), ctx.format), None


class _ToFirst(Function):
    """The parts of all columns in the first; a one-way street, as the last layer's in 2012."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, team: Team) -> Tensor:
        ctx.team = team
        mine = part.contiguous()
        if team.column:
            team.count("to first", mine)
            team.exchange(dist.send, mine, group=team.group, group_dst=0)
            return part.view_as(part)
        others = [torch.empty_like(mine) for _ in range(1, team.columns)]
        for column, other in enumerate(others, start=1):
            team.exchange(dist.recv, other, group=team.group, group_src=column)
        return torch.cat([mine, *others], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        team: Team = ctx.team
        if team.column:
            share = grad.contiguous()
            team.exchange(dist.recv, share, group=team.group, group_src=0)
            return share, None
        mine, *others = grad.chunk(team.columns, dim=1)
        for column, other in enumerate(others, start=1):
            share = other.contiguous()
            team.count("to first, gradient", share)
            team.exchange(dist.send, share, group=team.group, group_dst=column)
        return mine, None


class _Publish(Function):
    """The first column's answer for all; the gradient is the first column's alone."""

    @staticmethod
    def forward(ctx: Any, answer: Tensor, team: Team, units: int) -> Tensor:
        ctx.team, ctx.shape = team, answer.shape
        shared = answer.contiguous() if team.column == 0 else answer.new_empty(len(answer), units)
        if team.column == 0:
            team.count("publish", shared, team.columns - 1)
        team.exchange(dist.broadcast, shared, group=team.group, group_src=0)
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        team: Team = ctx.team
        return (grad if team.column == 0 else grad.new_zeros(ctx.shape)), None, None


def as_rows(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The same values in dense memory; channels come last where the layout has them last."""
    return x.movedim(1, -1).contiguous() if layout is torch.channels_last else x.contiguous()


def as_maps(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The inverse of `as_rows`: channels second again."""
    return x.movedim(-1, 1) if layout is torch.channels_last else x
