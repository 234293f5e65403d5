"""Which kernels conv1 has on a Hopper GPU: one a pass, or cuDNN's and those of what follows it.

One kernel moves a quarter of the bytes, but multiplies more slowly than cuDNN. Which is faster
depends on the GPU and on the versions of cuDNN and Triton: both are timed before the first step, as
cuDNN times its own.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from alexnet.errors import RunError
from alexnet.model.columns import Columns
from alexnet.model.first_layer import Convolution
from alexnet.model.grouped import Grouped, Stages
from alexnet.model.spec import ModelConfig
from alexnet.training.config import TrainConfig

IMAGES = 256  # of a trial: enough to fill a GPU, few beside those of a run
ROUNDS = 7
WARMUP_ROUNDS = 2  # kernels are compiled, and cuDNN chooses


class FirstLayer(NamedTuple):
    """The first layer of a column, or of all, and what follows it."""

    convolution: Convolution
    stages: Stages
    network: ModelConfig


def choose_first_kernel(
    model: nn.Module, config: TrainConfig, images: int = IMAGES, rounds: int = ROUNDS
) -> dict[bool, float] | None:
    """Set whether conv1 is one kernel with its norm and pooling.

    Returns:
        The seconds of `images` images with that kernel (True) and with those of cuDNN and others
        (False); None where nothing was timed, for the config says it or there is one way only.

    Raises:
        RunError: the config asks for the kernel, which does not know this network or device.
    """
    layers = list(_first_layers(model))
    _fuse(layers, config.fuse_conv1 != "off")
    if not layers or not all(_is_fused(layer, config) for layer in layers):
        _fuse(layers, False)
        if config.fuse_conv1 == "on":
            raise RunError(
                "train.fuse_conv1=on needs a Hopper GPU (H100, H200), bfloat16, channels_last, and "
                "a network with the conv1 of code2012 and 64 maps a column at most. Leave it at "
                "auto."
            )
        return None
    if config.fuse_conv1 == "on":
        return None
    batches = [_images(layer, config, images) for layer in layers]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(WARMUP_ROUNDS + rounds):
        for fused, times in seconds.items():
            _fuse(layers, fused)
            elapsed = _seconds(layers, batches, config)
            times += [elapsed] if number >= WARMUP_ROUNDS else []
    medians = {fused: median(times) for fused, times in seconds.items()}
    _fuse(layers, medians[True] < medians[False])
    return medians


def _first_layers(model: nn.Module) -> Iterator[FirstLayer]:
    if not isinstance(model, (Grouped, Columns)):
        return  # not a network of ours
    for column in [model] if isinstance(model, Grouped) else model.local:
        first = column.get_submodule(model.layers[0])
        if isinstance(first, Convolution):
            yield FirstLayer(first, column.stages, model.config)


def _fuse(layers: Sequence[FirstLayer], fused: bool) -> None:
    for layer in layers:
        layer.stages.fuse_first = fused


def _images(layer: FirstLayer, config: TrainConfig, count: int) -> Tensor:
    """Images without values, as a loader would give them."""
    crop, weight = layer.network.crop, layer.convolution.weight
    return torch.zeros(
        (count, 3, crop, crop),
        dtype=torch.bfloat16 if config.precision == "bfloat16" else weight.dtype,
        device=weight.device,
    ).contiguous(
        memory_format=torch.channels_last if config.channels_last else torch.contiguous_format
    )


def _is_fused(layer: FirstLayer, config: TrainConfig) -> bool:
    return layer.stages.serves_first(layer.convolution, _images(layer, config, 1))


def _seconds(layers: Sequence[FirstLayer], batches: Sequence[Tensor], config: TrainConfig) -> float:
    """Of a forward and a backward pass."""
    devices = {images.device for images in batches}
    _wait(devices)
    began = time.perf_counter()
    for layer, images in zip(layers, batches, strict=True):
        lower = config.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=lower):
            x = layer.stages.prepare(layer.convolution, images, layer.network)
            y = layer.stages(layer.convolution, x, 0)
        weight, bias = layer.convolution.weight, cast(nn.Parameter, layer.convolution.bias)
        # Not `backward`: gradients of parameters, and who waits for them, are left alone.
        torch.autograd.grad(y, [p for p in (weight, bias) if p.requires_grad], torch.ones_like(y))
    _wait(devices)
    return time.perf_counter() - began


def _wait(devices: set[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
