"""The network as separate columns that meet where the tables say so.

Section 3.2 of the paper: half of the maps on each GPU, every layer of a column seeing its own
column's maps alone, except where a row says it sees all. Everything about where columns live is
in a `Seam`: both on one device, one on each of two devices, or one in each process
(alexnet.distributed.mesh).

Letters: N images, C channels, H rows, W columns of pixels, K classes, F units. `parts` are the
tensors of the columns of this process, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from alexnet.model.grouped import prepared, weight_layer
from alexnet.model.spec import Layer, ModelConfig, sizes
from alexnet.model.stages import Stages


class Seam(Protocol):
    """Which columns live in this process and on which devices, and how columns meet."""

    @property
    def columns(self) -> Sequence[int]: ...

    @property
    def devices(self) -> Sequence[torch.device]: ...

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Give every column here the channels of all columns, in order."""
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

    Kernels and copies are queued, not waited for: two devices work at once, and a copy runs while
    its source already computes the next layer that does not need it.
    """

    devices: tuple[torch.device, ...]  # one a column

    @property
    def columns(self) -> range:
        return range(len(self.devices))

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        if len(set(self.devices)) == 1:
            return [torch.cat(list(parts), dim=1)] * len(parts)
        return [_together(parts, device) for device in self.devices]

    def to_first(self, parts: Sequence[Tensor]) -> Tensor:
        return _together(parts, self.devices[0])

    def publish(self, answer: Tensor, units: int) -> Tensor:
        return answer


def local_seam(columns: int, devices: Sequence[str | torch.device]) -> LocalSeam:
    """The seam of columns on these devices: one for all, or one each. ValueError otherwise."""
    if len(devices) not in (1, columns):
        raise ValueError(f"{columns} columns need 1 or {columns} devices, got {list(devices)}.")
    places = tuple(torch.device(device) for device in devices)
    return LocalSeam(devices=places * (columns // len(places)))


def _together(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat([part.to(device, non_blocking=True) for part in parts], dim=1)


class Column(nn.Module):
    """One column: its share of every weight layer, and what stands between the layers."""

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
        return self.stages(self.get_submodule(self.layers[number])(x), number)


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
        # Before which hidden layers columns meet; the images are everyone's.
        self.meets = (False, *(row.sees == "all" for row in config.layers[1:-1]))
        self.classes, self.units = config.classes, config.layers[-2].out
        self.seam = seam
        self.here = [Column(config, column, seed=seed) for column in seam.columns]
        for number, column in zip(seam.columns, self.here, strict=True):
            self.add_module(f"column{number}", column)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K) in every process, on the device of its first column."""
        parts = self._hidden(images_NCHW)
        answer = self.seam.to_first(parts)
        if 0 in self.seam.columns:
            answer = self.here[0](answer, len(self.layers) - 1)
        return self.seam.publish(answer, self.classes)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """The last hidden layer (N, F) of all columns, as the last weight layer sees it."""
        whole = self.seam.to_first(self._hidden(images_NCHW))
        return self.seam.publish(whole, self.units)

    def set_dropout_position(self, position: int) -> None:
        """The number, in the whole run, of the first image of the next batch."""
        for column in self.here:
            column.stages.dropout.set_position(position)

    def share_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a state of all columns, what the columns of this process hold."""
        mine = tuple(f"column{number}." for number in self.seam.columns)
        return {name: value for name, value in state.items() if name.startswith(mine)}

    def _hidden(self, images_NCHW: Tensor) -> list[Tensor]:
        images = {
            device: prepared(images_NCHW.to(device, non_blocking=True), self.config)
            for device in set(self.seam.devices)
        }
        parts = [images[device] for device in self.seam.devices]
        for number, meets in enumerate(self.meets):
            if meets:
                parts = self.seam.gather(parts)
            parts = [column(part, number) for column, part in zip(self.here, parts, strict=True)]
        return parts
