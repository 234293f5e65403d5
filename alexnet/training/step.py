# pyright: reportUnknownMemberType=false
# torch.compile, backward and step are typed only in part.
"""One update of the weights, and the sums that count errors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.distributed.replicas import ALONE, Replicas
from alexnet.training.config import TrainConfig
from alexnet.training.evaluate import TOP, places
from alexnet.training.meter import Batch


def compiled(model: nn.Module, config: TrainConfig) -> Any:
    """The network as it is called in training: itself, or what torch.compile makes of it."""
    if config.compile == "off":
        return model
    mode = "reduce-overhead" if config.compile == "graphs" else None
    return torch.compile(model, mode=mode)


def set_channels_last(model: nn.Module) -> None:
    """Lay the weights of convolutions out as channels_last, in place."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def logits_of(model: Any, images: Tensor, config: TrainConfig) -> Tensor:
    """Logits (N, K) in the arithmetic and the memory format of the config; float32 at least."""
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if config.precision == "float64":
        images = images.double()
    bfloat16 = config.precision == "bfloat16"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        logits: Tensor = model(images)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def train_step(
    model: Any,
    optimizer: torch.optim.SGD,
    batch: Batch,
    config: TrainConfig,
    replicas: Replicas = ALONE,
) -> Tensor:
    """One update; the mean loss of the batch, left on its device."""
    images, labels = batch
    loss = F.cross_entropy(logits_of(model, images, config), labels)
    loss.backward()
    replicas.average_gradients(optimizer, len(labels))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def count_errors(model: Any, batch: Batch, config: TrainConfig) -> Tensor:
    """Images, sum of their losses, wrong in the first place, wrong in the first five: (4,)."""
    images, labels = batch
    logits = logits_of(model, images, config)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    place = places(logits, labels)
    count = loss.new_tensor(float(len(labels)))
    return torch.stack([count, loss, (place >= 1).sum(), (place >= TOP).sum()])
