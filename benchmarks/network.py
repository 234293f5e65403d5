# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""The network on a CPU in detail: its norm, what each layer takes, and two processes.

    python benchmarks/network.py --rounds 5 --out benchmarks/results

`alexprep bench step` measures complete steps.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet import build
from alexnet.distributed.feed import Lockstep
from alexnet.distributed.mesh import join
from alexnet.model.columns import exchanges
from alexnet.model.networks import code2012
from alexnet.model.norms import local_response_norm, lrn_formula
from alexnet.model.spec import Lrn, ModelConfig, sizes
from alexnet.training.config import TrainConfig
from alexnet.training.optim import sgd
from alexnet.training.step import keep_freed_memory, set_channels_last, train_step
from alexprep.bench.measurement import Row, compared, interleaved, result, row, save, table

BATCH = 64
SIDE = 2048  # of the matrices whose product gives the arithmetic a machine can do
ANSWER_SECONDS = 5.0  # for an answer that was sent just before its process ended
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure all three and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the result")
    options = parser.parse_args()
    rounds = options.rounds
    rows = [*norms(rounds), *layers(rounds), *two_processes(rounds)]
    sys.stdout.write(f"{table(rows)}\n")
    if options.out is not None:
        command = f"python benchmarks/network.py --rounds {rounds}"
        save(result("network", command, rows, {"rounds": rounds}), options.out)


def norms(rounds: int) -> list[Row]:
    """Forward and backward of the first norm, (64, 96, 55, 55) in two groups."""
    baseline = "LRN of conv1, nn.LocalResponseNorm"
    keep_freed_memory()
    x = torch.randn(BATCH, 96, 55, 55) * 50
    last = x.to(memory_format=torch.channels_last)
    cases = {
        baseline: partial(_norm, lrn_formula, x),
        "LRN of conv1, NCHW": partial(_norm, local_response_norm, x),
        "LRN of conv1, channels_last": partial(_norm, local_response_norm, last),
        "LRN of conv1, channels_last, bf16": partial(_norm, local_response_norm, last.bfloat16()),
    }
    targets = {name: ">= 3" for name in cases if name != baseline}
    return compared(interleaved(cases, rounds), baseline=baseline, targets=targets)


def _norm(norm: Callable[..., Tensor], x: Tensor) -> int:
    x = x.detach().requires_grad_()
    norm(x, Lrn(), groups=2).backward(x.detach())
    return len(x)


def layers(rounds: int) -> list[Row]:
    """Milliseconds of every layer of the full network, forward and backward.

    Weight layers are also compared with a large matrix product, the most arithmetic that the
    machine does: near it, arithmetic bounds them. The stages between them (norms, pools, neurons,
    dropout) do next to no arithmetic for what they move: memory bounds those.
    """
    keep_freed_memory()
    rows: list[Row] = []
    for name, dtype in PRECISIONS.items():
        baseline = f"{name} matrix product"
        rates = {baseline: _products(dtype, rounds)}
        for layer, gigaflops, milliseconds in _layer_times(dtype, rounds):
            label = f"{name} {layer}"
            rows.append(row(label, milliseconds, "ms a step of 64"))
            if gigaflops:
                rates[label] = [gigaflops / duration * 1000 for duration in milliseconds]
        rows += compared(rates, baseline=baseline, unit="GFLOP/s")
    return rows


def _layer_times(dtype: torch.dtype, rounds: int) -> list[tuple[str, float, list[float]]]:
    """(layer with "weights" or "stages", GFLOP, milliseconds) in order, for real input shapes."""
    config = code2012()
    model = build(config)
    set_channels_last(model)
    side = config.crop + config.pad_end
    x = torch.randn(BATCH, 3, side, side).to(memory_format=torch.channels_last) * 60
    times: list[tuple[str, float, list[float]]] = []
    for number, size in enumerate(sizes(config)):
        # conv1 has no gradient to pass on: two products instead of three.
        gigaflops = 2 * size.macs * BATCH * (2 if number == 0 else 3) / 1e9
        weights = model.get_submodule(size.name)
        x, milliseconds = _timed(weights, x, dtype, rounds, first=number == 0)
        times.append((f"{size.name} weights", gigaflops, milliseconds))
        if config.layers[number].then:
            stages = model.get_submodule("stages")
            x, milliseconds = _timed(
                lambda x, n=number, s=stages: s(x, n), x, dtype, rounds, first=False
            )
            times.append((f"{size.name} stages", 0.0, milliseconds))
    return times


def _timed(
    layer: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, rounds: int, *, first: bool
) -> tuple[Tensor, list[float]]:
    """The output for x, and the milliseconds of forward and backward."""
    milliseconds: list[float] = []
    y = x
    for number in range(rounds + 1):
        leaf = x.detach().requires_grad_(not first)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(leaf)
        y.backward(torch.ones_like(y))
        if number:  # the first one warms up
            milliseconds.append((time.perf_counter() - start) * 1000)
    return y.detach(), milliseconds


def _products(dtype: torch.dtype, rounds: int) -> list[float]:
    matrix = torch.randn(SIDE, SIDE).to(dtype)
    work = 2 * SIDE**3 / 1e9
    return interleaved({"": lambda: work * bool(len(matrix @ matrix))}, rounds)[""]


def two_processes(rounds: int, network: ModelConfig | None = None) -> list[Row]:
    """Images/s of a network (code2012) as one process and as two of a column each, in float32.

    Half of the cores go to each column. The bytes sent in a step of 64 images are those the
    loopback interface counts, with headers and acknowledgements, next to those of the tensors by
    the network's table.
    """
    network = network or code2012()
    alone, _ = _run_processes(1, rounds, network)
    together, sent = _run_processes(2, rounds, network)
    baseline = "one process, both columns"
    rates = {baseline: alone, "two gloo processes, a column each": together}
    tensors = sum(exchange.values for exchange in exchanges(network))
    images = 3 * network.crop**2
    return [
        *compared(rates, baseline=baseline),
        row("sent in a step, two processes", sent, "MB"),
        row("of it activations and gradients, by the table", [tensors * 4 * BATCH / 1e6], "MB"),
        row("of it images, from the one loader", [images * 4 * BATCH / 1e6], "MB"),
    ]


def _run_processes(
    count: int, rounds: int, network: ModelConfig
) -> tuple[list[float], list[float]]:
    """Images/s and megabytes of each step, as the first process measured them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = get_context("spawn")
    parent, child = context.Pipe(duplex=False)
    processes = [
        context.Process(
            target=_train, args=((rank, count, port), rounds, network, child), daemon=True
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    wait([parent, *(process.sentinel for process in processes)])
    if not parent.poll(ANSWER_SECONDS):
        raise RuntimeError("A process of the benchmark ended without an answer.")
    answer = parent.recv()
    for process in processes:
        process.join()
    return answer


class Repeated:
    """A loader that gives the same random batch a number of times."""

    def __init__(self, times: int, crop: int) -> None:
        images = torch.randn(BATCH, 3, crop, crop) * 60
        images = images.to(memory_format=torch.channels_last)
        self.batch = (images, torch.zeros(BATCH, dtype=torch.int64))
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Any:
        return iter([self.batch] * self.times)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def _train(process: tuple[int, int, str], rounds: int, network: ModelConfig, answers: Any) -> None:
    rank, count, port = process
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank))
    os.environ["WORLD_SIZE"] = str(count)
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // count, 1))
    keep_freed_memory()
    repeated = Repeated(rounds + 2, network.crop)
    team = join("cpu", columns=count) if count > 1 else None
    batches = Lockstep(team, repeated if rank == 0 else None) if team else repeated
    model = build(network, form="columns", team=team)
    set_channels_last(model)
    config = TrainConfig(lr=1e-4)
    optimizer = sgd(model, config)
    rates: list[float] = []
    megabytes: list[float] = []
    start, sent = time.perf_counter(), _sent()
    for batch in batches:
        train_step(model, optimizer, batch, config)
        end, total = time.perf_counter(), _sent()
        rates.append(BATCH / (end - start))
        megabytes.append((total - sent) / 1e6)
        start, sent = end, total
    if team:
        team.close()
    if rank == 0:
        # The first step warms up, and while the last one runs no batch travels.
        answers.send((rates[1:-1], megabytes[1:-1]))


def _sent() -> int:
    return int(LOOPBACK.read_text()) if LOOPBACK.exists() else 0


if __name__ == "__main__":
    main()
