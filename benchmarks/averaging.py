# pyright: basic
"""Averaging gradients over replicas, next to DistributedDataParallel: two gloo processes.

    python benchmarks/averaging.py --rounds 10

Both train the same network on the same images, interleaved; prints the ratio of their times for a
step.
"""

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from alexnet import build
from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.mesh import Replicas, join
from alexnet.model.networks import code2012, smoke
from alexnet.model.spec import ModelConfig
from alexnet.training.config import TrainConfig
from alexnet.training.optim import sgd
from alexnet.training.step import keep_freed_memory, set_channels_last, train_step

SIZES = {"smoke size, 32 images": (smoke(code2012()), 32), "full size, 8 images": (code2012(), 8)}


def main() -> None:
    """Measure both sizes and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2")
    multiprocessing.spawn(_measure, (rounds,), nprocs=2)


def _measure(rank: int, rounds: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // 2, 1))
    keep_freed_memory()
    team = join(columns=1)
    for name, (network, images) in SIZES.items():
        ours, theirs = (_step(network, images, Replicas(team=team), ddp) for ddp in (False, True))
        ratios = [_seconds(ours) / _seconds(theirs) for _ in range(rounds + 2)][2:]
        if rank == 0:
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            sys.stdout.write(f"{name}: {middle:.2f} of DDP's time ({low:.2f} to {high:.2f})\n")
    team.close()


def _step(network: ModelConfig, images: int, replicas: Replicas, ddp: bool) -> Callable[[], object]:
    model = build(network)
    set_channels_last(model)
    config = TrainConfig(lr=1e-4)
    optimizer = sgd(model, config)
    batch = torch.randn(images, 3, network.crop, network.crop) * 60, torch.arange(images)
    if not ddp:
        average = GradientAverage(model.parameters(), replicas)
        return lambda: train_step(model, optimizer, batch, config, average)
    team = replicas.team
    group = team.mesh.get_group("replica") if team else None
    parallel = DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)
    return lambda: train_step(parallel, optimizer, batch, config)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
