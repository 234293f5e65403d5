# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""`alexprep bench step`: training steps of the full network beside plain eager PyTorch.

The floor is the same network written with torch's own layers, float32, NCHW, SGD. Every case
lives in a process of its own, for how freed memory is kept belongs to a process; they step in
turns.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import build
from alexnet.model.networks import code2012, smoke
from alexnet.model.norms import formula, local_response_norm
from alexnet.model.spec import Lrn, ModelConfig
from alexnet.training.memory import keep_freed_memory
from alexnet.training.step import set_channels_last
from alexprep.bench.columns import two_processes
from alexprep.bench.frame import BenchConfig, Row, interleaved, rows
from alexprep.bench.layers import layers
from alexprep.bench.plain import plain
from alexprep.bench.step_gpu import gpu_steps

FLOOR = "plain eager float32"
BATCH, SMOKE_BATCH = 64, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to train: a network, and how it runs."""

    network: ModelConfig
    batch: int
    plain: bool = False
    form: str = "grouped"
    bf16: bool = False


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """The norm alone, whole steps, what each layer takes, and columns in two processes.

    config.images and config.data have no part in it: steps are of 64 random images.
    """
    if config.device != "cpu":
        return gpu_steps(config)
    found = [*norms(config.rounds), *steps(config.rounds)]
    return [*found, *layers(config.rounds), *two_processes(config.rounds)]


def norms(rounds: int) -> list[Row]:
    """Forward and backward of the first norm, (64, 96, 55, 55) in two groups."""
    floor = "LRN of conv1, nn.LocalResponseNorm"
    keep_freed_memory()
    x = torch.randn(BATCH, 96, 55, 55) * 50
    last = x.to(memory_format=torch.channels_last)
    cases = {
        floor: partial(_norm, formula, x),
        "LRN of conv1, NCHW": partial(_norm, local_response_norm, x),
        "LRN of conv1, channels_last": partial(_norm, local_response_norm, last),
        "LRN of conv1, channels_last, bf16": partial(_norm, local_response_norm, last.bfloat16()),
    }
    targets = {name: ">= 3" for name in cases if name != floor}
    return rows(interleaved(cases, rounds), floor=floor, targets=targets)


def _norm(norm: Callable[..., Tensor], x: Tensor) -> int:
    x = x.detach().requires_grad_()
    norm(x, Lrn(), groups=2).backward(x.detach())
    return len(x)


def steps(rounds: int) -> list[Row]:
    """Images/s of whole steps: forward, backward, SGD with momentum and decay."""
    full, small = code2012(), smoke(code2012(), classes=100)
    every = {
        FLOOR: Case(network=full, batch=BATCH, plain=True),
        "float32": Case(network=full, batch=BATCH),
        "float32, columns": Case(network=full, batch=BATCH, form="columns"),
        "bf16": Case(network=full, batch=BATCH, bf16=True),
    }
    targets = {"float32": ">= 1.7", "bf16": ">= 3"}
    with _apart(every) as cases:
        found = rows(interleaved(cases, rounds), floor=FLOOR, targets=targets)
    floor = "smoke size, plain eager float32"
    little = {
        floor: Case(network=small, batch=SMOKE_BATCH, plain=True),
        "smoke size, float32": Case(network=small, batch=SMOKE_BATCH),
        "smoke size, bf16": Case(network=small, batch=SMOKE_BATCH, bf16=True),
    }
    with _apart(little) as cases:
        found += rows(interleaved(cases, rounds), floor=floor)
    return found


@contextlib.contextmanager
def _apart(every: dict[str, Case]) -> Generator[dict[str, Callable[[], float]]]:
    """Functions that step each case once, in its own process, and return the images."""
    context = get_context("spawn")
    with contextlib.ExitStack() as stack:
        cases: dict[str, Callable[[], float]] = {}
        for name, case in every.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, case), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(here.send, False)
            cases[name] = partial(_ask, here)
        yield cases


def _ask(pipe: Any) -> float:
    pipe.send(True)
    return pipe.recv()


def _serve(pipe: "Connection[float, bool]", case: Case) -> None:
    step = training_step(case)
    while pipe.recv():
        step()
        pipe.send(case.batch)


def training_step(case: Case) -> Callable[[], None]:
    """A function that trains one step on the same random batch each time."""
    torch.manual_seed(0)
    shape = (case.batch, 3, case.network.crop, case.network.crop)
    images, labels = torch.randn(shape) * 60, torch.randint(0, case.network.classes, (case.batch,))
    if case.plain:
        model: nn.Module = plain(case.network)
    else:
        keep_freed_memory()
        form: Any = case.form
        model = build(case.network, form=form)
        set_channels_last(model)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=not case.plain
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
