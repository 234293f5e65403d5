# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""`alexprep bench step`: the trainer's own step next to the same network in plain eager PyTorch.

The baseline is written with torch's own layers and optimizer: float32, NCHW. Each way to train has
a process of its own, for how freed memory is kept belongs to a process; they step in turns.
"""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import build
from alexnet.distributed.feed import Batch
from alexnet.model.dropout import Dropout
from alexnet.model.networks import code2012, smoke
from alexnet.model.spec import Dense, ModelConfig, sizes
from alexnet.training.config import TrainConfig
from alexnet.training.graph import make_step
from alexnet.training.optim import sgd
from alexnet.training.step import image_type, keep_freed_memory, prepare_model
from alexnet.training.trainer import POSITIONS_A_STEP
from alexprep.bench.measurement import Row, compared, interleaved
from alexprep.bench.suite import BenchConfig

BASELINE = "plain eager float32"
BATCH, SMOKE_BATCH = 64, 128
GPU_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A network, a batch size and a way to train it: in plain PyTorch or by the trainer's step."""

    network: ModelConfig
    batch: int
    plain: bool = False
    form: Literal["grouped", "columns"] = "grouped"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "on", "graphs"] = "off"
    cuda_graph: bool = False
    fuse_conv1: Literal["auto", "on", "off"] = "auto"
    device: str = "cpu"


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s of whole steps on random images: forward, backward and update.

    config.images and config.data do not matter here.
    """
    small = smoke(code2012(), classes=100)
    ours = Case(network=code2012(), batch=BATCH, device=config.device)
    with _processes(4) as pools:
        return [
            *steps("", ours, config.rounds, {"float32": ">= 1.7", "bf16": ">= 3"}, pools),
            *steps(
                "smoke size, ",
                replace(ours, network=small, batch=SMOKE_BATCH),
                config.rounds,
                {},
                pools,
            ),
        ]


@contextmanager
def _processes(count: int) -> Generator[list[ProcessPoolExecutor]]:
    """Processes for ways to train, which begin when they are first asked for something."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(count)
        ]


def steps(
    prefix: str,
    case: Case,
    rounds: int,
    targets: Mapping[str, str],
    pools: Sequence[ProcessPoolExecutor],
) -> list[Row]:
    """One network and batch size in both precisions, and as two columns on one device."""
    baseline = prefix + BASELINE
    cases = {
        baseline: replace(case, plain=True),
        f"{prefix}float32": case,
        f"{prefix}float32, columns": replace(case, form="columns"),
        f"{prefix}bf16": replace(case, precision="bfloat16"),
    }
    return compared(step_rates(cases, rounds, pools), baseline=baseline, targets=targets)


def step_rates(
    cases: Mapping[str, Case], rounds: int, pools: Sequence[ProcessPoolExecutor] = ()
) -> dict[str, list[float]]:
    """Images/s of each case in each round; `pools` has a process for each, else they are new."""
    with _processes(len(cases)) as fresh:
        pools = pools or fresh
        # All at once: to import torch and to draw weights keeps one core busy, for seconds.
        ready = [pool.submit(_prepare, c) for pool, c in zip(pools, cases.values(), strict=True)]
        for future in ready:
            future.result()
        functions = {name: partial(_request, pool) for name, pool in zip(cases, pools, strict=True)}
        return interleaved(functions, rounds)


def _request(pool: ProcessPoolExecutor) -> float:
    return pool.submit(_train).result()


_steps: list[tuple[Case, Callable[[], None]]] = []  # the one of this process


def _prepare(case: Case) -> None:
    _steps[:] = []  # first, so that two networks are never in memory
    _steps[:] = [(case, training_step(case))]


def _train() -> float:
    """Images of some steps: a step of a GPU is too short to be timed by itself."""
    ((case, step),) = _steps
    count = 1 if case.device == "cpu" else GPU_STEPS
    for _ in range(count):
        step()
    if case.device != "cpu":
        torch.cuda.synchronize(case.device)
    return count * case.batch


def training_step(case: Case) -> Callable[[], None]:
    """A function that trains one step, on the same random batch each time."""
    batch = random_batch(case)
    if case.plain:
        model = plain(case.network).to(case.device)
        return plain_step(model, batch, bf16=case.precision == "bfloat16")
    return partial(batch_step(case), batch)


def random_batch(case: Case) -> Batch:
    """Images and labels as a loader gives them to this way to train."""
    torch.manual_seed(0)
    shape = (case.batch, 3, case.network.crop, case.network.crop)
    images = torch.randn(shape, device=case.device) * 60
    labels = torch.randint(0, case.network.classes, (case.batch,), device=case.device)
    if case.plain:
        return images, labels
    dtype = getattr(torch, image_type(TrainConfig(precision=case.precision), case.device))
    return images.to(dtype, memory_format=torch.channels_last), labels


def batch_step(case: Case) -> Callable[[Batch], None]:
    """A function that trains one step of the trainer on a batch."""
    keep_freed_memory()
    model = build(case.network, form=case.form, devices=(case.device,))
    return trainer_step(model, case)


def plain_step(model: nn.Module, batch: tuple[Tensor, Tensor], *, bf16: bool) -> Callable[[], None]:
    """A training step as tutorials have it."""
    images, labels = batch
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer_step(model: nn.Module, case: Case) -> Callable[[Batch], None]:
    """The step of `alexprep train`, which moves dropout on with each batch."""
    config = TrainConfig(
        lr=1e-4,
        precision=case.precision,
        compile=case.compile,
        cuda_graph=case.cuda_graph,
        fuse_conv1=case.fuse_conv1,
    )
    prepare_model(model, config)
    train_on = make_step(model, sgd(model, config), config)
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    numbers = itertools.count()

    def step(batch: Batch) -> None:
        position = next(numbers) * POSITIONS_A_STEP
        for dropout in dropouts:
            dropout.set_position(position)
        train_on(batch)

    return step


def plain(config: ModelConfig) -> nn.Sequential:
    """The network of a config as one writes it with torch's own layers."""
    modules: list[nn.Module] = [nn.ZeroPad2d((0, config.pad_end, 0, config.pad_end))]
    stages: dict[str, Callable[[], nn.Module]] = {
        "act": nn.ReLU,
        "lrn": lambda: Function(partial(_column_norms, config)),
        "spatial": lambda: Function(partial(_spatial_norm, config)),
        "pool": partial(nn.MaxPool2d, config.pool_size, config.pool_stride, ceil_mode=True),
        "dropout": partial(nn.Dropout, config.dropout),
    }
    for layer, size in zip(config.layers, sizes(config), strict=True):
        inputs = size.weight[1] * size.groups
        if isinstance(layer, Dense):
            modules += [nn.Flatten(), nn.Linear(inputs, layer.out)]
        else:
            sides = (layer.kernel, layer.stride, layer.pad)
            modules.append(nn.Conv2d(inputs, layer.out, *sides, groups=size.groups))
        modules += [stages[stage]() for stage in layer.then]
    return nn.Sequential(*modules)


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def _column_norms(config: ModelConfig, x: Tensor) -> Tensor:
    columns = x.chunk(config.columns, 1)
    return torch.cat([F.local_response_norm(column, *config.lrn) for column in columns], dim=1)


def _spatial_norm(config: ModelConfig, x: Tensor) -> Tensor:
    size, alpha, beta, k = config.spatial
    return x / (k + alpha * F.avg_pool2d(x * x, size, 1, size // 2)).pow(beta)
