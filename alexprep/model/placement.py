"""Where a network lives: one device, a column on each of several, or a column in each process.

    alexprep train ... --devices cpu | cuda:0 | cuda:0,cuda:1
    torchrun --nproc-per-node 4 -m alexprep train ... --devices cuda     columns x replicas

Under torchrun neighbouring processes are the columns of one replica, and the replicas share each
batch. All processes must see the folder of the run.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

import alexnet
from alexnet.distributed.mesh import SINGLE_PROCESS, Replicas, join
from alexnet.errors import RunError
from alexnet.model.spec import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The devices of this process, and its rank among the processes of the run."""

    devices: tuple[str, ...]
    replicas: Replicas = SINGLE_PROCESS

    @property
    def reads(self) -> bool:
        """Whether this process opens loaders; other columns are fed by the first one's process."""
        return self.replicas.team is None or self.replicas.team.column == 0

    def build(self, config: ModelConfig, seed: int) -> nn.Module:
        """The network on these devices."""
        if self.replicas.team is not None:
            return alexnet.build(config, form="columns", team=self.replicas.team, seed=seed)
        form = "columns" if len(self.devices) > 1 else "grouped"
        return alexnet.build(config, form=form, devices=self.devices, seed=seed)

    def barrier(self) -> None:
        """Wait until all processes of the run are here."""
        self.replicas.any((False,))

    def text(self) -> str:
        """For the log."""
        team = self.replicas.team
        if team is None:
            return " and ".join(self.devices)
        shape = f"{team.columns} columns x {team.replicas} replicas"
        return f"{shape}, one in each process, on {team.device.type}"


@contextmanager
def init_devices(columns: int, devices: Sequence[str]) -> Generator[Placement]:
    """Check the devices; with torchrun's variables set, join the other processes.

    If an error ends this process, the others end at their next exchange with it.

    RunError for a device that is not available, ValueError for a word that names none.
    """
    check_devices(devices)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Placement(devices=tuple(devices))
        return
    if len(devices) > 1:
        raise ValueError(
            "Under torchrun use --devices cpu or cuda: each process has its own device."
        )
    team = join(torch.device(devices[0]).type, columns=columns)
    yield Placement(devices=(str(team.device),), replicas=Replicas(team=team))
    team.close()


def check_devices(devices: Sequence[str]) -> None:
    """RunError for a device this machine does not have, ValueError for a word that names none."""
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(
                f"A device is cpu or cuda:0, two are cuda:0,cuda:1; got {name!r}."
            ) from None
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
            raise RunError(
                f"There is no {name} on this machine: torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} GPUs. Use cpu, or see `alexprep doctor`."
            )
