# pyright: reportUnknownMemberType=false
# torch.cuda is typed only in part.
"""`alexprep bench load --device cuda`: the loader on a GPU, beside what a training step takes.

Both ways augment on the GPU: "GPU decode" hands it whole JPEG files, "CPU decode" the crops that
this machine's cores decoded. The floor is the appetite of the trainer: images/s of the fastest step
(bf16, one CUDA graph) on the same GPU, measured in turns with the loaders.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from alexnet.model.networks import code2012
from alexprep.bench.frame import BenchConfig, Row, interleaved, rows
from alexprep.bench.step_gpu import Case, gpu_step
from alexprep.machine import cores
from pipelines import AugmentSpec, Loader, LoaderConfig, open_loader

Decode = Literal["mixed", "cpu"]
BATCHES = (128, 1024)
WAYS: Mapping[str, Decode] = {"GPU decode": "mixed", "CPU decode": "cpu"}
STEPS = 20  # of the trainer in one measurement
UNTIMED = 6  # batches that a loader may have made ahead


def gpu_loads(root: Path, config: BenchConfig) -> Iterator[Row]:
    """Images/s of both ways at both batch sizes, a batch size at a time."""
    device = torch.device(config.device)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    for batch in BATCHES:
        floor = f"batch {batch}: the trainer's appetite (bf16, CUDA graph)"
        # Captured before DALI's threads begin: they use the GPU too, which ends a capture.
        step = gpu_step(Case(network=code2012(), batch=batch, bf16=True, graph=True), device)
        with ExitStack() as stack:
            cases: dict[str, Callable[[], float]] = {floor: _Training(step, batch)}
            for name, decode in WAYS.items():
                loading = LoaderConfig(
                    batch=batch,
                    device=config.device,
                    backend="dali",
                    decode=decode,
                    threads=config.processes,
                    readers=min(8, cores()),
                    channels_last=True,
                )
                loader = stack.enter_context(
                    open_loader(root, "train", loading, AugmentSpec(crop=code2012().crop))
                )
                # Four batches at least: fewer would time the queue.
                count = max(4, -(-config.images // batch))
                cases[f"batch {batch}: {name}, GPU augmentation"] = _Loading(loader, count)
            yield from rows(_after_what_waits(cases, config.rounds), floor=floor)
        torch.cuda.empty_cache()


def _after_what_waits(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Images/s of each case; a loader counts its own time, so that its queue does not."""
    rates = interleaved(cases, rounds)
    return {
        name: case.rates[1:] if isinstance(case, _Loading) else rates[name]
        for name, case in cases.items()
    }


class _Training:
    """Trains some steps and says how many images they took."""

    def __init__(self, step: Callable[[], None], batch: int) -> None:
        self.step, self.batch = step, batch

    def __call__(self) -> float:
        for _ in range(STEPS):
            self.step()
        torch.cuda.synchronize()
        return STEPS * self.batch


class _Loading:
    """Takes `count` batches, and those made ahead before them; keeps the images/s of the former."""

    def __init__(self, loader: Loader, count: int) -> None:
        self.batches = _endless(loader)
        self.count = count
        self.rates: list[float] = []

    def __call__(self) -> float:
        for _ in islice(self.batches, UNTIMED):
            pass
        torch.cuda.synchronize()
        began = time.perf_counter()
        images = sum(islice(self.batches, self.count))
        torch.cuda.synchronize()
        self.rates.append(images / (time.perf_counter() - began))
        return images


def _endless(loader: Loader) -> Iterator[int]:
    """How many images each batch has, epoch after epoch."""
    while True:
        for images, _labels in loader:
            yield len(images)
