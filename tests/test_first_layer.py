"""conv1 with all that follows it in one kernel a pass: values by Triton's interpreter against
float64, its code for Hopper, which networks it serves, and when it is used."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from alexnet import build
from alexnet.errors import RunError
from alexnet.model import cuda_ops, networks
from alexnet.model.grouped import Stages, weight_layer
from alexnet.model.spec import sizes, with_rows
from alexnet.training.config import TrainConfig
from alexnet.training.step import prepare_model
from tests.kernel_scripts import DEVICES, run_on

pytest.importorskip("triton", reason="Triton comes for Linux alone")

SCRIPT = """
import torch
import torch.nn.functional as F
from alexnet.model import first_triton as kernels
from alexnet.model.spec import Lrn

LAYOUT = torch.channels_last

def numbers(words, channels, groups):
    # Which pixel of its window each maximum is: eight channels a word, groups apart.
    shifts = 4 * torch.arange(8)[:, None, None]
    digits = ((words[:, :, None] >> shifts) & 15).flatten(1, 2)
    return torch.cat([part[:, : channels // groups] for part in digits.chunk(groups, 1)], 1)

def pixels_of(taps, side):
    row, column = (torch.arange(size) for size in taps.shape[2:])
    taps = taps.long()
    return (2 * row[:, None] + taps // 3) * side + 2 * column + taps % 3
"""

NORM = """
def near(name, kernel, expected, bound):
    error = (kernel.double() - expected).abs().max() / expected.abs().max()
    assert error <= bound, (name, float(error), bound)

torch.manual_seed(0)
norm = Lrn(5, 0.5, 0.75, 1.0)
# 48 and 3 zeros give 11 outputs, of which the last row and column see zeros; 44 gives 9; 92 takes
# two programs of rows of maxima; 20 channels in two groups end within a word, 48 are those of 2012.
for count, side, pad_end, channels, groups, relu in (
    (1, 48, 3, 20, 2, True),
    (2, 44, 0, 48, 1, False),
    (1, 92, 0, 6, 1, True),
):
    images = (torch.randn(count, 3, side, side) * 2).bfloat16().to(memory_format=LAYOUT)
    weight = (torch.randn(channels, 3, 11, 11) / 10).bfloat16().to(memory_format=LAYOUT)
    bias = torch.randn(channels)
    out_side = (side + pad_end - 11) // 4 + 1
    wide, wide_bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    padded = F.pad(images.double(), (0, pad_end, 0, pad_end))
    x = F.conv2d(padded, wide, wide_bias, stride=4)
    assert x.shape[2] == out_side
    z = torch.cat([F.local_response_norm(part, *norm) for part in x.chunk(groups, 1)], 1)
    expected = F.max_pool2d(z, 3, 2, ceil_mode=True)
    sizes = (out_side, groups)
    y, words, packed = kernels.forward(images, weight, bias, sizes, norm, relu)
    # Products of bfloat16 are exact in float32. The result is rounded to 8 bits, which the
    # interpreter cuts off.
    bound = 2**-7
    near("maxima", y, expected.relu() if relu else expected, bound)
    taps = numbers(words, channels, groups)
    silent = taps == 15
    assert torch.equal(silent, (y == 0) & relu)
    # Of equal rounded values the first is the maximum: gradients go where the kernel says.
    flat = pixels_of(taps.masked_fill(silent, 0), out_side).flatten(2)
    chosen = z.flatten(2).gather(2, flat).view(y.shape)
    near("chosen values", chosen.detach() * ~silent, expected.detach() * ~silent, bound)
    g = torch.randn(y.shape).bfloat16().to(memory_format=LAYOUT)
    gradients = torch.autograd.grad(chosen, (wide, wide_bias), g.double() * ~silent)
    saved = (images, weight, bias, words, packed)
    own = kernels.backward(g, saved, sizes, norm)
    # The gradient is cut off before the product, whose terms cancel in part.
    near("gradient", own[0], gradients[0], 2 * bound)
    near("gradient of the bias", own[1], gradients[1], 2 * bound)
    assert own[0].dtype == torch.bfloat16 and own[0].stride() == weight.stride()
    assert own[1].dtype == torch.float32
    if groups == 1:
        continue
    # Weights that are float32 are rounded, and so is the bias, to 16 bits; their gradients are not.
    master, grown = weight.float() * (1 + 2**-12), bias * 100
    same = kernels.forward(images, master, bias, sizes, norm, relu)
    assert torch.equal(same[0], y) and torch.equal(same[1], words)
    own = kernels.backward(g, (images, master, bias, *same[1:]), sizes, norm)
    assert own[0].dtype == torch.float32
    # Weights and biases with gaps between them, as a slice of others.
    gaps = torch.stack([master, master + 1], -1)[..., 0], torch.stack([bias, bias + 1], -1)[..., 0]
    spread = kernels.forward(images, *gaps, sizes, norm, relu)
    assert torch.equal(spread[0], y) and torch.equal(spread[2], same[2])
    loose = kernels.backward(g, (images, *gaps, *spread[1:]), sizes, norm)
    assert torch.equal(loose[0], own[0]) and torch.equal(loose[1], own[1])
    x = F.conv2d(padded, wide, None, stride=4) + grown.double()[:, None, None]
    flat_norm = Lrn(5, 0.0, 0.75, 1.0)
    y = kernels.forward(images, weight, grown, sizes, flat_norm, False)[0]
    near("large biases", y, F.max_pool2d(x, 3, 2, ceil_mode=True), bound)
"""

TIES = """
# Small whole numbers are exact, and many are equal: values and places are torch's to the bit.
torch.manual_seed(1)
images = torch.randint(-1, 2, (2, 3, 44, 44)).bfloat16().to(memory_format=LAYOUT)
weight = torch.zeros(8, 3, 11, 11)
places = torch.randint(0, 363, (8, 3))
weight.view(8, -1).scatter_(1, places, torch.ones(8, 3))
weight = weight.bfloat16().to(memory_format=LAYOUT)
bias = torch.arange(-4.0, 4.0)
images[1, 1, 20, 20] = -float("nan")  # as processors make it of infinities
x = F.conv2d(F.pad(images.double(), (0, 3, 0, 3)), weight.double(), bias.double(), stride=4)
side = x.shape[2]
expected, places = F.max_pool2d(x, 3, 2, ceil_mode=True, return_indices=True)
norm = Lrn(5, 0.0, 0.75, 1.0)
y, words, packed = kernels.forward(images, weight, bias, (side, 1), norm, False)
# A product with a zero weight is NaN where the image is not finite: in the kernel as in torch.
torch.testing.assert_close(y.double(), expected, rtol=0, atol=0, equal_nan=True)
# Of several NaN in a window torch takes the last.
known = ~expected.isnan()
assert torch.equal(pixels_of(numbers(words, 8, 1), side)[known], places[known])
assert expected.isnan().any() and (expected.diff() == 0).any()
# A bias keeps 16 bits until it is added: 256.5 are not 256, nor what bfloat16 makes of them.
apart = torch.zeros_like(weight)
apart[0, :, :8, :8] = -2
apart[0, :, 7, 7] = -2 - 64
ones = torch.ones(1, 3, 44, 44).bfloat16().to(memory_format=LAYOUT)
answer = kernels.forward(ones, apart, torch.full((8,), 576.5), (9, 1), norm, False)[0]
assert (answer[:, 0] == 0.5).all() and (answer[:, 1:] == 576).all()
g = torch.randint(-2, 3, y.shape).bfloat16().to(memory_format=LAYOUT)
images = torch.randint(-1, 2, images.shape).bfloat16().to(memory_format=LAYOUT)
x = F.conv2d(F.pad(images.double(), (0, 3, 0, 3)), weight.double(), bias.double(), stride=4)
wide = weight.double().requires_grad_()
wide_bias = bias.double().requires_grad_()
x = F.conv2d(F.pad(images.double(), (0, 3, 0, 3)), wide, wide_bias, stride=4)
y, words, packed = kernels.forward(images, weight, bias, (side, 1), norm, False)
z = F.max_pool2d(x, 3, 2, ceil_mode=True)
gradients = torch.autograd.grad(z, (wide, wide_bias), g.double())
own = kernels.backward(g, (images, weight.float(), bias, words, packed), (side, 1), norm)
for actual, expected in zip(own, gradients):
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=0)
"""

SUMS = """
# More programs than are summed at once, and places of terms by those of a convolution.
torch.manual_seed(4)
sums = torch.randint(-9, 10, (70, 6, 368)).float()
weight = torch.zeros(6, 3, 11, 11).to(memory_format=LAYOUT)
bias = torch.zeros(6)
kernels._unpack[(6, 3)](sums, weight, bias, 70, *weight.stride(), OUT=6)
total = sums.sum(0)
rows = torch.cat([total[:, :352].view(6, 11, 32), total[:, 352:363, None]], 2)
assert torch.equal(weight, rows.view(6, 11, 11, 3).permute(0, 3, 1, 2))
assert torch.equal(bias, total[:, 363])
packed = torch.empty(368, 6, dtype=torch.bfloat16)
kernels._pack[(23,)](weight, bias, packed, *weight.stride(), OUT=6, BLOCK=8)
assert torch.equal(packed[:363].float(), total[:, :363].T.bfloat16().float())
assert torch.equal(packed[363:365].float().sum(0), bias) and not packed[365:].any()
"""

NETWORK = """
from dataclasses import replace
from alexnet import build
from alexnet.model import cuda_ops
from alexnet.model.networks import code2012
from alexnet.model.spec import with_rows
from alexnet.training.step import set_channels_last
from tests.census import Operations

cuda_ops.KERNEL_DEVICES.add(DEVICE)
torch.manual_seed(2)
# Whole numbers and a norm that leaves them: both ways are exact, and all must be equal.
config = replace(with_rows(code2012(), conv1={"out": 16}), crop=44, lrn_alpha=0.0, lrn_k=1.0)
images = torch.randint(-1, 2, (1, 3, 44, 44)).float().to(memory_format=LAYOUT)
for form in ("grouped", "columns"):
    model = build(config, seed=3, form=form).to(DEVICE)
    set_channels_last(model)
    for column in [model] if form == "grouped" else model.local:
        first = column.get_submodule("conv1")
        weight, bias = first.weight, first.bias
        weight.data.copy_(torch.randint(0, 50, weight.shape) == 0)
        bias.data.copy_(torch.randint(-3, 4, bias.shape))
        answers = {}
        for fused in (False, True):
            column.stages.fuse_first = fused
            with torch.autocast(images.device.type, torch.bfloat16), Operations() as log:
                x = column.stages.prepare(first, images, config)
                y = column.stages(first, x, 0)
            g = torch.arange(y.numel()).view(y.shape).remainder(5).sub(2).to(y.dtype)
            answers[fused] = (y, *torch.autograd.grad(y, (weight, bias), g))
            assert ("alexnet.conv_norm_pool.default" in log.names) == fused
            assert any("convolution" in name for name in log.names) == (not fused)
        assert answers[True][0].unique().numel() > 5
        for own, other in zip(answers[True], answers[False]):
            torch.testing.assert_close(own, other, rtol=0, atol=0)
"""


def run_on_hopper(device, script):
    if device == "cuda" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("The kernel is for Hopper GPUs.")
    run_on(device, SCRIPT + script)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "script", [NORM, TIES, SUMS, NETWORK], ids=["norm", "ties", "sums", "network"]
)
def test_values_and_gradients_are_those_of_torch(script, device):
    run_on_hopper(device, script)


# As code2012 launches them, whole and as one column.
CONSTANTS = {
    **{"SIDE": 224, "OUT_SIDE": 55, "ROWS": 27, "CHANNELS": 48, "WORDS": 6, "SHARE": 2e-5},
    "K": 2.0,
}
CASES = {
    "forward": ("_forward", {**CONSTANTS, "RELU": True, "CHUNK": 9}, 2275),
    "backward": ("_backward", CONSTANTS, 3200),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_compiles_for_hopper_without_spills_and_with_its_products(case, groups, tmp_path):
    import ahead_of_time  # noqa: PLC0415 - Triton is not everywhere

    from alexnet.model import first_triton  # noqa: PLC0415

    name, constants, budget = CASES[case]
    kernel = ahead_of_time.compiled(
        getattr(first_triton, name), {**constants, "GROUPS": groups}, {"tiles": 28 * 37}, 90,
        types={"taps_pointer": "*i32", "sums_pointer": "*fp32"}, **first_triton.OPTIONS,
    )  # fmt: skip
    assert not ahead_of_time.spills(kernel, tmp_path)
    code = Counter(ahead_of_time.instructions(kernel, tmp_path))
    # The products are those of Hopper, none of an older kind: of 128 pixels and 64 channels 23
    # steps of 16 terms, and sums over channels; backward of 64 channels and 368 terms 8 of 16
    # pixels besides.
    assert not any(instruction.startswith("HMMA") for instruction in code)
    assert any(instruction.startswith("HGMMA") for instruction in code)
    # Values of images are loaded four at a time, but for the last of a kernel's row.
    loads = Counter()
    for instruction, count in code.items():
        if instruction.startswith("LDG"):
            loads["narrow" if "U16" in instruction or "U8" in instruction else "wide"] += count
    assert loads["narrow"] <= 8
    assert loads["wide"] > 5 * loads["narrow"]
    assert code.total() <= budget
    # What an H100 has for a program.
    assert kernel.metadata.shared <= 227 * 1024


@pytest.mark.parametrize("weights", ["*bf16", "*fp32"])
@pytest.mark.parametrize(
    ("name", "constants"), [("_pack", {"OUT": 96, "BLOCK": 128}), ("_unpack", {"OUT": 96})]
)
def test_weights_and_their_gradients_compile_without_spills(name, constants, weights, tmp_path):
    import ahead_of_time  # noqa: PLC0415 - Triton is not everywhere

    from alexnet.model import first_triton  # noqa: PLC0415

    # Of weights in channels_last.
    steps = {"step_out": 363, "step_color": 1, "step_row": 33, "step_column": 3, "programs": 66}
    types = {"weight_pointer": weights, "bias_pointer": "*fp32", "sums_pointer": "*fp32"}
    kernel = ahead_of_time.compiled(
        getattr(first_triton, name), constants, steps, 90, types=types, num_warps=4
    )
    assert not ahead_of_time.spills(kernel, tmp_path)


def stage(config):
    size = next(iter(sizes(config)))
    with torch.device("meta"):
        first = weight_layer(config.layers[0], size.weight, size.groups)
        stages = Stages(config, seed=0, columns=range(config.columns))
    stages.fuse_first = True
    images = torch.empty(2, 3, config.crop, config.crop, dtype=torch.bfloat16)
    return stages, first, images.to(memory_format=torch.channels_last)


def test_the_kernel_serves_the_networks_of_2012_and_no_others(monkeypatch):
    monkeypatch.setattr(cuda_ops, "KERNEL_DEVICES", {"cpu"})
    monkeypatch.setattr("alexnet.model.first_layer.KERNEL_DEVICES", {"cpu"})
    served = set()
    for name, maker in vars(networks).items():
        own = getattr(maker, "__module__", "") == networks.__name__
        if not own or name in ("smoke", "_head"):
            continue
        stages, first, images = stage(maker())
        if stages.serves_first(first, images):
            served.add(name)
    # Not those with crops of 227 (rows do not begin at a multiple of four values), with 96 maps a
    # column, with another neuron, norm or pooling.
    assert served == {
        "code2012", "one_gpu", "six_conv", "no_communication", "no_dropout", "four_conv",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"lrn_size": 3},
        {"lrn_beta": 0.5},
        {"pool_size": 2},
        {"crop": 226},
        {"crop": 264},
    ],
)
def test_the_kernel_refuses_what_it_does_not_know(change, monkeypatch):
    monkeypatch.setattr("alexnet.model.first_layer.KERNEL_DEVICES", {"cpu"})
    stages, first, images = stage(networks.code2012())
    assert stages.serves_first(first, images)
    assert not stages.serves_first(first, images.float())
    assert not stages.serves_first(first, images.contiguous())
    assert not stages.serves_first(first, images.requires_grad_())
    stages, first, images = stage(replace(networks.code2012(), **change))
    assert not stages.serves_first(first, images)


@pytest.mark.parametrize(
    "then",
    [
        *((), ("lrn",), ("pool", "act"), ("lrn", "spatial", "pool", "act")),
        *(("act", "lrn", "pool"), ("lrn", "pool", "act", "lrn"), ("pool", "lrn")),
    ],
)
def test_the_kernel_refuses_stages_in_another_order(then, monkeypatch):
    monkeypatch.setattr("alexnet.model.first_layer.KERNEL_DEVICES", {"cpu"})
    stages, first, images = stage(with_rows(networks.code2012(), conv1={"then": then}))
    assert not stages.serves_first(first, images)


def test_without_the_kernel_nothing_is_timed_and_asking_for_it_is_an_error():
    model = build(networks.smoke(networks.code2012()), seed=0)
    assert prepare_model(model, TrainConfig(precision="bfloat16")) is None
    assert model.stages.fuse_first is False
    with pytest.raises(RunError, match=r"train\.fuse_conv1=on needs a Hopper GPU"):
        prepare_model(model, TrainConfig(precision="bfloat16", fuse_conv1="on"))
    assert model.stages.fuse_first is False


TRIAL = """
import re
from dataclasses import replace
from unittest.mock import patch
from alexnet import build
from alexnet.model import cuda_ops
from alexnet.model.networks import code2012
from alexnet.model.spec import with_rows
from alexnet.model.grouped import Stages, weight_layer
from alexnet.model.spec import sizes, with_rows
from alexnet.training.config import TrainConfig
from alexnet.training import first_kernel
from alexnet.training.step import set_channels_last

cuda_ops.KERNEL_DEVICES.add(DEVICE)
first_kernel.PASSES = 1  # for the interpreter's sake
choose_first_kernel = first_kernel.choose_first_kernel
config = replace(with_rows(code2012(), conv1={"out": 16}), crop=44)
for form in ("grouped", "columns"):
    model = build(config, seed=3, form=form).to(DEVICE)
    set_channels_last(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    column = model if form == "grouped" else model.local[0]
    def choose(setting):
        config = TrainConfig(precision="bfloat16", fuse_conv1=setting)
        return choose_first_kernel(model, config, images=1, rounds=1)

    for setting in ("on", "off"):
        assert choose(setting) is None and column.stages.fuse_first == (setting == "on")
    if form == "grouped":
        note = choose("auto")
        fused, separate = map(float, re.findall(r"([0-9.]+) ms", note))
        assert column.stages.fuse_first == (fused < separate)
        # A kernel that computes something else, or nothing, is noticed and not used.
        for kernel in (kernels.forward, kernels.backward):
            def broken(*arguments, kernel=kernel):
                answer = kernel(*arguments)
                answer[0].mul_(1.1)
                return answer
            with patch.object(kernels, kernel.__name__, broken):
                note = choose("auto")
            assert re.search("left to cuDNN, .*its result differs by 0[.](09|1)", note), note
            assert not column.stages.fuse_first
        with patch.object(kernels, "_forward", None):
            assert "compared: TypeError: " in choose("auto") and not column.stages.fuse_first
    # A trial leaves nothing behind.
    assert torch.equal(chance, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(parameter.grad is None for parameter in model.parameters())
"""


@pytest.mark.parametrize("device", DEVICES)
def test_a_trial_takes_the_faster_form_that_is_right_and_changes_nothing_else(device):
    run_on_hopper(device, TRIAL)
