# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""Two processes of one column each beside one process, on a CPU, and the bytes between them."""

import os
import socket
import time
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from alexnet import build
from alexnet.distributed.feed import Lockstep
from alexnet.distributed.mesh import join
from alexnet.model.networks import code2012
from alexnet.model.spec import ModelConfig
from alexnet.model.traffic import exchanges
from alexnet.training.memory import keep_freed_memory
from alexnet.training.step import set_channels_last
from alexprep.bench.frame import Row, row, rows

BATCH = 64
GRACE_SECONDS = 5.0  # for an answer that was sent just before its process ended
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def two_processes(rounds: int, network: ModelConfig | None = None) -> list[Row]:
    """Images/s of a network (code2012) in float32, and megabytes sent in a step of 64 images.

    Half of the cores go to each column. The bytes are those the loopback interface counts, with
    headers and acknowledgements, beside those of the tensors by the network's table.
    """
    network = network or code2012()
    alone, _ = _measured(1, rounds, network)
    together, sent = _measured(2, rounds, network)
    floor = "one process, both columns"
    found = rows({floor: alone, "two gloo processes, a column each": together}, floor=floor)
    tensors = sum(there.values for there in exchanges(network))
    images = 3 * network.crop**2
    return [
        *found,
        row("sent in a step, two processes", sent, "MB"),
        row("of it activations and gradients, by the table", [tensors * 4 * BATCH / 1e6], "MB"),
        row("of it images, from the one loader", [images * 4 * BATCH / 1e6], "MB"),
    ]


def _measured(processes: int, rounds: int, network: ModelConfig) -> tuple[list[float], list[float]]:
    """Images/s and megabytes of each step, as the first process saw them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    started = [
        context.Process(
            target=_train, args=((rank, processes, port), rounds, network, there), daemon=True
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    wait([here, *(process.sentinel for process in started)])
    if not here.poll(GRACE_SECONDS):
        raise RuntimeError("a process of the benchmark has ended without an answer")
    answer = here.recv()
    for process in started:
        process.join()
    return answer


class Repeated:
    """A loader that gives the same random batch a number of times."""

    def __init__(self, times: int, crop: int) -> None:
        images = torch.randn(BATCH, 3, crop, crop) * 60
        self.batch = (
            images.to(memory_format=torch.channels_last),
            torch.zeros(BATCH, dtype=torch.int64),
        )
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Any:
        return iter([self.batch] * self.times)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def _train(place: tuple[int, int, str], rounds: int, network: ModelConfig, answers: Any) -> None:
    rank, processes, port = place
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank))
    os.environ["WORLD_SIZE"] = str(processes)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(cores // processes, 1))
    keep_freed_memory()
    repeated = Repeated(rounds + 2, network.crop)
    if processes == 1:
        team, batches = None, repeated
        model = build(network, form="columns")
    else:
        team = join("cpu", columns=processes)
        batches = Lockstep(team, repeated if rank == 0 else None)
        model = build(network, form="columns", team=team)
    set_channels_last(model)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True
    )
    rates: list[float] = []
    megabytes: list[float] = []
    began, sent = time.perf_counter(), _sent()
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        now, total = time.perf_counter(), _sent()
        rates.append(BATCH / (now - began))
        megabytes.append((total - sent) / 1e6)
        began, sent = now, total
    if team:
        team.close()
    if rank == 0:
        # The first step warms up, and while the last one runs no batch travels.
        answers.send((rates[1:-1], megabytes[1:-1]))


def _sent() -> int:
    return int(LOOPBACK.read_text()) if LOOPBACK.exists() else 0
