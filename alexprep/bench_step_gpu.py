# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""`alexprep bench step --device cuda`: training steps on one GPU beside plain eager PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from alexnet import build
from alexnet.networks import code2012, torchvision
from alexnet.spec import ModelConfig, sizes
from alexnet.step import set_channels_last
from alexprep.bench import BenchConfig, Row, interleaved, rows
from alexprep.bench_plain import plain

STEPS = 20  # of one measurement: long enough that its last wait for the GPU does not show
SIDE = 8192  # of the matrices whose product gives the arithmetic a GPU can do


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to train on a GPU."""

    network: ModelConfig
    batch: int
    plain: bool = False
    bf16: bool = False
    graph: bool = False


def gpu_steps(config: BenchConfig) -> list[Row]:
    """Images/s at batches of 128 and 1024, and what a matrix product's rate would allow."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    found: list[Row] = []
    for batch, target in ((128, ">= 40000"), (1024, ">= 60000")):
        floor = f"batch {batch}: plain eager TF32"
        ours = Case(network=code2012(), batch=batch)
        half = replace(ours, bf16=True)
        every = {
            floor: replace(ours, plain=True),
            f"batch {batch}: plain eager bf16": replace(half, plain=True),
            f"batch {batch}: torchvision's alexnet, bf16": replace(half, network=torchvision()),
            f"batch {batch}: TF32": ours,
            f"batch {batch}: TF32, CUDA graph": replace(ours, graph=True),
            f"batch {batch}: bf16": half,
            f"batch {batch}: bf16, CUDA graph": replace(half, graph=True),
        }
        device = torch.device(config.device)
        cases: dict[str, Callable[[], float]] = {
            name: partial(_measure, gpu_step(case, device), case.batch)
            for name, case in every.items()
        }
        cases[f"batch {batch}: bf16, as a matrix product of {SIDE}"] = _product(device)
        targets = {f"batch {batch}: bf16, CUDA graph": target}
        found += rows(interleaved(cases, config.rounds), floor=floor, targets=targets)
        del cases
        torch.cuda.empty_cache()
    return found


def _measure(step: Callable[[], None], batch: int) -> float:
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return STEPS * batch


def _product(device: torch.device) -> Callable[[], float]:
    """Images whose arithmetic (three products a layer, two in conv1) one matrix product equals."""
    one = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    table = list(sizes(code2012()))
    an_image = 2 * (3 * sum(size.macs for size in table) - table[0].macs)

    def multiply() -> float:
        for _ in range(STEPS):
            torch.mm(one, one)
        torch.cuda.synchronize()
        return STEPS * 2 * SIDE**3 / an_image

    return multiply


def gpu_step(case: Case, device: torch.device) -> Callable[[], None]:
    """A function that trains one step on the same random batch, by a CUDA graph if asked."""
    torch.manual_seed(0)
    shape = (case.batch, 3, case.network.crop, case.network.crop)
    images = torch.randn(shape, device=device) * 60
    labels = torch.randint(0, case.network.classes, (case.batch,), device=device)
    if case.plain:
        model: nn.Module = plain(case.network).to(device)
    else:
        model = build(case.network, devices=(device,))
        set_channels_last(model)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=not case.plain
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        # Not to None: a captured graph writes to the same gradients again.
        optimizer.zero_grad(set_to_none=not case.graph)

    return _captured(step) if case.graph else step


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph; steps before it allocate on a stream of their own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
