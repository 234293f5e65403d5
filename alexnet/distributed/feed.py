"""One loader a replica feeds all its columns: the same images at the same step everywhere.

The process of the first column reads its loader and sends every batch on; while a batch is
trained on, the next one travels, over connections of its own, and the one after that is made. A
loader is what the trainer takes: an iterable of (images, labels), an epoch at a time, with
state_dict and load_state_dict.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.distributed.mesh import Team, as_maps, as_rows
from alexnet.model.norms_cpu import memory_format
from alexnet.training.ahead import Ahead
from alexnet.training.meter import Batch
from alexnet.training.run import Loader

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
AXES = 6  # most axes of a tensor of images: views, and one to spare


@dataclass(frozen=True, kw_only=True, slots=True)
class _Travelling:
    """A batch on its way, and the loader's state once it is handed out."""

    images: Tensor
    labels: Tensor
    layout: torch.memory_format
    state: dict[str, Any]
    works: tuple[Any, ...]


def in_lockstep(loader: Loader | None, team: Team | None) -> "Ahead | Lockstep":
    """What a process trains on: its loader, or the one that the first column's process has."""
    if team is not None:
        return Lockstep(team, loader)
    if loader is None:
        raise ValueError("A process without a team needs a loader of its own.")
    return Ahead(loader)


class Lockstep:
    """The loader of one process of a team; gives every column of a replica the same batches.

    The first column's process passes the loader of its replica, the others None: their state is
    empty, for the first's is the replica's. Enter it, so that no batch is on its way at the end.
    """

    def __init__(self, team: Team, loader: Loader | None) -> None:
        if (loader is None) == (team.column == 0):
            raise ValueError("Lockstep needs a loader in the process of column 0, and only there.")
        self.team = team
        self.loader = Ahead(loader) if loader else None
        self._state = self.loader.state_dict() if self.loader else {}
        self._coming: _Travelling | None = None
        length = torch.tensor([len(self.loader) if self.loader else 0])
        self._send("length", length)
        self._length = int(length.item())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.loader:
            self.loader.close()
        if kind is None:  # else a process may be gone, and what it sends would never come
            self._receive()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch."""
        batches = iter(self.loader) if self.loader else None
        self._coming = self._start(batches)
        while arrived := self._receive():
            self._coming = self._start(batches)
            self._state = arrived.state
            yield as_maps(arrived.images, arrived.layout), arrived.labels
        self._state = self.loader.state_dict() if self.loader else {}

    def state_dict(self) -> dict[str, Any]:
        """The loader's state after the last batch handed out, not the one that travels."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; call it between epochs' iterators, in every process."""
        if self.loader:
            self.loader.load_state_dict(dict(state))
        self._state = dict(state)

    def _start(self, batches: Iterator[Batch] | None) -> _Travelling | None:
        """Begin to send, or to receive, the next batch; None at the end of the epoch."""
        batch = next(batches, None) if batches else None
        header = _described(batch[0] if batch else None)
        self._send("header", header)
        *shape, axes, dtype, order = (int(number) for number in header)
        if not axes:
            return None
        layout = LAYOUTS[order]
        if batch is None:
            images = torch.empty(shape[:axes], dtype=DTYPES[dtype], device=self.team.device)
            labels = torch.empty(shape[0], dtype=torch.int64, device=self.team.device)
        else:
            images = as_rows(batch[0], layout).to(self.team.device, non_blocking=True)
            labels = batch[1].to(self.team.device, non_blocking=True)
        return _Travelling(
            images=images,
            labels=labels,
            layout=layout,
            state=self.loader.state_dict() if self.loader else {},
            works=(
                self._send("images", images, wait=False),
                self._send("labels", labels, wait=False),
            ),
        )

    def _receive(self) -> _Travelling | None:
        """The batch on its way, once it is here; None where none is."""
        coming, self._coming = self._coming, None
        for work in coming.works if coming else ():
            self.team.exchange(work.wait)
        return coming

    def _send(self, what: str, tensor: Tensor, *, wait: bool = True) -> Any:
        """Send from the first column's process to the others; torch's handle where not waited."""
        if self.team.column == 0:
            self.team.count(what, tensor, self.team.columns - 1)
        to = {"group": self.team.feed, "group_src": 0, "async_op": not wait}
        return self.team.exchange(dist.broadcast, tensor, **to)


def _described(images: Tensor | None) -> Tensor:
    """What a receiver must know of a batch: its shape, axes, dtype, layout; zeros are the end."""
    header = torch.zeros(AXES + 3, dtype=torch.int64)
    if images is not None:
        layout = memory_format(images)
        shape = as_rows(images, layout).shape
        header[: len(shape)] = torch.tensor(shape)
        about = (len(shape), DTYPES.index(images.dtype), LAYOUTS.index(layout))
        header[AXES:] = torch.tensor(about)
    return header
