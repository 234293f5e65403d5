"""What follows a convolution in one kernel: values by Triton's interpreter against float64, their
code compiled ahead of time for GPUs that are not here."""

from collections import Counter

import pytest

from tests.kernel_scripts import DEVICES, run_on

pytest.importorskip("triton", reason="Triton comes for Linux alone")

NORM_POOL = """
import torch
import torch.nn.functional as F
from alexnet.model import stages_triton as kernels
from alexnet.model.spec import Lrn

LAYOUT = torch.channels_last

def normed(x, bias, groups, norms, relu):
    x = x + bias[:, None, None]
    x = x.relu() if relu else x
    response, *spatial = norms
    x = torch.cat([F.local_response_norm(part, *response) for part in x.chunk(groups, dim=1)], 1)
    for norm in spatial:
        window = torch.ones(x.shape[1], 1, 5, 5, dtype=x.dtype)
        mean = F.conv2d(x * x, window, padding=2, groups=x.shape[1]) / 25
        x = x / (norm.k + norm.alpha * mean) ** norm.beta
    return x

def unpacked(words, groups, channels):
    # Eight numbers in a word, in order from its lowest bits; a group begins with a new word.
    digits = words.unflatten(1, (groups, -1, 1)) >> 4 * torch.arange(8)[:, None, None] & 15
    return digits.flatten(2, 3)[:, :, : channels // groups].flatten(1, 2).long()

def pixels_of(taps):
    # The number of a maximum's pixel in its image, as torch has it.
    row, column = (torch.arange(side) for side in taps.shape[2:])
    return (2 * row[:, None] + taps // 3) * width + 2 * column + taps % 3

def near(name, kernel, expected, bound):
    error = (kernel.double() - expected).abs().max() / expected.abs().max()
    assert error <= bound, (name, norms, kernel.dtype, float(error), bound)

torch.manual_seed(0)
response, spatial = Lrn(5, 0.5, 0.75, 1.0), Lrn(5, 0.03, 0.75, 1.0)
# Sides of 9 end with a window, 8 reach beyond it, 10 begin one that is not there. 29 columns and 20
# channels end within a tile; 21 rows take several programs, 12 channels are a whole tile less 4.
for norms in ((response,), (response, spatial)):
    for dtype, shape, groups, relu in (
        (torch.float32, (2, 40, 9, 10), 2, (False, True)),
        (torch.float32, (1, 12, 21 if len(norms) == 1 else 8, 29), 1, (True, False)),
        (torch.bfloat16, (1, 40, 9, 10), 2, (True, False)),
    ):
        width = shape[3]
        x = (torch.randn(shape) * 5).to(dtype).to(memory_format=LAYOUT)
        bias = torch.randn(shape[1])
        wide, wide_bias = x.double().requires_grad_(), bias.double().requires_grad_()
        z = normed(wide, wide_bias, groups, norms, relu[0])
        y, taps, roots = kernels.norm_pool_forward(x, bias, groups, norms, relu)
        expected = F.max_pool2d(z, 3, 2, ceil_mode=True)
        # float32: sums of 25 products, reciprocal roots and roots. bfloat16: sums are rounded to
        # 11 bits, the result to 8, which the interpreter cuts off.
        bound = {torch.float32: 32 * 2**-24, torch.bfloat16: 2 * 2**-8}[dtype]
        near("maxima", y, expected.relu() if relu[1] else expected, bound)
        # Of equal rounded values the first is the maximum: gradients go where the kernel says.
        numbers = unpacked(taps, groups, shape[1])
        silent = numbers == 15
        assert torch.equal(silent, (y == 0) & relu[1])
        flat = pixels_of(numbers.masked_fill(silent, 0)).flatten(2)
        chosen = z.flatten(2).gather(2, flat).view(y.shape)
        near("chosen values", chosen.detach() * ~silent, expected.detach() * ~silent, bound)
        g = torch.randn(y.shape).to(dtype).to(memory_format=LAYOUT)
        gradients = torch.autograd.grad(chosen, (wide, wide_bias), g.double() * ~silent)
        own = kernels.norm_pool_backward(x, bias, g, taps, roots, groups, norms, relu[0])
        near("gradient", own[0], gradients[0], bound)
        near("gradient of the bias", own[1], gradients[1], bound)
        assert own[0].stride() == x.stride() and own[0].dtype == dtype
"""

BIAS_RELU = """
import torch
from alexnet.model import cuda_ops

cuda_ops.KERNEL_DEVICES.add(DEVICE)
torch.manual_seed(0)
# 70 and 3 channels end within a byte of bits, 126 pixels within a tile.
for dtype, channels in ((torch.float32, 70), (torch.bfloat16, 72), (torch.float16, 3)):
    x = torch.randn(2, channels, 7, 9)
    x[0, 0, 0, 0], x[0, 1, 0, 0], x[0, 2, 0, 0] = float("nan"), float("inf"), -float("inf")
    x[0, :, 1, 1] = -0.0
    x = x.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randn(channels)
    bias[1] = 1e-9  # float16 rounds the sum to zero
    bias.requires_grad_()
    wide, wide_bias = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    expected = (wide + wide_bias[:, None, None]).relu()
    y = cuda_ops.bias_relu(x, bias)
    rounding = {torch.float32: 2**-23, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    # The interpreter cuts off.
    torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=1e-8, equal_nan=True)
    g = torch.randn(x.shape).to(dtype).to(memory_format=torch.channels_last)
    y.backward(g)
    # What torch's own ReLU passes, given what was stored: not a number passes, and zero does not.
    passed = torch.ops.aten.threshold_backward(g, y.detach(), 0)
    assert torch.equal(x.grad, passed) and passed[0, 0, 0, 0] != 0
    assert x.grad.stride() == x.stride()
    expected.backward(g.double())
    if dtype != torch.float16:
        assert torch.equal(x.grad.double(), wide.grad)
    total = passed.double().sum((0, 2, 3))
    torch.testing.assert_close(bias.grad.double(), total, rtol=1e-5, atol=1e-5)
# From one pass to the other bits are kept, and nothing else.
assert [t.dtype for t in cuda_ops.bias_relu(x, bias).grad_fn.saved_tensors] == [torch.uint8]
"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("script", [NORM_POOL, BIAS_RELU], ids=["norm_pool", "bias_relu"])
def test_values_and_gradients_are_those_of_float64(script, device):
    run_on(device, script)


# What the kernels are given in conv1 and conv2 of code2012, in conv2 of paper and in conv3, in
# bfloat16; warps for each compute capability; and the most instructions of a thread: loops have as
# many as they have once. Separate kernels of the norms and the pooling had 1.5 times as many a
# value forward and twice as many backward, and made three to five times as many passes.
FIRST = {
    **{"CHANNELS": 48, "GROUPS": 2, "WORDS": 6, "SHARE": 2e-5, "K": 2.0, "BLOCK": 64},
    **{"PRECISION": "tf32", "RELU": False},
}
SECOND = {**FIRST, "CHANNELS": 128, "WORDS": 16, "BLOCK": 128, "RELU": True}
BOTH = {**SECOND, "SPATIAL_SHARE": 4e-5, "SPATIAL_K": 1.0, "COLUMNS": 32}
FIRST_SIDES = {"height": 55, "width": 55, "rows": 27, "columns": 27, "pixels": 3_097_600}
SIDES = {"height": 27, "width": 27, "rows": 13, "columns": 13, "pixels": 746_496}
RELU = {"ROWS": 64, "BLOCK": 64}, {"pixels": 173_056, "channels": 384, "octets": 48}
HALF_TILE = {"PIXELS": 32, "TILES": 4}
FORWARD = {"RELU_AFTER": True, "COLUMNS": 64, "POOLED": 32, "CHUNK": 9}
POOLED = {"RELU_AFTER": False, "COLUMNS": 32, "POOLED": 16}
ALL = (80, 90, 100)
CASES = {
    "conv1": ("_norm_pool", {**FIRST, **FORWARD}, FIRST_SIDES, dict.fromkeys(ALL, 8), 1450),
    "conv1 backward": (
        *("_norm_pool_backward", {**FIRST, "PIXELS": 64, "TILES": 4}, FIRST_SIDES),
        *({90: 4}, 2550),
    ),
    "conv1 backward, half a tile": (
        *("_norm_pool_backward", {**FIRST, **HALF_TILE}, FIRST_SIDES, {80: 4, 100: 4}, 1750),
    ),
    "conv2": ("_norms_pool", {**BOTH, **POOLED}, SIDES, dict.fromkeys(ALL, 8), 2325),
    "conv2 backward": ("_norms_pool_backward", BOTH, SIDES, dict.fromkeys(ALL, 8), 3400),
    "paper's conv2": (
        "_norm_pool",
        {**SECOND, **POOLED, "CHUNK": 9},
        SIDES,
        dict.fromkeys(ALL, 16),
        1200,
    ),
    "paper's conv2 backward": (
        *("_norm_pool_backward", {**SECOND, **HALF_TILE}, SIDES, dict.fromkeys(ALL, 8), 2225),
    ),
    "conv3": ("_bias_relu", *RELU, dict.fromkeys(ALL, 4), 440),
    "conv3 backward": (
        *("_bias_relu_backward", {**RELU[0], "TILES": 4}, RELU[1]),
        *(dict.fromkeys(ALL, 4), 520),  # four tiles, in a loop
    ),
}
TYPES = {
    "taps_pointer": "*i32",
    "bits_pointer": "*u8",
    "bias_pointer": "*fp32",
    "sums_pointer": "*fp32",
    "roots_pointer": "*fp16",
}


@pytest.mark.parametrize(
    ("case", "capability"),
    [(case, capability) for case in CASES for capability in CASES[case][3]],
)
def test_a_kernel_compiles_without_spills_or_narrow_loads(case, capability, tmp_path):
    import ahead_of_time  # noqa: PLC0415 - Triton is not everywhere

    from alexnet.model import stages_triton  # noqa: PLC0415

    name, constants, integers, warps, budget = CASES[case]
    kernel = ahead_of_time.compiled(
        getattr(stages_triton, name), constants, integers, capability, types=TYPES, num_stages=1,
        num_warps=warps[capability],
    )  # fmt: skip
    assert not ahead_of_time.spills(kernel, tmp_path)
    code = ahead_of_time.instructions(kernel, tmp_path)
    loads = {instruction for instruction in code if instruction.startswith("LDG")}
    # Of 16 bytes, or of 4 of numbers of pixels, of 8 channels, or of bits of a ReLU. (Triton 3.6
    # loads the bias once more, by 8 bytes, before loops.)
    assert loads
    assert loads <= {"LDG.E", "LDG.E.64", "LDG.E.128", "LDG.E.128.CONSTANT"}
    if name == "_bias_relu_backward":
        assert Counter(code)["LDG.E"] == 1
    if "_bias_relu" in name:
        stores = Counter(i for i in code if i.startswith("STG"))
        assert stores == {"STG.E.128": 4, "STG.E": 1}
    assert len(code) <= budget
