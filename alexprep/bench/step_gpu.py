# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""`alexprep bench step --device cuda`: training steps on one GPU beside plain eager PyTorch.

Two floors are counted, with rates that are measured here: no step is faster than its
arithmetic at the rate of a large matrix product, nor than its least traffic at the rate of a large
copy. "As trained" is train_step as `alexprep train` calls it, with train.compile=graphs
and dropout moved on for each step; "CUDA graph" is a whole step captured once and replayed.
"""

import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet import build
from alexnet.model.dropout import Dropout
from alexnet.model.networks import code2012, torchvision
from alexnet.model.norms import formula, local_response_norm
from alexnet.model.spec import Lrn, ModelConfig, parameter_count, sizes
from alexnet.training.config import TrainConfig
from alexnet.training.optim import sgd
from alexnet.training.step import compiled, set_channels_last, train_step
from alexnet.training.trainer import POSITIONS_A_STEP
from alexprep.bench.frame import BenchConfig, Row, interleaved, rows
from alexprep.bench.plain import plain

STEPS = 20  # of one measurement: long enough that its last wait for the GPU does not show
FEWEST = 5  # the same for a batch of 1024, whose steps are eight times as long
SIDE = 8192  # of the matrices whose product gives the arithmetic a GPU can do
COPIED = 2**29  # values of the copy that gives the traffic a GPU can do
TARGETS = {128: ">= 40000", 1024: ">= 60000"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to train on a GPU."""

    network: ModelConfig
    batch: int
    plain: bool = False
    bf16: bool = False
    graph: bool = False
    trained: bool = False


def gpu_steps(config: BenchConfig) -> list[Row]:
    """All rows of `gpu_rows`."""
    return list(gpu_rows(config))


def gpu_rows(config: BenchConfig) -> Iterator[Row]:
    """Images/s at batches of 128 and 1024 with their floors, and the norm's time; as they come."""
    device = torch.device(config.device)
    torch.cuda.set_device(device)
    # Not the single flags: torch refuses a mixture of its older and its newer ones.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    yield from norms(device, config.rounds)
    for batch in TARGETS:
        yield from _steps(batch, device, config.rounds)


def _steps(batch: int, device: torch.device, rounds: int) -> Iterator[Row]:
    """Rows of one batch size; cases that compile come last, for a time limit may cut them off."""
    ours = Case(network=code2012(), batch=batch)
    half = replace(ours, bf16=True)
    floor = f"batch {batch}: plain eager TF32"
    groups = (
        {
            floor: replace(ours, plain=True),
            "plain eager bf16": replace(half, plain=True),
            "torchvision's alexnet, plain eager bf16": replace(
                half, network=torchvision(), plain=True
            ),
            "torchvision's alexnet, bf16, CUDA graph": replace(
                half, network=torchvision(), graph=True
            ),
            "TF32": ours,
            "TF32, CUDA graph": replace(ours, graph=True),
            "bf16": half,
            "bf16, CUDA graph": replace(half, graph=True),
        },
        {
            floor: replace(ours, plain=True),
            "bf16, as trained with graphs": replace(half, trained=True),
            "TF32, as trained with graphs": replace(ours, trained=True),
        },
    )
    for number, group in enumerate(groups):
        cases: dict[str, Callable[[], float]] = {}
        for name, case in group.items():
            label = name if name == floor else f"batch {batch}: {name}"
            cases[label] = partial(_measure, gpu_step(case, device), batch)
        if number == 0:
            cases |= _floors(batch, device)
        best = "bf16, CUDA graph", "bf16, as trained with graphs"
        targets = {f"batch {batch}: {name}": TARGETS[batch] for name in best}
        found = rows(interleaved(cases, rounds), floor=floor, targets=targets)
        yield from found[1:] if number else found
        del cases
        _forget()


def _forget() -> None:
    """Give the memory of the cases before back, graphs and compiled code included."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _measure(step: Callable[[], None], batch: int) -> float:
    steps = max(FEWEST, STEPS * min(TARGETS) // batch)
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return steps * batch


def norms(device: torch.device, rounds: int) -> list[Row]:
    """Forward and backward of conv1's norm, 128 images, in bf16 and float32; a copy is the floor.

    The copy moves what the norm must: x in and y out; x and g in and dx out.
    """
    found: list[Row] = []
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        x = torch.randn(128, 96, 55, 55, device=device).mul_(50).to(dtype)
        x = x.to(memory_format=torch.channels_last)
        floor = f"LRN of conv1, {name}, nn.LocalResponseNorm"
        cases = {
            floor: partial(_norm, formula, x.contiguous()),
            f"LRN of conv1, {name}": partial(_norm, local_response_norm, x),
            f"LRN of conv1, {name}, NCHW": partial(_norm, local_response_norm, x.contiguous()),
            f"LRN of conv1, {name}, as a copy of its 5 tensors": partial(_copies, x),
        }
        found += rows(interleaved(cases, rounds), floor=floor)
    return found


def _norm(norm: Callable[..., Tensor], x: Tensor) -> float:
    x = x.detach().requires_grad_()
    for _ in range(STEPS):
        torch.autograd.grad(norm(x, Lrn(), groups=2), x, x.detach())
    torch.cuda.synchronize()
    return STEPS * len(x)


def _copies(x: Tensor) -> float:
    other = torch.empty_like(x)
    for _ in range(STEPS):
        # A copy reads one tensor and writes one: two and a half of them.
        other.copy_(x)
        other.copy_(x)
        other[: len(x) // 2].copy_(x[: len(x) // 2])
    torch.cuda.synchronize()
    return STEPS * len(x)


def _floors(batch: int, device: torch.device) -> dict[str, Callable[[], float]]:
    """Images/s that the machine's own rates of arithmetic and of traffic would allow."""
    one = torch.randn(SIDE, SIDE, device=device)
    half = one.bfloat16()
    values = torch.randn(COPIED, device=device, dtype=torch.bfloat16)
    return {
        f"batch {batch}: TF32, floor of FLOPs": partial(_product, one),
        f"batch {batch}: bf16, floor of FLOPs": partial(_product, half),
        f"batch {batch}: bf16, floor of bytes": partial(
            _copy, values, torch.empty_like(values), step_bytes(code2012(), batch) / batch
        ),
    }


def step_flops(network: ModelConfig) -> float:
    """Of one image: forward, and backward to weights and inputs; conv1's want no gradient."""
    table = list(sizes(network))
    return 2.0 * (3 * sum(size.macs for size in table) - table[0].macs)


def step_bytes(network: ModelConfig, batch: int) -> float:
    """The least that a bf16 step of a batch moves through the GPU's memory.

    Every layer's output is written and read forward, and its gradient written and read backward,
    where the output is read once more; weights are read twice and their gradients written in bf16,
    and SGD reads weight, momentum and gradient and writes weight and momentum in float32.
    """
    table = list(sizes(network))
    outputs = sum(size.neurons for size in table)
    weights = parameter_count(network)
    images = 3 * network.crop**2
    return 2.0 * batch * (5 * outputs + 2 * images) + weights * (3 * 2.0 + 5 * 4.0)


def _product(one: Tensor) -> float:
    for _ in range(STEPS):
        torch.mm(one, one)
    torch.cuda.synchronize()
    return STEPS * 2 * SIDE**3 / step_flops(code2012())


def _copy(source: Tensor, target: Tensor, bytes_an_image: float) -> float:
    for _ in range(STEPS):
        target.copy_(source)
    torch.cuda.synchronize()
    return STEPS * 2 * source.nbytes / bytes_an_image


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
    if case.trained:
        return trained_step(model, (images, labels), bf16=case.bf16)
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

    return captured(step) if case.graph else step


def trained_step(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, bf16: bool, graphs: bool = True
) -> Callable[[], None]:
    """The trainer's own step, dropout's position included."""
    config = TrainConfig(
        lr=1e-4,
        precision="bfloat16" if bf16 else "float32",
        compile="graphs" if graphs else "off",
    )
    forward, optimizer = compiled(model, config), sgd(model, config)
    dropouts = [part for part in model.modules() if isinstance(part, Dropout)]
    count = itertools.count()

    def step() -> None:
        number = next(count)
        for dropout in dropouts:
            dropout.set_position(number * POSITIONS_A_STEP)
        train_step(forward, optimizer, batch, config)

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
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
    return partial(_replay, graph, step)


def _replay(graph: torch.cuda.CUDAGraph, _step: Callable[[], None]) -> None:
    """The step goes along because it alone keeps the network and the batch in memory."""
    graph.replay()
