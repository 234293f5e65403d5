"""Which kernels conv1 has on a Hopper GPU: one a pass, or cuDNN's and those of what follows it.

One kernel moves a quarter of the bytes, but multiplies more slowly than cuDNN. Which is faster
depends on the GPU and on the versions of cuDNN and Triton: both are timed before the first step, as
cuDNN times its own. What both compute is compared, too: a kernel that does not run there, or gives
something else, is not used.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.errors import RunError
from alexnet.model.columns import Columns
from alexnet.model.first_layer import Convolution
from alexnet.model.grouped import Grouped, Stages
from alexnet.model.spec import ModelConfig
from alexnet.training.config import TrainConfig

IMAGES = 1024  # of a trial: the GPU takes longer for them than the host to launch what they need
PASSES = 3  # between two waits for the GPU
ROUNDS = 7
# Of the difference of both ways, relative to the norms of the tensors. Each rounds to 8 bits, and
# another pixel of a window may be its maximum then, which changes terms of the gradients a little.
TOLERANCE = 2**-4


class FirstLayer(NamedTuple):
    """The first layer of a column, or of all, and what follows it."""

    convolution: Convolution
    stages: Stages
    network: ModelConfig


def choose_first_kernel(
    model: nn.Module, config: TrainConfig, images: int = IMAGES, rounds: int = ROUNDS
) -> str | None:
    """Set whether conv1 is one kernel with its norm and pooling; a line for the log.

    None where nothing was tried, for the config decides or there is one way only.

    Raises:
        RunError: the config asks for the kernel, which does not know this network or device.
    """
    layers = list(_first_layers(model))
    _fuse(layers, config.fuse_conv1 != "off")
    if config.fuse_conv1 == "off":
        return None
    if not layers or not all(_is_served(layer, config) for layer in layers):
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
    try:
        reason = _difference(layers, batches, config)
    except Exception as error:  # noqa: BLE001 - of a driver, Triton or its compiler, of any kind
        _check_devices(batches, error)
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[-1]}"
    if reason:
        _fuse(layers, False)
        return f"conv1 is left to cuDNN, with which one kernel was compared: {reason}"
    fused, separate = _seconds(layers, batches, config, rounds)
    _fuse(layers, fused < separate)
    return (
        f"conv1 with its norm and pooling: {1e3 * fused:.2f} ms for {images} images in one kernel, "
        f"{1e3 * separate:.2f} ms by cuDNN; the faster is used (train.fuse_conv1)"
    )


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


def _is_served(layer: FirstLayer, config: TrainConfig) -> bool:
    crop, device = layer.network.crop, layer.convolution.weight.device
    images = _as_loaded(torch.empty((1, 3, crop, crop), device=device), layer, config)
    return layer.stages.serves_first(layer.convolution, images)


def _images(layer: FirstLayer, config: TrainConfig, count: int) -> Tensor:
    """Smooth noise; torch's generator is left alone."""
    crop, device = layer.network.crop, layer.convolution.weight.device
    generator = torch.Generator(device).manual_seed(0)
    coarse = torch.randn((count, 3, 9, 9), device=device, generator=generator) * 60
    return _as_loaded(F.interpolate(coarse, (crop, crop), mode="bilinear"), layer, config)


def _as_loaded(images: Tensor, layer: FirstLayer, config: TrainConfig) -> Tensor:
    """Images in the type and layout in which a loader gives them."""
    dtype = torch.bfloat16 if config.precision == "bfloat16" else layer.convolution.weight.dtype
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return images.to(dtype).contiguous(memory_format=layout)


def _difference(
    layers: Sequence[FirstLayer], batches: Sequence[Tensor], config: TrainConfig
) -> str | None:
    """How far apart both ways are, if they are further than their roundings."""
    answers: list[list[Tensor]] = []
    for fused in (True, False):
        _fuse(layers, fused)
        answers.append(_pass(layers, batches, config))
    for own, other in zip(*answers, strict=True):
        distance = torch.dist(own.float(), other.float())
        if not distance <= TOLERANCE * other.float().norm():
            return f"its result differs by {float(distance / other.float().norm()):.3g}"
    return None


def _pass(
    layers: Sequence[FirstLayer], batches: Sequence[Tensor], config: TrainConfig
) -> list[Tensor]:
    """Maxima and gradients of all layers."""
    answers: list[Tensor] = []
    for layer, images in zip(layers, batches, strict=True):
        lower = config.precision == "bfloat16"
        kind = images.device.type
        with torch.enable_grad(), torch.autocast(kind, torch.bfloat16, enabled=lower):
            x = layer.stages.prepare(layer.convolution, images, layer.network)
            y = layer.stages(layer.convolution, x, 0)
        learned = [p for p in (layer.convolution.weight, layer.convolution.bias) if p is not None]
        # Not `backward`: gradients of parameters, and who waits for them, are left alone.
        learned = [cast(nn.Parameter, p) for p in learned if p.requires_grad]
        gradients = torch.autograd.grad(y, learned, y.detach()) if learned else ()
        answers += [y.detach(), *gradients]
    return answers


def _seconds(
    layers: Sequence[FirstLayer], batches: Sequence[Tensor], config: TrainConfig, rounds: int
) -> tuple[float, float]:
    """Of a forward and a backward pass: in one kernel, and otherwise. Median of rounds in turns."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for fused, times in seconds.items():
            _fuse(layers, fused)
            _wait(batches)
            began = time.perf_counter()
            for _ in range(PASSES):
                _pass(layers, batches, config)
            _wait(batches)
            times.append((time.perf_counter() - began) / PASSES)
    return median(seconds[True]), median(seconds[False])


def _check_devices(batches: Sequence[Tensor], error: Exception) -> None:
    """RunError if the error has made a GPU unusable for this process."""
    try:
        _wait(batches)
    except RuntimeError:
        raise RunError(
            f"The kernel of conv1 has failed on this GPU, which cannot go on: {error}. Start again "
            "with --set train.fuse_conv1=off."
        ) from error


def _wait(batches: Sequence[Tensor]) -> None:
    for device in {images.device for images in batches}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
