# pyright: reportUnknownMemberType=false
# torch types CUDA graphs only in part.
"""The step as the trainer calls it: plain, or as one CUDA graph that is replayed.

A step of the full network is about 70 kernels, which the host launches one by one in longer than
they take at a batch of 128. A graph is launched at once, but it repeats what was captured: the same
kernels, at the same addresses. So batches are copied into inputs that stay, learning rates and the
position of dropout are tensors that are written before a replay, and a step that is another one is
captured anew.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.feed import Batch
from alexnet.distributed.mesh import Replicas
from alexnet.errors import RunError
from alexnet.training.config import TrainConfig
from alexnet.training.optim import Sgd
from alexnet.training.step import compiled, train_step

# Before a capture: kernels are chosen and compiled, and velocities begin.
WARMUP_STEPS = 3

Step = Callable[[Batch], Tensor]


@runtime_checkable
class WritesInto(Protocol):
    """A loader that can write full batches into memory that it is given; False if not into this."""

    def write_into(self, images: Tensor) -> bool: ...


def make_step(
    model: nn.Module, optimizer: Sgd, config: TrainConfig, average: GradientAverage | None = None
) -> Step:
    """The function that trains on one batch and returns its mean loss, left on its device.

    With `config.cuda_graph` the loss is overwritten by the next call.
    """
    forward = compiled(model, config)

    def step(batch: Batch) -> Tensor:
        return train_step(forward, optimizer, batch, config, average)

    if not config.cuda_graph:
        return step
    return GraphStep(step, partial(captured_state, model, optimizer))


def check_graph(model: nn.Module, replicas: Replicas) -> None:
    """RunError where the step cannot be one CUDA graph: on a CPU, several GPUs or processes."""
    devices = {parameter.device for parameter in model.parameters()}
    if {device.type for device in devices} != {"cuda"} or len(devices) > 1 or replicas.team:
        named = ", ".join(sorted(map(str, devices)))
        raise RunError(
            f"train.cuda_graph needs a single GPU and a single process, this network is on {named}"
            f"{' in several processes' if replicas.team else ''}. Leave it out, or use --devices "
            "cuda:0."
        )


def captured_state(model: nn.Module, optimizer: Sgd) -> Hashable:
    """What a captured step depends on besides tensors: which parameters learn, and how grouped."""
    frozen = tuple(not parameter.requires_grad for parameter in model.parameters())
    return (model.training, optimizer.generation, frozen)


class StaticStep:
    """A step whose inputs stay where they are; equal to the plain step in every bit.

    Batches smaller than the largest so far, as at the end of an epoch, take the plain step.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.inputs: Batch | None = None
        self._loader: WritesInto | None = None

    def offer_input(self, loader: object) -> None:
        """Let a loader that is able to write batches straight into the input, once it is there."""
        self._loader = loader if isinstance(loader, WritesInto) else None

    def __call__(self, batch: Batch) -> Tensor:
        images, labels = batch
        inputs = self.inputs
        if inputs is None or len(labels) > len(inputs[1]):
            self.inputs = inputs = (torch.empty_like(images), torch.empty_like(labels))
            if self._loader is not None:
                self._loader.write_into(inputs[0])
            self.reset()
        if images.shape != inputs[0].shape or images.dtype != inputs[0].dtype:
            return self.step(batch)
        if images.data_ptr() != inputs[0].data_ptr():
            inputs[0].copy_(images, non_blocking=True)
        inputs[1].copy_(labels, non_blocking=True)
        return self.run(inputs)

    def reset(self) -> None:
        """Called when the inputs are new ones."""

    def run(self, inputs: Batch) -> Tensor:
        """The step on the inputs."""
        return self.step(inputs)


class GraphStep(StaticStep):
    """A StaticStep on a GPU, captured after WARMUP_STEPS steps and replayed from then on.

    Args:
        step: trains on a batch.
        state: what decides which kernels it launches; it is captured anew when that changes.
    """

    def __init__(self, step: Step, state: Callable[[], Hashable]) -> None:
        super().__init__(step)
        self.state = state
        self.captures = 0
        self._state: Hashable = None
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._loss: Tensor | None = None

    def reset(self) -> None:
        """Forget the graph, and free its memory."""
        self._warm, self._graph, self._loss = 0, None, None

    def run(self, inputs: Batch) -> Tensor:
        state = self.state()
        if state != self._state:
            self._state = state
            self.reset()
        if self._warm < WARMUP_STEPS:
            self._warm += 1
            return self._warm_up(inputs)
        if self._graph is None or self._loss is None:
            self._graph, self._loss = self._capture(inputs)
        self._graph.replay()
        return self._loss

    def _warm_up(self, inputs: Batch) -> Tensor:
        """A plain step on another stream: what torch sets up there is not captured later."""
        device = inputs[0].device
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            loss = self.step(inputs)
        current.wait_stream(stream)
        return loss

    def _capture(self, inputs: Batch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The step as a graph; nothing is computed here."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(inputs[0].device),
            # The loader's threads allocate memory meanwhile, which does not end this capture.
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            loss = self.step(inputs)
        self.captures += 1
        return graph, loss
