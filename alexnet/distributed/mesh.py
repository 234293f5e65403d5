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
from torch.distributed.device_mesh import DeviceMesh

from alexnet.errors import LostConnection, RunError
from alexnet.model.norms_cpu import memory_format

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Team:
    """The processes of a run: their mesh, and this one's device."""

    mesh: DeviceMesh
    device: torch.device
    # A second group of this replica's columns: batches travel while activations are exchanged.
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
        """Run a collective of torch.distributed; LostConnection if another process is gone."""
        try:
            return collective(*args, **options)
        except RuntimeError as error:
            raise LostConnection(
                f"Rank {dist.get_rank()} lost the connection to another process. See the errors "
                "of the other ranks and the report of torchrun, then run the command again to "
                "resume from the last checkpoint."
            ) from error

    def count(self, what: str, tensor: Tensor, receivers: int = 1) -> None:
        """Add `tensor` (N, ...), sent from this process to `receivers` others, to `sent`."""
        self.sent[what, tuple(tensor.shape[1:])] += tensor.nbytes * receivers

    def close(self) -> None:
        """Wait for all processes, then leave their group."""
        self.exchange(dist.barrier)
        dist.destroy_process_group()


def join(device: str = "cpu", *, columns: int = 2, timeout: float = TIMEOUT_SECONDS) -> Team:
    """Join the processes started by torchrun, or by any launcher that sets its variables.

    Neighbouring ranks are the columns of one replica: they exchange the most. If a process dies,
    the others end with LostConnection: at once with gloo, after `timeout` with NCCL. torchrun ends
    them sooner and names the rank that failed first.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL; the device is the local rank's).
        columns: of the network.
        timeout: seconds after which an exchange that is not finished is an error.

    Raises:
        RunError: the number of processes does not divide by the columns.
    """
    local = torch.device(device)
    if local.type == "cuda":
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(local)
    # Votes and headers of batches are CPU tensors: on a GPU they would wait for its queue.
    backend = "cpu:gloo,cuda:nccl" if local.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    world = dist.get_world_size()
    if world % columns:
        dist.destroy_process_group()
        raise RunError(
            f"{world} processes do not make replicas of {columns} columns. Start a multiple of "
            f"{columns}, as in torchrun --nproc-per-node {columns} ..."
        )
    ranks = torch.arange(world).view(-1, columns)
    limit = timedelta(seconds=timeout)
    # The mesh would make groups of its own, with torch's timeout of 30 minutes.
    groups: list[Any] = [
        dist.new_subgroups_by_enumeration(members.tolist(), timeout=limit)[0]
        for members in (ranks.T, ranks, ranks)
    ]
    *axes_groups, feed = groups
    axes = ("replica", "column")
    mesh = DeviceMesh.from_group(axes_groups, local.type, ranks, mesh_dim_names=axes)
    return Team(mesh=mesh, device=local, feed=feed)


def _apply(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replicas:
    """This process among those that hold the same weights and share each batch.

    Attributes:
        team: all processes of the run; None if there is only this one.
    """

    team: Team | None = None

    @property
    def rank(self) -> int:
        """The number of this process's replica."""
        return self.team.replica if self.team else 0

    @property
    def world(self) -> int:
        """The number of replicas."""
        return self.team.replicas if self.team else 1

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of the run and reports."""
        return self.team is None or (self.team.replica, self.team.column) == (0, 0)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the replicas, in place."""
        self.wait(self.start_total(values))
        return values

    def start_total(self, values: Tensor) -> Any:
        """Begin to sum `values` in place; torch's handle for `wait`, None without other replicas.

        What is summed stays untouched until it has been waited for.
        """
        if self.team is None or self.world == 1:
            return None
        group = self.team.mesh.get_group("replica")
        return self.team.exchange(dist.all_reduce, values, group=group, async_op=True)

    def wait(self, work: Any) -> None:
        """Wait for a sum; on a GPU its queue waits, not the host."""
        if self.team is not None and work is not None:
            self.team.exchange(work.wait)

    def any(self, votes: tuple[bool, ...]) -> tuple[bool, ...]:
        """For each vote whether it is true in any process of the run."""
        if self.team is None:
            return votes
        counts = torch.tensor([int(vote) for vote in votes])
        self.team.exchange(dist.all_reduce, counts)
        return tuple(bool(count) for count in counts)


SINGLE_PROCESS = Replicas()


def _uncompiled_apply() -> Callable[..., Any]:
    """A function, not a constant: the compiler takes longer to import than torch."""
    return torch.compiler.disable(_apply)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeamSeam:
    """One column in this process; the others are the other processes of its replica."""

    team: Team
    # torch.compile must not trace exchanges: it compiles what lies between two of them.
    apply: Callable[..., Any] = field(default_factory=_uncompiled_apply, repr=False)

    @property
    def columns(self) -> Sequence[int]:
        return (self.team.column,)

    @property
    def devices(self) -> Sequence[torch.device]:
        return (self.team.device,)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [self.apply(_Gather, share, self.team) for share in parts]

    def to_first(self, parts: Sequence[Tensor]) -> Tensor:
        return self.apply(_ToFirst, parts[0], self.team)

    def publish(self, answer: Tensor, units: int) -> Tensor:
        return self.apply(_Publish, answer, self.team, units)


class _Gather(Function):
    """All columns' parts in each of them; backward adds up the gradients of the columns."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, team: Team) -> Tensor:
        ctx.team, ctx.format = team, memory_format(share)
        own = as_rows(share, ctx.format)
        parts = [torch.empty_like(own) for _ in range(team.columns)]
        team.count("gather", share, team.columns - 1)
        team.exchange(dist.all_gather, parts, own, group=team.group)
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
        received = torch.empty_like(shares)
        team.count("gather, gradient", chunks[0], team.columns - 1)
        team.exchange(dist.all_to_all_single, received, shares, group=team.group)
        return as_maps(received.sum(0), ctx.format), None


class _ToFirst(Function):
    """All columns' parts in the first one alone, as for the last layer in 2012."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, team: Team) -> Tensor:
        ctx.team = team
        own = share.contiguous()
        if team.column:
            team.count("to first", own)
            team.exchange(dist.send, own, group=team.group, group_dst=0)
            return share.view_as(share)
        peers = [torch.empty_like(own) for _ in range(1, team.columns)]
        for column, peer in enumerate(peers, start=1):
            team.exchange(dist.recv, peer, group=team.group, group_src=column)
        return torch.cat([own, *peers], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        team: Team = ctx.team
        if team.column:
            share = grad.contiguous()
            team.exchange(dist.recv, share, group=team.group, group_src=0)
            return share, None
        own, *peers = grad.chunk(team.columns, dim=1)
        for column, peer in enumerate(peers, start=1):
            share = peer.contiguous()
            team.count("to first, gradient", share)
            team.exchange(dist.send, share, group=team.group, group_dst=column)
        return own, None


class _Publish(Function):
    """The first column's answer in all; the gradient is taken from the first column alone."""

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
