# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# torch types backward() and the like only in part.
"""What each layer of the full network takes of a step on a CPU, and what bounds it."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from alexnet import build
from alexnet.model.networks import code2012
from alexnet.model.spec import sizes
from alexnet.training.memory import keep_freed_memory
from alexnet.training.step import set_channels_last
from alexprep.bench.frame import Row, interleaved, row, rows

BATCH = 64
SIDE = 2048  # of the matrices whose product gives the arithmetic a machine can do


def layers(rounds: int) -> list[Row]:
    """Milliseconds of every layer, forward and backward, in float32 and bf16.

    Weight layers are also held against a large matrix product, the most arithmetic that the
    machine does: near it, arithmetic bounds them. The stages between them (norms, pools, neurons,
    dropout) do next to no arithmetic for what they move: memory bounds those.
    """
    keep_freed_memory()
    found: list[Row] = []
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        floor = f"{name} matrix product"
        rates = {floor: _products(dtype, rounds)}
        for layer, part, gigaflops, milliseconds in _parts(dtype, rounds):
            label = f"{name} {layer} {part}"
            found.append(row(label, milliseconds, "ms a step of 64"))
            if gigaflops:
                rates[label] = [gigaflops / ms * 1000 for ms in milliseconds]
        found += rows(rates, floor=floor, unit="GFLOP/s")
    return found


def _parts(dtype: torch.dtype, rounds: int) -> list[tuple[str, str, float, list[float]]]:
    """(layer, "weights" or "stages", GFLOP, milliseconds) in order, with real input shapes."""
    config = code2012()
    model = build(config)
    set_channels_last(model)
    side = config.crop + config.pad_end
    x = torch.randn(BATCH, 3, side, side).to(memory_format=torch.channels_last) * 60
    found: list[tuple[str, str, float, list[float]]] = []
    for number, size in enumerate(sizes(config)):
        # conv1 has no gradient to pass on: two products instead of three.
        gigaflops = 2 * size.macs * BATCH * (2 if number == 0 else 3) / 1e9
        weights = model.get_submodule(size.name)
        x, milliseconds = _timed(weights, x, dtype, rounds, first=number == 0)
        found.append((size.name, "weights", gigaflops, milliseconds))
        if config.layers[number].then:
            stages = partial(_stages, model.get_submodule("stages"), number)
            x, milliseconds = _timed(stages, x, dtype, rounds, first=False)
            found.append((size.name, "stages", 0.0, milliseconds))
    return found


def _stages(stages: Callable[[Tensor, int], Tensor], number: int, x: Tensor) -> Tensor:
    return stages(x, number)


def _timed(
    layer: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype, rounds: int, *, first: bool
) -> tuple[Tensor, list[float]]:
    """The output for x, and the milliseconds of forward and backward."""
    bf16 = dtype == torch.bfloat16
    milliseconds: list[float] = []
    y = x
    for turn in range(rounds + 1):
        leaf = x.detach().requires_grad_(not first)
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(leaf)
        y.backward(torch.ones_like(y))
        if turn:
            milliseconds.append((time.perf_counter() - began) * 1000)
    return y.detach(), milliseconds


def _products(dtype: torch.dtype, rounds: int) -> list[float]:
    one = torch.randn(SIDE, SIDE).to(dtype)
    work = 2 * SIDE**3 / 1e9
    return interleaved({"": lambda: work * bool(len(one @ one))}, rounds)[""]
