"""Single layers on one GPU: convolutions by groups and layout, and what follows them, by kernel.

Forward and backward in bf16, as a training step has them. They say what of a step is slow, and
whether cuDNN has a fast kernel for groups of a convolution in channels_last.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.first_layer import blocks_of_images, blocks_of_weight
from alexnet.model.grouped import Grouped, Stages
from alexnet.model.norms import lrn_formula, spatial_formula
from alexnet.model.spec import Conv, ModelConfig, Size, sizes
from alexnet.training.config import TrainConfig
from alexnet.training.step import prepare_model
from alexprep.bench.load_bench import wait_for
from alexprep.bench.measurement import Row, compared, interleaved
from benchmarks.gpu.steps import Measurement

STEPS = 20  # of one measurement
TYPE = torch.bfloat16
Layer = tuple[Conv, Size, int]  # with the pixels of a side of its input


def layer_measurements(
    network: ModelConfig, batch: int, device: str, rounds: int
) -> Iterator[Measurement]:
    """Every convolution of a network, and what follows it where it is more than a neuron."""
    side = network.crop
    title = f"batch {batch}: conv1 and all that follows it"
    yield title, partial(first_layer, title, network, (batch, device, rounds))
    for row, size in zip(network.layers, sizes(network), strict=True):
        if isinstance(row, Conv):
            title = f"batch {batch}: {row.name}"
            layer = (row, size, side)
            yield title, partial(convolutions, title, layer, network, (batch, device, rounds))
            if len(row.then) > 1:
                yield (
                    f"{title}, {', '.join(row.then)}",
                    partial(stages, title, layer, network, (batch, device, rounds)),
                )
            side = size.side


def convolutions(
    title: str, layer: Layer, network: ModelConfig, how: tuple[int, str, int]
) -> list[Row]:
    """A convolution in channels_last next to NCHW, to its groups one by one, and to blocks."""
    row, size, side = layer
    batch, device, rounds = how
    groups = size.groups
    first = row is network.layers[0]
    end = network.pad_end if first else 0
    shape = (batch, size.weight[1] * groups, side + end, side + end)
    x = torch.randn(shape, device=device, dtype=TYPE)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(not first)
    weight = torch.randn(size.weight, device=device, dtype=TYPE)
    weight = weight.contiguous(memory_format=torch.channels_last)
    sides = {"stride": row.stride, "padding": row.pad}
    baseline = f"{title}, {groups} groups, channels_last"
    cases: dict[str, Callable[[], float]] = {
        baseline: partial(_train, partial(F.conv2d, **sides, groups=groups), [x], weight, device),
        f"{title}, {groups} groups, NCHW": partial(
            _train,
            partial(F.conv2d, **sides, groups=groups),
            [_leaf(x.detach().contiguous(), x)],
            weight.contiguous(),
            device,
        ),
    }
    if groups > 1:
        parts = [_leaf(part.contiguous(memory_format=torch.channels_last), x)
                 for part in x.detach().chunk(groups, 1)]  # fmt: skip
        cases[f"{title}, {groups} convolutions"] = partial(
            _train, partial(F.conv2d, **sides), parts, weight, device
        )
    if row.stride > 1:
        blocks = blocks_of_images(x.detach()[..., :side, :side], row, end, x.dtype)
        cases[f"{title}, as blocks of {row.stride} x {row.stride}"] = partial(
            _train, partial(_blocks, row.stride), [blocks], weight, device
        )
    return compared(interleaved(cases, rounds), baseline=baseline)


def first_layer(title: str, network: ModelConfig, how: tuple[int, str, int]) -> list[Row]:
    """conv1 with all that follows it: by cuDNN and others, and in one kernel where there is one."""
    batch, device, rounds = how
    with torch.device(device):
        model = Grouped(network, seed=0)
    prepare_model(model, TrainConfig(fuse_conv1="off"))
    first = model.get_submodule(model.layers[0])
    shape = (batch, 3, network.crop, network.crop)
    images = torch.randn(shape, device=device).mul_(50).to(TYPE)
    images = images.contiguous(memory_format=torch.channels_last)
    baseline = f"{title}: cuDNN and others"
    cases = {baseline: partial(_pass_first, model, first, images, False)}
    model.stages.fuse_first = True
    if model.stages.serves_first(first, images):
        cases[f"{title}: one kernel"] = partial(_pass_first, model, first, images, True)
    return compared(interleaved(cases, rounds), baseline=baseline)


def _pass_first(model: Grouped, first: nn.Module, images: Tensor, fused: bool) -> float:
    model.stages.fuse_first = fused
    device = images.device.type
    for _ in range(STEPS):
        with torch.autocast(device, torch.bfloat16, enabled=images.dtype == torch.bfloat16):
            x = model.stages.prepare(first, images, model.config)
            y = model.stages(first, x, 0)
        torch.autograd.grad(y, list(first.parameters()), y.detach())
    wait_for(device)
    return STEPS * len(images)


def _leaf(x: Tensor, like: Tensor) -> Tensor:
    return x.detach().requires_grad_(like.requires_grad)


def _blocks(stride: int, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, blocks_of_weight(weight, stride))


def _train(
    convolve: Callable[[Tensor, Tensor], Tensor], inputs: list[Tensor], weight: Tensor, device: str
) -> float:
    """Images of some passes forward and backward; each input has its share of the weight."""
    weights = [share.detach().requires_grad_() for share in weight.chunk(len(inputs))]
    outputs: list[Tensor] = []
    for _ in range(STEPS):
        outputs = [convolve(x, share) for x, share in zip(inputs, weights, strict=True)]
        learning = [*(x for x in inputs if x.requires_grad), *weights]
        torch.autograd.grad(outputs, learning, [y.detach() for y in outputs])
    wait_for(device)
    return STEPS * len(inputs[0])


def stages(title: str, layer: Layer, network: ModelConfig, how: tuple[int, str, int]) -> list[Row]:
    """What follows a convolution in one kernel, in a kernel each, and in torch's operations.

    The copy moves what one kernel must: x twice and its gradient, and twice the maxima.
    """
    row, size, _ = layer
    batch, device, rounds = how
    number = network.layers.index(row)
    own = Stages(network, seed=0, columns=range(network.columns)).to(device)
    shape = (batch, row.out, size.conv_side, size.conv_side)
    x = torch.randn(shape, device=device).mul_(50).to(TYPE)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.zeros(row.out, device=device, requires_grad=True)
    values = x.numel() * 3 + 2 * row.out * batch * size.side**2
    baseline = f"{title}, {', '.join(row.then)}: torch"
    cases: Mapping[str, Callable[[], float]] = {
        baseline: partial(_pass, partial(_plain, network, row), x, bias, device),
        f"{title}: a kernel each": partial(_pass, partial(_separate, own, number), x, bias, device),
        f"{title}: one kernel": partial(_pass, partial(_fused, own, number), x, bias, device),
        f"{title}: a copy of what must move": partial(_copies, values // 2, batch, device),
    }
    return compared(interleaved(cases, rounds), baseline=baseline)


def _fused(own: Stages, number: int, x: Tensor, bias: Tensor | None) -> Tensor:
    for pairs in own.then[number]:
        x, bias = own.apply_pairs(x, bias, pairs, number), None
    return x


def _separate(own: Stages, number: int, x: Tensor, bias: Tensor | None) -> Tensor:
    for pairs in own.then[number]:
        for pair in pairs:
            x, bias = own.apply_pairs(x, bias, (pair,), number), None
    return x


def _plain(network: ModelConfig, row: Conv, x: Tensor, bias: Tensor) -> Tensor:
    x = x + bias.to(x.dtype)[:, None, None]
    for stage in row.then:
        if stage == "act":
            x = x.relu()
        elif stage == "lrn":
            x = lrn_formula(x, network.lrn, groups=network.columns)
        elif stage == "spatial":
            x = spatial_formula(x, network.spatial)
        else:
            x = F.max_pool2d(x, network.pool_size, network.pool_stride, ceil_mode=True)
    return x


def _pass(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, bias: Tensor, device: str
) -> float:
    for _ in range(STEPS):
        y = function(x, bias)
        torch.autograd.grad(y, (x, bias), y.detach())
    wait_for(device)
    return STEPS * len(x)


def _copies(values: int, images: int, device: str) -> float:
    """Copy so many values: each is read and written."""
    source = torch.empty(values, device=device, dtype=TYPE)
    target = torch.empty_like(source)
    for _ in range(STEPS):
        target.copy_(source)
    wait_for(device)
    return STEPS * images
