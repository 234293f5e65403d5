"""What CUDA does in kernels of Triton equals what torch does: pooling with the neuron, dropout, the
blocks of conv1, and a step of the whole network. Triton's interpreter runs the kernels on a CPU.
"""

import pytest
import torch
import torch.nn.functional as F

from alexnet.model.first_layer import (
    blocks_of_images,
    blocks_of_weight,
    network_images,
    padded_images,
)
from alexnet.model.grouped import fused_stages
from alexnet.model.networks import caffe, code2012, smoke, torchvision
from tests.kernel_scripts import DEVICES, run_on

SCRIPT = """
import torch
import torch.nn.functional as F
from alexnet.model import cuda_ops
cuda_ops.KERNEL_DEVICES.add(DEVICE)
torch.manual_seed(0)
"""

POOLING = """
def check(x, size, stride, before, after):
    g = torch.randn(F.max_pool2d(x, size, stride, ceil_mode=True).shape)
    g = g.to(x.dtype).to(memory_format=torch.channels_last)
    wide = x.double().requires_grad_()
    # Whole numbers: the sum with the values stays one, and exact.
    bias = torch.arange(x.shape[1]).remainder(3).float().requires_grad_()
    wide_bias = bias.detach().double().requires_grad_()
    biased = wide + wide_bias[:, None, None]
    expected = after(F.max_pool2d(before(biased), size, stride, ceil_mode=True))
    expected.backward(g.double())
    own = x.clone(memory_format=torch.preserve_format).requires_grad_()
    assert cuda_ops.serves_pool(own, size)
    y = cuda_ops.max_pool(own, bias, size, stride, relu=torch.relu in (before, after))
    y.backward(g)
    torch.testing.assert_close(bias.grad.double(), wide_bias.grad, rtol=1e-5, atol=1e-5)
    # A maximum is one of the values; of at most four gradients the sum is rounded once.
    assert torch.equal(y.double().nan_to_num(7.5), expected.nan_to_num(7.5))
    digits = {torch.float32: 2**-22, torch.bfloat16: 2**-7}[x.dtype]
    torch.testing.assert_close(own.grad.double(), wide.grad, rtol=digits, atol=digits)
    assert own.grad.stride() == x.stride() and y.dtype == own.grad.dtype == x.dtype

def same(x):
    return x

for dtype in (torch.float32, torch.bfloat16):
    # Integers from -3 to 3 make ties in nearly every window; 9, 10 and 8 rows are sizes where the
    # last window ends at the edge, reaches beyond it, and would begin beyond it.
    for shape, size, stride in (
        ((1, 70, 9, 10), 3, 2), ((1, 64, 8, 7), 2, 2), ((2, 8, 9, 8), 3, 3), ((1, 3, 5, 5), 3, 1),
        ((1, 35, 8, 9), 4, 3),  # more than 15 pixels: their numbers take eight bits
    ):
        if dtype == torch.bfloat16 and size != stride + 1:
            continue
        x = torch.randint(-3, 4, shape).to(dtype).to(memory_format=torch.channels_last)
        for before, after in ((same, same), (torch.relu, same), (same, torch.relu)):
            check(x, size, stride, before, after)
        check(torch.full_like(x, float("-inf")), size, stride, same, same)
        x[0, 0, 2, 2] = x[0, 1, 4, 4] = float("nan")
        check(x, size, stride, same, torch.relu)
"""

NETWORK = """
from alexnet.builder import build
from alexnet.model import networks

torch.backends.cudnn.allow_tf32 = False

def step(forward, model, layout):
    generator = torch.Generator("cpu").manual_seed(1)
    images = torch.randn(1, 3, 40, 40, generator=generator, device="cpu").to(DEVICE) * 50
    logits = forward(images.contiguous(memory_format=layout))
    F.cross_entropy(logits, torch.tensor([3])).backward()
    return [logits.detach(), *(p.grad for p in model.parameters())]

# In float32 what differs shows: in the 16 bits of training rounding would hide it.
cuda_ops.NORM_POOL_TYPES.add(torch.float32)
used = set()
class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        used.add(str(func).split(".")[1])
        return func(*args, **(kwargs or {}))

for name, form in (
    ("code2012", "grouped"), ("code2012", "columns"),
    ("paper", "grouped"), ("torchvision", "grouped"),
):
    config = networks.smoke(getattr(networks, name)(), crop=40, classes=5)
    cuda_ops.KERNEL_DEVICES.clear()
    model = build(config, form=form, devices=(DEVICE,))
    expected = step(model, model, torch.contiguous_format)
    cuda_ops.KERNEL_DEVICES.add(DEVICE)
    model = build(config, form=form, devices=(DEVICE,))
    if (name, form) == ("code2012", "grouped"):
        whole = torch.compile(model, backend="aot_eager", fullgraph=True)
        actual = step(whole, model, torch.channels_last)
    else:  # torch compiles nothing under such a mode
        with Calls():
            actual = step(model, model, torch.channels_last)
    for own, plain in zip(actual, expected, strict=True):
        # float32 in another order of sums: 1e-4 of the largest value, for single values cancel.
        assert (own - plain).abs().max() <= 1e-4 * plain.abs().max() + 1e-12, (name, form)
assert {"max_pool", "max_pool_backward", "drop", "norm_pool", "norm_pool_backward"} <= used
assert {"bias_relu", "bias_relu_backward", "drop_backward"} <= used
"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("script", [POOLING, NETWORK], ids=["pooling", "network"])
def test_kernels_compute_what_torch_computes(script, device):
    run_on(device, SCRIPT + script)


@pytest.mark.parametrize("config", [code2012(), caffe(), torchvision(), smoke(code2012(), crop=57)])
def test_conv1_by_blocks_is_conv1(config):
    row = config.layers[0]
    torch.manual_seed(0)
    images = torch.randn(2, 3, config.crop, config.crop, dtype=torch.float64)
    images = images.to(memory_format=torch.channels_last)
    weight = torch.randn(5, 3, row.kernel, row.kernel, dtype=torch.float64, requires_grad=True)
    padded = F.pad(images, (0, config.pad_end, 0, config.pad_end))
    expected = F.conv2d(padded, weight, stride=row.stride, padding=row.pad)
    blocks = blocks_of_images(images, row, config.pad_end, torch.float64)
    y = F.conv2d(blocks, blocks_of_weight(weight, row.stride))
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    g = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, weight, g)[0] for out in (y, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [code2012(), caffe(), torchvision()])
def test_images_in_bfloat16_are_what_conv1_is_given_of_float32_ones(config, monkeypatch):
    monkeypatch.setattr("alexnet.model.first_layer.KERNEL_DEVICES", {"cpu"})
    torch.manual_seed(0)
    images = torch.randn(2, 3, config.crop, config.crop) * 70
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        wide, narrow = (
            padded_images(network_images(x, config), config) for x in (images, images.bfloat16())
        )
    assert wide.dtype == narrow.dtype == torch.bfloat16
    # The rounding is the same, in another place; two where they are divided by an sd in between.
    digits = 0.0 if config.input_sd == (1.0, 1.0, 1.0) else 2**-7
    torch.testing.assert_close(narrow, wide, rtol=digits, atol=0)


def test_a_neuron_goes_into_the_norm_the_pooling_or_the_dropout_next_to_it():
    assert fused_stages(("pool", "act", "pool"), "relu") == ((("pool", "act"),), (("pool",),))
    assert fused_stages(("act", "lrn"), "relu") == ((("act", "lrn"),),)
    assert fused_stages(("pool", "act"), "tanh") == ((("pool",),), (("act",),))
    assert fused_stages(("act", "dropout"), "relu") == ((("act", "dropout"),),)
    assert fused_stages(("act", "dropout"), "tanh") == ((("act",),), (("dropout",),))


def test_norms_go_into_the_pooling_behind_them():
    assert fused_stages(("lrn", "pool", "act"), "relu") == ((("lrn",), ("pool", "act")),)
    assert fused_stages(("act", "lrn", "spatial", "pool"), "relu") == (
        (("act", "lrn"), ("spatial",), ("pool",)),
    )
    # A norm behind another than those that the kernel has in this order is one of its own.
    assert fused_stages(("spatial", "lrn", "pool"), "relu") == (
        (("spatial",),),
        (("lrn",), ("pool",)),
    )
    assert fused_stages(("lrn", "pool"), "tanh") == ((("lrn",),), (("pool",),))


SIDES = {"channels": 256, "tap_step": 32, "height": 13, "width": 13, "rows": 6, "columns": 6}
POOL = {"SIZE": 3, "STRIDE": 2, "PIXELS": 32}
# What the kernels are given in code2012, in bfloat16, for a batch of 1024: after conv5 and after
# fc6. Then the values of a tile and the most instructions a value; compiled code had 96,
# 54 and 58, backward 60 (the hash alone has six products of 64 bits).
DROP = {"THRESHOLD": 2**30, "SCALE": 1.0, "BLOCK": 1024, "RELU": True}
UNITS = {
    "start": 2**62 + 1,
    "units": 4096,
    "units_of_column": 2048,
    "first_column": 0,
    "stride": 1,
}
CASES = {
    "_pool": (
        {**POOL, "BITS": 4, "BIAS": True, "RELU": True, "CHANNELS": 64},
        {**SIDES, "pixels": 36_864},
        *(2048, 105),
    ),
    "_pool_backward": (
        {**POOL, "BITS": 4, "CHANNELS": 64},
        {**SIDES, "pixels": 173_056},
        *(2048, 55),
    ),
    "_drop": ({**DROP, "GATED": False}, UNITS, *(1024, 62)),
    "_drop backward": ({**DROP, "GATED": True}, UNITS, *(1024, 64)),
}


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_compiles_without_spills_or_narrow_loads(name, capability, tmp_path):
    pytest.importorskip("triton", reason="Triton comes for Linux alone")
    import ahead_of_time  # noqa: PLC0415

    from alexnet.model import dropout_triton, pooling_triton  # noqa: PLC0415

    constants, integers, values, budget = CASES[name]
    kernel = getattr(dropout_triton if "drop" in name else pooling_triton, name.split()[0])
    types = {"taps_pointer": "*i32", "position_pointer": "*i64"}
    types |= {"bias_pointer": "*fp32", "sums_pointer": "*fp32"}
    built = ahead_of_time.compiled(
        kernel, constants, integers, capability, num_warps=4, types=types
    )
    assert not ahead_of_time.spills(built, tmp_path)
    code = ahead_of_time.instructions(built, tmp_path)
    # Eight values of a thread in one load: 16 bytes in bfloat16, 4 of numbers of pixels. (Dropout
    # loads the position of the batch, 8 bytes.)
    position = {"LDG.E.64"} if "drop" in name else {"LDG.E"}
    assert {c for c in code if c.startswith("LDG")} <= {"LDG.E.128"} | position
    assert len(code) * 4 * 32 / values <= budget
