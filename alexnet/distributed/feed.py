"""One loader a replica feeds all its columns: the same images at the same step everywhere.

The process of the first column reads its loader and sends every batch on. While a batch is trained
on, the next one travels, in a process group of its own.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet.distributed.mesh import Team, as_maps, as_rows
from alexnet.model.norms_cpu import memory_format

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
AXES = 6  # most axes of a tensor of images: views, and one to spare

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), labels int64 (N,)


class Loader(Protocol):
    """Batches of the rest of an epoch, and a state that says where the sequence stands.

    The state counts the batches handed out, not those that a loader has prefetched.
    """

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]:
        """Where the sequence stands, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the last batch of a state."""
        ...


@contextmanager
def shared_loader(loader: Loader | None, team: Team | None) -> Generator[Loader]:
    """What this process trains on: its own loader, or that of its replica's first column."""
    if team is not None:
        with Lockstep(team, loader) as lockstep:
            yield lockstep
    elif loader is None:
        raise ValueError("A process without a team needs a loader of its own.")
    else:
        yield loader


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transfer:
    """A batch on its way, and the loader's state once it is handed out."""

    images: Tensor
    labels: Tensor
    layout: torch.memory_format
    state: dict[str, Any]
    works: tuple[Any, ...]


class Lockstep:
    """The loader of one process of a team; gives every column of a replica the same batches.

    The process of the first column passes the loader of its replica, the others None, and their
    state is empty: the first one's is the replica's. Enter it, so that it ends with no batch on
    its way.
    """

    def __init__(self, team: Team, loader: Loader | None) -> None:
        if (loader is None) == (team.column == 0):
            raise ValueError("Lockstep needs a loader in the process of column 0, and only there.")
        self.team = team
        self.loader = loader
        self._state = self._loader_state()
        self._in_flight: _Transfer | None = None
        # On a GPU batches are made and sent on a stream of their own: on that of the steps, a step
        # would wait for the batch behind its own. (torch.cuda: torch has such modules by name.)
        device = team.device
        self._queues: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._side = self._queues and self._queues.Stream(device)
        length = torch.tensor([len(loader) if loader else 0])
        self._send("length", length)
        self._length = int(length.item())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error the sender may be gone, and the batch would never arrive.
        if kind is None:
            self._receive()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch."""
        batches = iter(self.loader) if self.loader else None
        self._in_flight = self._start_beside(batches)
        while arrived := self._receive():
            # The next batch starts before this one is trained on, so that it travels meanwhile.
            self._in_flight = self._start_beside(batches)
            self._state = arrived.state
            yield as_maps(arrived.images, arrived.layout), arrived.labels
        self._state = self._loader_state()

    def state_dict(self) -> dict[str, Any]:
        """The loader's state after the last batch handed out, not the one in flight."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; call it between epochs, in every process."""
        if self.loader:
            self.loader.load_state_dict(dict(state))
        self._state = dict(state)

    def _loader_state(self) -> dict[str, Any]:
        return self.loader.state_dict() if self.loader else {}

    def _start_beside(self, batches: Iterator[Batch] | None) -> _Transfer | None:
        with self._queues.stream(self._side) if self._queues else nullcontext():
            return self._start(batches)

    def _start(self, batches: Iterator[Batch] | None) -> _Transfer | None:
        """Begin to send, or to receive, the next batch; None at the end of the epoch."""
        # A header first: receivers do not know the size of a batch, nor whether there is one.
        batch = next(batches, None) if batches else None
        header = _header(batch[0] if batch else None)
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
        return _Transfer(
            images=images,
            labels=labels,
            layout=layout,
            state=self._loader_state(),
            works=(
                self._send("images", images, wait=False),
                self._send("labels", labels, wait=False),
            ),
        )

    def _receive(self) -> _Transfer | None:
        """The batch in flight, once it has arrived; None if there is none."""
        transfer, self._in_flight = self._in_flight, None
        if transfer is None:
            return None
        for work in transfer.works:
            self.team.exchange(work.wait)
        if self._queues:
            current = self._queues.current_stream(self.team.device)
            for tensor in (transfer.images, transfer.labels):
                tensor.record_stream(current)  # the memory was allocated on the other one
        return transfer

    def _send(self, what: str, tensor: Tensor, *, wait: bool = True) -> Any:
        """Send from the first column's process to the others; torch's handle if not waited for."""
        if self.team.column == 0:
            self.team.count(what, tensor, self.team.columns - 1)
        options = {"group": self.team.feed, "group_src": 0, "async_op": not wait}
        return self.team.exchange(dist.broadcast, tensor, **options)


def _header(images: Tensor | None) -> Tensor:
    """What a receiver must know of a batch: shape, axes, dtype, layout; zeros mark the end."""
    header = torch.zeros(AXES + 3, dtype=torch.int64)
    if images is not None:
        layout = memory_format(images)
        shape = as_rows(images, layout).shape
        header[: len(shape)] = torch.tensor(shape)
        kind = (len(shape), DTYPES.index(images.dtype), LAYOUTS.index(layout))
        header[AXES:] = torch.tensor(kind)
    return header
