# pyright: reportUnknownMemberType=false
# torch.compile, backward and step are typed only in part.
"""One update of the weights, the sums that count errors, and how the network is run for both."""

import ctypes
import sys
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.distributed.averaging import GradientAverage
from alexnet.distributed.feed import Batch
from alexnet.training.config import TrainConfig
from alexnet.training.evaluate import TOP, rank_of_label
from alexnet.training.first_kernel import choose_first_kernel

# Names of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks instead of returning them to the kernel; True if it does.

    Activations are tens of megabytes. By default each is mapped anew every step, and the kernel
    clears its pages one by one: a third of the time of a step of the full network on two cores
    (docs/notes/network.md). The process stays at its largest size until it ends. Call it once,
    before the network is built; without glibc it does nothing.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) for name, value in settings)


class CompiledModel:
    """A network compiled for full batches; smaller ones run as they are.

    A second size would make torch compile a graph for all sizes, and use it for full batches too.
    """

    def __init__(self, model: nn.Module, *, mode: str | None, backend: Any = "inductor") -> None:
        self.model = model
        self.run = torch.compile(model, mode=mode, backend=backend, dynamic=False)
        self.images = 0  # of a full batch, the largest so far

    def __call__(self, images: Tensor) -> Tensor:
        self.images = max(self.images, len(images))
        return self.run(images) if len(images) == self.images else self.model(images)


def compiled(model: nn.Module, config: TrainConfig) -> Any:
    """The network as training calls it: itself, or its compiled form."""
    if config.compile == "off":
        return model
    return CompiledModel(model, mode="reduce-overhead" if config.compile == "graphs" else None)


def prepare_model(model: nn.Module, config: TrainConfig) -> str | None:
    """Give a network the type and layout of the config, in place, and its GPU the fastest kernels.

    Whoever measures training calls it too, so that it measures what is trained. Returns a line for
    the log where kernels were timed.
    """
    if config.precision == "float64":
        model.double()
    if config.channels_last:
        set_channels_last(model)
    if any(parameter.is_cuda for parameter in model.parameters()):
        use_fast_kernels()
    return choose_first_kernel(model, config)


def use_fast_kernels() -> None:
    """Let CUDA choose convolutions by trial, and multiply float32 as TF32; for all of the process.

    TF32 rounds factors to 11 bits, 8 times as finely as bfloat16. Without it the dense layers of a
    float32 run take a third of the step.
    """
    # Not the single flags: torch refuses a mixture of its older and its newer ones.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def set_channels_last(model: nn.Module) -> None:
    """Lay the weights of convolutions out as channels_last, in place."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def image_type(config: TrainConfig, device: str) -> Literal["float32", "bfloat16"]:
    """The type that a loader had best give images in: what the first convolution rounds them to.

    On a GPU that multiplies in bfloat16 they are rounded there anyway; rounded by the loader they
    take half the memory traffic. A CPU gets what it always got.
    """
    lower = config.precision == "bfloat16" and torch.device(device).type == "cuda"
    return "bfloat16" if lower else "float32"


def logits_of(model: Any, images: Tensor, config: TrainConfig) -> Tensor:
    """Logits (N, K) in the arithmetic and the memory format of the config; float32 at least."""
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    bfloat16 = config.precision == "bfloat16"
    if config.precision == "float64":
        images = images.double()
    elif not bfloat16 and images.dtype in (torch.bfloat16, torch.float16):
        images = images.float()  # autocast alone takes batches of another type than the weights'
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        logits: Tensor = model(images)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def train_step(
    model: Any,
    optimizer: torch.optim.SGD,
    batch: Batch,
    config: TrainConfig,
    average: GradientAverage | None = None,
) -> Tensor:
    """One update; returns the mean loss of the batch, left on its device.

    `average` is for one of several replicas, which have other images of the same batch.
    """
    images, labels = batch
    loss = F.cross_entropy(logits_of(model, images, config), labels)
    with average(len(labels)) if average else nullcontext():
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def count_errors(model: Any, batch: Batch, config: TrainConfig) -> Tensor:
    """(4,): images, the sum of their losses, their top-1 and their top-5 errors."""
    images, labels = batch
    logits = logits_of(model, images, config)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    rank = rank_of_label(logits, labels)
    count = loss.new_full((), len(labels))
    return torch.stack([count, loss, (rank >= 1).sum(), (rank >= TOP).sum()])
