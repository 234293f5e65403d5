"""Where a network lives: one device, a column on each of several, or a column in each process.

    alexprep train ... --devices auto | cpu | cuda:0 | cuda:0,cuda:1
    alexprep train ... --replicas 4                    columns x replicas, a process for each column
    torchrun --nproc-per-node 8 -m -- alexprep train ...            the same, started by torchrun

In processes, neighbouring ones are the columns of one replica, and the replicas share each batch.
All of them must see the folder of the run.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

import alexnet
from alexnet.distributed.mesh import SINGLE_PROCESS, Replicas, join
from alexnet.errors import RunError
from alexnet.model.spec import ModelConfig
from alexprep.errors import checking_options, counted
from pipelines.errors import DataError

AUTO = ("auto",)
# Set by launchers that start processes without telling torch of them.
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The devices of this process, its rank among the processes of the run, and why these."""

    devices: tuple[str, ...]
    replicas: Replicas = SINGLE_PROCESS
    reason: str = ""

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
            text = " and ".join(self.devices)
        else:
            shape = f"{team.columns} columns x {team.replicas} replicas"
            text = f"{shape}, one in each process, on {team.device.type}"
        return f"{text} ({self.reason})" if self.reason else text


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """The processes that a call starts: a process for each column of each replica.

    Attributes:
        replicas: over all machines.
        nodes: machines; the same call is made on each.
        coordinator: HOST:PORT where they meet; "" on one machine.
    """

    replicas: int = 1
    nodes: int = 1
    coordinator: str = ""

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.nodes < 1:
            raise ValueError(
                f"--replicas and --nodes must be at least 1, got {self.replicas} and {self.nodes}."
            )
        if self.nodes > 1 and not self.coordinator:
            raise ValueError(
                f"--nodes {self.nodes} needs --coordinator HOST:PORT, the same on every machine, "
                "where HOST is one of them, as in --coordinator node0:29500."
            )

    @property
    def wanted(self) -> bool:
        """Whether more than this process is asked for."""
        return self.replicas > 1 or self.nodes > 1

    def processes(self, columns: int) -> int:
        """Processes on each machine; ValueError where they cannot be shared out evenly."""
        count = self.replicas * columns
        if count % self.nodes:
            raise ValueError(
                f"--replicas {self.replicas} of {columns} columns are {count} processes, which "
                f"{self.nodes} machines cannot share evenly."
            )
        return count // self.nodes


def in_process_group() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def choose_devices(
    devices: Sequence[str], columns: int, processes: int = 1
) -> tuple[tuple[str, ...], str]:
    """The devices themselves, "auto" being the GPUs that there are; and why, for the log.

    Args:
        devices: what was asked for.
        columns: of the network; each gets a GPU if there are enough.
        processes: on this machine; with more than one each has a device, named by its kind.
    """
    if tuple(devices) != AUTO:
        return tuple(devices), ""
    count = torch.cuda.device_count()
    gpus = counted(count, "GPU")
    if count == 0:
        return ("cpu",), "torch sees no GPU"
    if processes > 1:
        if count >= processes:
            return ("cuda",), f"{gpus} for {processes} processes"
        return ("cpu",), f"{gpus} are not enough for {processes} processes"
    if count < columns or columns == 1:
        return ("cuda:0",), f"the first of {gpus}" if count > 1 else "the only GPU"
    return tuple(f"cuda:{n}" for n in range(columns)), f"{gpus}, a column on each of {columns}"


def choose_device(device: str) -> tuple[str, str]:
    """`choose_devices` for a network on one device."""
    (name,), reason = choose_devices((device,), columns=1)
    return name, reason


def usable_device(device: str) -> str:
    """The device that a word such as "auto" names here; errors as `check_devices` has them."""
    name, _ = choose_device(device)
    check_devices((name,))
    return name


@contextmanager
def said_once() -> Generator[None]:
    """What is wrong for all processes of a run is said by the first one of each machine."""
    try:
        yield
    except (DataError, RunError, ValueError):
        if int(os.environ.get("LOCAL_RANK", "0")):
            raise SystemExit(1) from None
        raise


@contextmanager
def init_devices(columns: int, devices: Sequence[str]) -> Generator[Placement]:
    """Choose and check the devices; with torchrun's variables set, join the other processes.

    If an error ends this process, the others end at their next exchange with it.

    RunError for a device that is not available, ValueError for a word that names none.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with said_once(), checking_options():
        names, reason = choose_devices(devices, columns, processes)
        check_devices(names)
        kind = process_device(names, columns) if in_process_group() else ""
    if not kind:
        yield Placement(devices=names, reason=reason)
        return
    with said_once():
        team = join(kind, columns=columns)
    yield Placement(devices=(str(team.device),), replicas=Replicas(team=team), reason=reason)
    team.close()


def process_device(devices: Sequence[str], columns: int) -> str:
    """The kind of device that each of several processes has one of, "cpu" or "cuda".

    ValueError for devices that processes cannot have: theirs are numbered from 0.
    """
    kind = torch.device(devices[0]).type
    column_devices = [kind] * columns, [f"{kind}:{n}" for n in range(columns)]
    if list(devices) not in ([kind], [f"{kind}:0"], *column_devices):
        raise ValueError(
            f"--devices {','.join(devices)} does not fit several processes: each uses a device of "
            f"its own, numbered from {kind}:0. Use --devices {kind}, and CUDA_VISIBLE_DEVICES to "
            "choose GPUs."
        )
    return kind


def check_devices(devices: Sequence[str]) -> None:
    """RunError for a device this machine does not have, ValueError for a word that names none."""
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(
                f"A device is auto, cpu or cuda:0, two are cuda:0,cuda:1; got {name!r}."
            ) from None
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
            raise RunError(
                f"There is no {name} on this machine: torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} GPUs. Use cpu, or see `alexprep doctor`."
            )


def check_tasks(environment: Mapping[str, str], nodes: int) -> None:
    """RunError where srun or mpirun has started several processes that know nothing of each other.

    Each would train alone, in the same folder. One a machine may start the others: `nodes` of them.
    """
    if "WORLD_SIZE" in environment:
        return
    name = next((name for name in TASK_COUNTS if environment.get(name)), "")
    count = environment.get(name, "1")
    if count not in ("1", str(nodes)):
        starter = "mpirun" if name.startswith("OMPI") else "srun"
        one = "mpirun --npernode 1" if starter == "mpirun" else "srun --ntasks-per-node 1"
        raise RunError(
            f"{starter} starts {count} processes ({name}={count}), and each would train alone. "
            f"Start one on each machine, which starts the others: {one} alexprep train ... "
            "--replicas REPLICAS --nodes MACHINES --coordinator HOST:29500. To train in this "
            f"process alone: unset {name}."
        )
