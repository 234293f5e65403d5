"""The network as separate columns that exchange activations where the table of layers says so.

Section 3.2 of the paper: half of the maps on each GPU, and every layer of a column sees only its
own column's maps, except where a row says it sees all. Everything about where columns live is in a
`Seam`: both on one device, one on each of two devices, or one in each process
(alexnet.distributed.mesh).

Letters: N images, C channels, H rows, W columns of pixels, K classes, F units. `parts` are the
tensors of the columns of this process, in their order.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alexnet.model.first_layer import network_images
from alexnet.model.grouped import Stages, weight_layer
from alexnet.model.spec import Conv, Layer, ModelConfig, sizes


class Seam(Protocol):
    """Which columns live in this process, on which devices, and how columns exchange."""

    @property
    def columns(self) -> Sequence[int]:
        """Numbers of the columns that live in this process, ascending."""
        ...

    @property
    def devices(self) -> Sequence[torch.device]:
        """The device of each of them."""
        ...

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """For every column of this process the channels of all columns, in order."""
        ...

    def to_first(self, parts: Sequence[Tensor]) -> Tensor:
        """All channels where the first column lives; elsewhere a column's own part."""
        ...

    def publish(self, answer: Tensor, units: int) -> Tensor:
        """The first column's answer (N, units) in every process."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSeam:
    """All columns in this process, each on its device.

    Kernels and copies are queued, not waited for, and two devices compute at once. The copies of an
    exchange run beside one another and begin when what they copy is computed on both devices, which
    compute again when all copies are there.
    """

    devices: tuple[torch.device, ...]  # one a column

    @property
    def columns(self) -> range:
        return range(len(self.devices))

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        if len(set(self.devices)) == 1:
            return [torch.cat(list(parts), dim=1)] * len(parts)
        # All copies before the first concatenation, which would keep the second direction waiting.
        with _copying(self.devices) as move:
            copies = [[move(maps, device) for maps in parts] for device in self.devices]
        return [torch.cat(copied, dim=1) for copied in copies]

    def to_first(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([_move(maps, self.devices[0]) for maps in parts], dim=1)

    def publish(self, answer: Tensor, units: int) -> Tensor:
        return answer


def local_seam(columns: int, devices: Sequence[str | torch.device]) -> LocalSeam:
    """The seam of columns on one device for all, or one per column; ValueError otherwise."""
    if len(devices) not in (1, columns):
        raise ValueError(f"{columns} columns need 1 or {columns} devices, got {list(devices)}.")
    homes = tuple(torch.device(device) for device in devices)
    return LocalSeam(devices=homes * (columns // len(homes)))


def _move(maps: Tensor, device: torch.device) -> Tensor:
    return maps.to(device, non_blocking=True)


@contextmanager
def _copying(
    devices: Sequence[torch.device],
) -> Generator[Callable[[Tensor, torch.device], Tensor]]:
    """A function that moves maps to a device, beside what else it moves in this block.

    torch queues a copy on the current stream of its source, and lets the current streams of both
    devices wait for each other before and after: the copy back would wait for the copy there. So
    each direction has a stream on either device. They begin after what is queued before the block,
    and what is queued after it waits for them; by that order memory is also safe to use again.
    Backward, autograd copies on the streams of the forward pass.
    """
    queues: Any = torch.get_device_module(devices[0])  # torch.cuda
    directions = permutations(dict.fromkeys(devices), 2) if devices[0].type != "cpu" else ()
    streams = {pair: _copy_streams(*pair) for pair in directions}
    for pair, own in streams.items():
        for device, stream in zip(pair, own, strict=True):
            stream.wait_stream(queues.current_stream(device))

    def move(maps: Tensor, device: torch.device) -> Tensor:
        own = streams.get((maps.device, device))
        if own is None:
            return _move(maps, device)
        with queues.stream(own[0]), queues.stream(own[1]):
            return _move(maps, device)

    yield move
    for pair, own in streams.items():
        for device, stream in zip(pair, own, strict=True):
            queues.current_stream(device).wait_stream(stream)


@cache
def _copy_streams(source: torch.device, target: torch.device) -> tuple[torch.Stream, torch.Stream]:
    """Always the same ones: torch keeps freed memory apart by the stream that it was made on."""
    queues: Any = torch.get_device_module(source)
    return queues.Stream(source), queues.Stream(target)


class Column(nn.Module):
    """One column: its share of every weight layer, and the stages between them."""

    def __init__(self, config: ModelConfig, column: int, *, seed: int) -> None:
        super().__init__()
        self.layers = tuple(row.name for row in config.layers)
        for row, size in zip(config.layers, sizes(config), strict=True):
            weight = share(row, size.weight, config, column)
            if weight is not None:
                self.add_module(row.name, weight_layer(row, weight, groups=1))
        self.stages = Stages(config, seed=seed, columns=range(column, column + 1))

    def forward(self, x: Tensor, number: int) -> Tensor:
        """Layer `number` (0 is the first), from what it sees (N, ...) to the end of its stages."""
        return self.stages(self.get_submodule(self.layers[number]), x, number)


def share(
    row: Layer, weight: tuple[int, ...], config: ModelConfig, column: int
) -> tuple[int, ...] | None:
    """Shape of a column's part of a weight: its outputs; the last layer is the first's alone."""
    if row is config.layers[-1]:
        return weight if column == 0 else None
    return (weight[0] // config.columns, *weight[1:])


class Columns(nn.Module):
    """The columns of this process. Parameters are named column0.conv1.weight and so on."""

    def __init__(self, config: ModelConfig, seam: Seam, *, seed: int) -> None:
        super().__init__()
        if config.lrn_across == "all" and config.columns > 1:
            raise ValueError(
                "ModelConfig.lrn_across is 'all': a norm over the maps of both columns needs the "
                "form 'grouped'. Set it to 'own' to split this network."
            )
        self.config = config
        self.layers = tuple(row.name for row in config.layers)
        # Before which hidden layers columns exchange; all of them see the images.
        self.gathers = (False, *(row.sees == "all" for row in config.layers[1:-1]))
        self.classes, self.units = config.classes, config.layers[-2].out
        self.seam = seam
        self.local = [Column(config, column, seed=seed) for column in seam.columns]
        for number, column in zip(seam.columns, self.local, strict=True):
            self.add_module(f"column{number}", column)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) in every process, on the device of its first column."""
        parts = self._hidden(images_NCHW)
        answer = self.seam.to_first(parts)
        if 0 in self.seam.columns:
            answer = self.local[0](answer, len(self.layers) - 1)
        return self.seam.publish(answer, self.classes)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """The last hidden layer (N, F) of all columns, as the last weight layer sees it."""
        features = self.seam.to_first(self._hidden(images_NCHW))
        return self.seam.publish(features, self.units)

    def set_dropout_position(self, position: int) -> None:
        """The number, in the whole run, of the first image of the next batch."""
        for column in self.local:
            column.stages.dropout.set_position(position)

    def share_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a state of all columns, what the columns of this process hold."""
        own = tuple(f"column{number}." for number in self.seam.columns)
        return {name: value for name, value in state.items() if name.startswith(own)}

    def _prepared(self, images_NCHW: Tensor) -> Tensor:
        """Images as the first layer of every column takes them."""
        column = self.local[0]
        first = column.get_submodule(self.layers[0])
        return column.stages.prepare(first, network_images(images_NCHW, self.config), self.config)

    def _hidden(self, images_NCHW: Tensor) -> list[Tensor]:
        images = {
            device: self._prepared(images_NCHW.to(device, non_blocking=True))
            for device in set(self.seam.devices)
        }
        parts = [images[device] for device in self.seam.devices]
        for number, gather in enumerate(self.gathers):
            if gather:
                parts = self.seam.gather(parts)
            parts = [column(x, number) for column, x in zip(self.local, parts, strict=True)]
        return parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """What columns that live apart send each other before one layer, by the network's table.

    Attributes:
        layer: that needs it; "loss" for the logits.
        what: its name in alexnet.distributed.mesh.Team.sent.
        shape: of one image's part, as one process sends it to one other.
        sent: how many times one image's part is sent, forward.
        returns: whether as much comes back with the gradients.
    """

    layer: str
    what: str
    shape: tuple[int, ...]
    sent: int
    returns: bool = True

    @property
    def values(self) -> int:
        """Sent for one image of a training step, by all processes of a replica."""
        return math.prod(self.shape) * self.sent * (1 + self.returns)


def exchanges(config: ModelConfig) -> Iterator[Exchange]:
    """In the order of a forward pass. The logits come last: 2012 left them on the first GPU."""
    peers = config.columns - 1
    shape: tuple[int, ...] = ()
    for row, size in zip(config.layers, sizes(config), strict=True):
        if row is config.layers[-1]:
            yield Exchange(layer=row.name, what="to first", shape=shape, sent=peers)
        elif shape and row.sees == "all":
            sent = config.columns * peers
            yield Exchange(layer=row.name, what="gather", shape=shape, sent=sent)
        side = (size.side, size.side) if isinstance(row, Conv) else ()
        shape = (row.out // config.columns, *side)
    logits = (config.classes,)
    yield Exchange(layer="loss", what="publish", shape=logits, sent=peers, returns=False)
