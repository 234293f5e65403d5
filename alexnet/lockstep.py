"""One loader a replica feeds all its columns: the same images at the same step everywhere.

The process of the first column reads its loader and sends every batch on; while a batch is
trained on, the next one travels, over connections of its own. A loader is what the trainer takes:
an iterable of (images, labels), an epoch at a time, with state_dict and load_state_dict.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.lrn_cpu import memory_format
from alexnet.mesh import Team, as_maps, as_rows

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
AXES = 6  # most axes of a tensor of images: views, and one to spare


class Loader(Protocol):
    """What the first column reads."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Travelling:
    """A batch on its way, and the loader's state once it is handed out."""

    images: Tensor
    labels: Tensor
    layout: torch.memory_format
    state: dict[str, Any]
    works: tuple[Any, ...]


class Lockstep:
    """The loader of one process of a team; gives every column of a replica the same batches.

    The first column's process passes the loader of its replica, the others None: their state is
    empty, for the first's is the replica's.
    """

    def __init__(self, team: Team, loader: Loader | None) -> None:
        if (loader is None) == (team.column == 0):
            raise ValueError("Lockstep needs a loader in the process of column 0, and only there.")
        self.team = team
        self.loader = loader
        self._state = loader.state_dict() if loader else {}
        length = torch.tensor([len(loader) if loader else 0], device=team.device)
        self._send(length)
        self._length = int(length.item())

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(self.loader) if self.loader else None
        coming = self._start(batches)
        while coming:
            following = self._start(batches)
            for work in coming.works:
                self.team.exchange(work.wait)
            self._state = coming.state
            yield as_maps(coming.images, coming.layout), coming.labels
            coming = following
        self._state = self.loader.state_dict() if self.loader else {}

    def state_dict(self) -> dict[str, Any]:
        """The loader's state after the last batch handed out, not the one that travels."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; call it between epochs' iterators, in every process."""
        if self.loader:
            self.loader.load_state_dict(dict(state))
        self._state = dict(state)

    def _start(self, batches: Iterator[tuple[Tensor, Tensor]] | None) -> _Travelling | None:
        """Begin to send, or to receive, the next batch; None at the end of the epoch."""
        batch = next(batches, None) if batches else None
        header = _described(batch[0] if batch else None).to(self.team.device)
        self._send(header)
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
            works=(self._send(images, wait=False), self._send(labels, wait=False)),
        )

    def _send(self, tensor: Tensor, *, wait: bool = True) -> Any:
        """Send from the first column's process to the others; torch's handle where not waited."""
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
