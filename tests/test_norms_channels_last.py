"""The norms for channels_last: values by Triton's interpreter against float64, their code compiled
ahead of time for GPUs that are not here."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.census import Operations
from tests.kernel_scripts import DEVICES, run_on

pytest.importorskip("triton", reason="Triton comes for Linux alone")

SCRIPT = """
import torch
import torch.nn.functional as F
from alexnet.model import norms_channels_last as kernels
from alexnet.model.norms import serves_response, serves_spatial
from alexnet.model.spec import Lrn

def response(x, norm, groups):
    return torch.cat([F.local_response_norm(part, norm.size, norm.alpha, norm.beta, norm.k)
                      for part in x.chunk(groups, dim=1)], dim=1)

def spatial(x, norm):
    window = torch.ones(x.shape[1], 1, 5, 5, dtype=x.dtype)
    mean = F.conv2d(x * x, window, padding=2, groups=x.shape[1]) / 25
    return x / (norm.k + norm.alpha * mean) ** norm.beta

def check(name, kernel, expected, dtype):
    # float32: sums of 25 products, a reciprocal root and a root: 32 roundings of 2**-24 at most;
    # relative to the largest value, for the difference in the backward pass may cancel. bfloat16:
    # one rounding of 2**-8 (the interpreter cuts off), of the terms and of the result.
    bound = {torch.float32: 32 * 2**-24, torch.bfloat16: 2 * 2**-8}[dtype]
    error = (kernel.double() - expected).abs().max() / expected.abs().max()
    assert error <= bound, (name, dtype, float(error), bound)

torch.manual_seed(0)
for norm in (Lrn(size=5, alpha=1e-4, beta=0.75, k=2.0), Lrn(size=5, alpha=0.5, beta=0.75, k=1.0)):
    for dtype in (torch.float32, torch.bfloat16):
        # The interpreter's time is that of the tiles: the constants of 2012 in one type only.
        if norm.alpha == 1e-4 and dtype == torch.bfloat16:
            continue
        # 53 rows of pixels, 7 x 37 pixels and 70 channels end within a tile; groups of 48 and 128.
        # Where the spatial norm has several images, each is one tile.
        for groups, shape in ((2, (1, 96, 5, 53)), (1, (2, 128, 3, 25))):
            x = (torch.randn(shape) * 20).to(dtype).to(memory_format=torch.channels_last)
            g = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
            wide = x.double().requires_grad_()
            y = response(wide, norm, groups)
            (dx,) = torch.autograd.grad(y, wide, g.double())
            assert serves_response(x, groups, norm) == (dtype == torch.bfloat16)
            check("response", kernels.response_forward(x, groups, norm), y, dtype)
            check("response gradient", kernels.response_backward(x, g, groups, norm), dx, dtype)
            if norm.alpha == 0.5:
                y = response(wide.relu(), norm, groups)
                (dx,) = torch.autograd.grad(y, wide, g.double())
                check("relu", kernels.response_forward(x, groups, norm, relu=True), y, dtype)
                relu_dx = kernels.response_backward(x, g, groups, norm, relu=True)
                check("relu gradient", relu_dx, dx, dtype)
        shape = (1, 70, 7, 37) if norm.alpha == 0.5 else (3, 6, 6, 5)
        x = (torch.randn(shape) * 20).to(dtype).to(memory_format=torch.channels_last)
        g = torch.randn(x.shape).to(dtype).to(memory_format=torch.channels_last)
        wide = x.double().requires_grad_()
        y = spatial(wide, norm)
        (dx,) = torch.autograd.grad(y, wide, g.double())
        assert serves_spatial(x, norm)
        check("spatial", kernels.spatial_forward(x, norm), y, dtype)
        check("spatial gradient", kernels.spatial_backward(x, g, norm), dx, dtype)
"""


@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_are_those_of_float64(device):
    run_on(device, SCRIPT)


# What a kernel is given in layers 1 and 2 of code2012, in bfloat16; the values of a tile; and the
# most instructions a value for compute capability 8.0 and for later ones. Compiled code had 44 and
# 40 at most in layer 1, 90 and 70 in layer 2 (81 and 59 without its ReLU), 172 and 168 in the
# spatial norm's backward pass (with the code before its loop): loads of 2 bytes, or of a value five
# times, would double them.
RESPONSE = {"GROUPS": 2, "SHARE": 2e-5, "K": 2.0, "HALF": 2, "PRECISION": "tf32"}
FIRST = {**RESPONSE, "RELU": False, "CHANNELS": 48, "ROWS": 128, "BLOCK": 64}
SECOND = {**RESPONSE, "RELU": True, "CHANNELS": 128, "ROWS": 64, "BLOCK": 128}
SPATIAL = {"SHARE": 4e-6, "K": 2.0, "COLUMNS": 32, "CHANNELS": 64}
CASES = {
    "response forward, layer 1": ("_response_forward", FIRST, 128 * 48, (40, 32)),
    "response backward, layer 1": ("_response_backward", FIRST, 128 * 48, (50, 45)),
    "response forward, layer 2": ("_response_forward", SECOND, 64 * 128, (50, 35)),
    "response backward, layer 2": ("_response_backward", SECOND, 64 * 128, (100, 75)),
    "spatial forward": ("_spatial", {**SPATIAL, "PASS": "values"}, 27 * 64, (110, 110)),
    "spatial terms": ("_spatial", {**SPATIAL, "PASS": "terms"}, 27 * 64, (115, 115)),
    "spatial backward": ("_spatial", {**SPATIAL, "PASS": "gradient"}, 27 * 64, (185, 185)),
}
INTEGERS = {"rows": 3_097_600, "channels": 256, "height": 27, "width": 27}


@pytest.mark.parametrize(
    ("case", "capability"),
    [
        *((case, 90) for case in CASES),
        # The backward passes have more registers and instructions than the others.
        *((case, other) for case in CASES if "backward" in case for other in (80, 100)),
    ],
)
def test_a_kernel_compiles_without_spills_or_two_byte_loads(case, capability, tmp_path):
    import ahead_of_time  # noqa: PLC0415 - Triton is not everywhere

    from alexnet.model import norms_channels_last  # noqa: PLC0415

    name, constants, values, budgets = CASES[case]
    kernel = ahead_of_time.compiled(
        getattr(norms_channels_last, name), constants, INTEGERS, capability, num_warps=8
    )
    assert not ahead_of_time.spills(kernel, tmp_path)
    code = ahead_of_time.instructions(kernel, tmp_path)
    assert code
    assert [instruction for instruction in code if instruction.startswith("LDG.E.U16")] == []
    # Every instruction is carried out once by each of 8 warps of 32 threads.
    assert len(code) * 8 * 32 / values <= budgets[capability > 80]


def test_a_launch_is_described_without_an_operation_on_the_gpu():
    from alexnet.model.norms_triton import _launch  # noqa: PLC0415 - Triton is not everywhere

    with FakeTensorMode():
        x = torch.empty(2, 96, 55, 55, device="cuda:0")
        with Operations() as operations:
            grid, sides = _launch(x, 2)
    assert operations.names == []
    assert (grid, sides) == ((4, 24, 6), (2, 48, 3025, 290_400, 3025, 1))
