"""Training steps on one GPU next to plain eager PyTorch, and the norm next to a copy.

Two bounds are computed from rates that are measured here: no step is faster than its arithmetic at
the rate of a large matrix product, nor than its least traffic at the rate of a large copy. All but
the plain ones are the step of `alexprep train`: "CUDA graph" with train.cuda_graph=true, "compiled"
with train.compile=on, "compiled with graphs" with train.compile=graphs.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from alexnet.model.networks import code2012, torchvision
from alexnet.model.norms import local_response_norm, lrn_formula
from alexnet.model.spec import Lrn, ModelConfig, parameter_count, sizes
from alexprep.bench.load_bench import wait_for
from alexprep.bench.measurement import Row, compared, interleaved, row
from alexprep.bench.step_bench import Case, training_step

STEPS = 20  # of one measurement: long enough that its last wait for the GPU does not show
MANY = 2000  # steps over which memory must not grow
FEWEST = 5  # the same for a batch of 1024, whose steps are eight times as long
NORMED = (128, 96, 55, 55)  # the output of conv1
SIDE = 8192  # of the matrices whose product gives the arithmetic a GPU can do
COPIED = 2**29  # values of the copy that gives the traffic a GPU can do
TARGETS = {128: ">= 40000", 1024: ">= 60000"}
FIRST, COMPILED = ("bf16, CUDA graph", "bf16"), "bf16, compiled, CUDA graph"  # of `step_cases`
# A name, and what measures its rows: one that fails loses its rows alone.
Measurement = tuple[str, Callable[[], list[Row]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuCase:
    """A case, and the images/s it should reach."""

    case: Case
    target: str = ""


def step_measurements(
    device: torch.device, rounds: int, network: ModelConfig | None = None
) -> Iterator[Measurement]:
    """The norms, each way to train at every batch size, the bounds and memory.

    In the order of what is asked first: time may run out, and what is compiled takes long.
    """
    network = network or code2012()
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        yield f"LRN of conv1, {name}", partial(norms, name, dtype, device, rounds)
    groups = {batch: step_cases(network, batch, device) for batch in TARGETS}
    names = list(groups[min(TARGETS)])
    for name in FIRST:
        yield from _compare_batches(name, groups, rounds)
    for batch in TARGETS:
        yield f"batch {batch}: bounds", partial(bounds, batch, device, rounds)
    for name in FIRST:
        yield f"memory, {name}", partial(memory, name, groups[min(TARGETS)][name].case)
    others = [name for name in names if name not in FIRST]
    # One of the compiled ways, then what is not compiled, then the others.
    others.sort(key=lambda name: (name != COMPILED) * (1 + ("compiled" in name)))
    for name in others:
        yield from _compare_batches(name, groups, rounds)


def _compare_batches(
    name: str, groups: Mapping[int, Mapping[str, GpuCase]], rounds: int
) -> Iterator[Measurement]:
    """One way to train at every batch size: time may run out, and one size is worth little."""
    for batch, cases in groups.items():
        case = cases[name]
        network = cases[next(iter(cases))].case.network
        baseline = Case(network=network, batch=batch, plain=True, device=case.case.device)
        title = f"batch {batch}: {name}"
        yield title, partial(compare_step, title, case, baseline, rounds)


def step_cases(network: ModelConfig, batch: int, device: torch.device) -> dict[str, GpuCase]:
    """Every way to train that is measured at a batch size."""
    ours = Case(network=network, batch=batch, device=str(device))
    half = replace(ours, precision="bfloat16")
    graph = replace(half, cuda_graph=True)
    rival = replace(half, network=torchvision())
    goal = TARGETS[batch]
    return {
        "bf16, CUDA graph": GpuCase(case=graph, target=goal),
        "bf16, CUDA graph, conv1 in one kernel": GpuCase(case=replace(graph, fuse_conv1="on")),
        "bf16, CUDA graph, conv1 by cuDNN": GpuCase(case=replace(graph, fuse_conv1="off")),
        "bf16": GpuCase(case=half),
        "TF32, CUDA graph": GpuCase(case=replace(ours, cuda_graph=True)),
        "TF32": GpuCase(case=ours),
        "plain eager bf16": GpuCase(case=replace(half, plain=True)),
        "torchvision's alexnet, plain eager bf16": GpuCase(case=replace(rival, plain=True)),
        "torchvision's alexnet, bf16, CUDA graph": GpuCase(case=replace(rival, cuda_graph=True)),
        "bf16, compiled, CUDA graph": GpuCase(case=replace(graph, compile="on"), target=goal),
        "bf16, compiled with graphs": GpuCase(case=replace(half, compile="graphs"), target=goal),
        "TF32, compiled with graphs": GpuCase(case=replace(ours, compile="graphs")),
    }


def compare_step(title: str, case: GpuCase, baseline: Case, rounds: int) -> list[Row]:
    """A case and the baseline in turns, with the GPU to themselves."""
    # What the case before held, also one that failed.
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    name = f"batch {baseline.batch}: plain eager TF32"
    cases = {
        name: partial(_run_steps, training_step(baseline), baseline),
        title: partial(_run_steps, training_step(case.case), case.case),
    }
    return compared(interleaved(cases, rounds), baseline=name, targets={title: case.target})


def _run_steps(step: Callable[[], None], case: Case) -> float:
    count = max(FEWEST, STEPS * min(TARGETS) // case.batch)
    for _ in range(count):
        step()
    wait_for(case.device)
    return count * case.batch


def memory(title: str, case: Case) -> list[Row]:
    """What MANY steps add to the memory that torch holds after the first ones, in MiB."""
    step = training_step(case)
    _run_steps(step, case)
    before = torch.cuda.memory_reserved()
    for _ in range(MANY):
        step()
    wait_for(case.device)
    held = torch.cuda.memory_reserved()
    return [
        row(f"batch {case.batch}: {title}, memory", [held / 2**20], "MiB"),
        row(f"batch {case.batch}: {title}, growth in {MANY} steps", [(held - before) / 2**20],
            "MiB", "<= 0"),
    ]  # fmt: skip


def norms(name: str, dtype: torch.dtype, device: torch.device, rounds: int) -> list[Row]:
    """Forward and backward of conv1's norm, 128 images, next to the formula and to a copy.

    The copy moves what the norm must: x in and y out; x and g in and dx out.
    """
    x = torch.randn(NORMED, device=device).mul_(50).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    baseline = f"LRN of conv1, {name}, nn.LocalResponseNorm"
    cases = {
        baseline: partial(_norm, lrn_formula, x.contiguous()),
        f"LRN of conv1, {name}": partial(_norm, local_response_norm, x),
        f"LRN of conv1, {name}, NCHW": partial(_norm, local_response_norm, x.contiguous()),
        f"LRN of conv1, {name}, as a copy of its 5 tensors": partial(_copies, x),
    }
    return compared(interleaved(cases, rounds), baseline=baseline)


def _norm(norm: Callable[..., Tensor], x: Tensor) -> float:
    x = x.detach().requires_grad_()
    for _ in range(STEPS):
        torch.autograd.grad(norm(x, Lrn(), groups=2), x, x.detach())
    wait_for(str(x.device))
    return STEPS * len(x)


def _copies(x: Tensor) -> float:
    target = torch.empty_like(x)
    for _ in range(STEPS):
        # A copy reads one tensor and writes one: two and a half of them make five.
        target.copy_(x)
        target.copy_(x)
        target[: len(x) // 2].copy_(x[: len(x) // 2])
    wait_for(str(x.device))
    return STEPS * len(x)


def bounds(batch: int, device: torch.device, rounds: int) -> list[Row]:
    """Images/s that the machine's own rates of arithmetic and of traffic would allow."""
    matrix = torch.randn(SIDE, SIDE, device=device)
    values = torch.randn(COPIED, device=device, dtype=torch.bfloat16)
    image_bytes = step_bytes(code2012(), batch) / batch
    baseline = f"batch {batch}: TF32, bound of FLOPs"
    cases: Mapping[str, Callable[[], float]] = {
        baseline: partial(_product, matrix),
        f"batch {batch}: bf16, bound of FLOPs": partial(_product, matrix.bfloat16()),
        f"batch {batch}: bf16, bound of bytes": partial(
            _copy, values, torch.empty_like(values), image_bytes
        ),
    }
    return compared(interleaved(cases, rounds), baseline=baseline)


def step_flops(network: ModelConfig) -> float:
    """Of one image: forward, and backward to weights and inputs; conv1's need no gradient."""
    table = list(sizes(network))
    return 2.0 * (3 * sum(size.macs for size in table) - table[0].macs)


def step_bytes(network: ModelConfig, batch: int) -> float:
    """The least that a bf16 step of a batch moves through the GPU's memory.

    Every layer's output is written and read forward, and its gradient written and read backward,
    where the output is read once more; weights are read twice and their gradients written in bf16,
    and SGD reads weight, momentum and gradient and writes weight and momentum in float32.
    """
    outputs = sum(size.neurons for size in sizes(network))
    images = 3 * network.crop**2
    return 2.0 * batch * (5 * outputs + 2 * images) + parameter_count(network) * (3 * 2.0 + 5 * 4.0)


def _product(matrix: Tensor) -> float:
    for _ in range(STEPS):
        torch.mm(matrix, matrix)
    wait_for(str(matrix.device))
    return STEPS * 2 * SIDE**3 / step_flops(code2012())


def _copy(source: Tensor, target: Tensor, image_bytes: float) -> float:
    for _ in range(STEPS):
        target.copy_(source)
    wait_for(str(source.device))
    return STEPS * 2 * source.nbytes / image_bytes
