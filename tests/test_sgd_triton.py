"""The kernel that updates a weight and the network's copy of it: values by Triton's interpreter
against float64, and its code compiled ahead of time for GPUs that are not here."""

import pytest

from tests.kernel_scripts import DEVICES, run_on

pytest.importorskip("triton", reason="Triton comes for Linux alone")

SCRIPT = """
import torch
from alexnet.training.sgd_triton import update

torch.manual_seed(0)
for shape, layout, dtype in (
    ((70, 33), torch.contiguous_format, torch.bfloat16),
    ((8, 6, 3, 5), torch.channels_last, torch.float16),
):
    weight = torch.randn(shape).contiguous(memory_format=layout)
    velocity, copy = torch.zeros_like(weight), weight.to(dtype)
    wide, inc = weight.double(), torch.zeros_like(weight).double()
    for number, rate in enumerate((0.1, 0.1, 0.01)):
        # Once laid out in another way than the weight.
        gradient = torch.randn(shape).to(dtype)
        gradient = gradient if number == 1 else gradient.contiguous(memory_format=layout)
        update(weight, velocity, copy, gradient, torch.tensor(rate), decay=0.05, momentum=0.9)
        inc = 0.9 * inc + gradient.double() + 0.05 * wide
        wide = wide - rate * inc
        # A few roundings of float32 a step, and of the rate to it.
        torch.testing.assert_close(velocity.double(), inc, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(weight.double(), wide, rtol=1e-6, atol=1e-6)
        # One rounding; the interpreter cuts off what a GPU rounds to bfloat16.
        digits = {torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
        torch.testing.assert_close(copy.float(), weight, rtol=digits, atol=1e-6)
    assert weight.stride() == copy.stride() == velocity.stride()
"""


@pytest.mark.parametrize("device", DEVICES)
def test_weight_velocity_and_copy_are_those_of_float64(device):
    run_on(device, SCRIPT)


TYPES = {"weight_pointer": "*fp32", "velocity_pointer": "*fp32", "rate_pointer": "*fp32"}


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_it_compiles_without_spills_or_narrow_loads(capability, tmp_path):
    import ahead_of_time  # noqa: PLC0415 - Triton is not everywhere

    from alexnet.training import sgd_triton  # noqa: PLC0415

    constants = {"DECAY": 0.0005, "MOMENTUM": 0.9, "BLOCK": sgd_triton.BLOCK}
    kernel = ahead_of_time.compiled(
        sgd_triton._update, constants, {"count": 37_748_736}, capability, types=TYPES, num_warps=8
    )
    assert not ahead_of_time.spills(kernel, tmp_path)
    assert "cvt.rn.bf16" in kernel.asm["ptx"]  # rounded, not cut off
    code = ahead_of_time.instructions(kernel, tmp_path)
    loads = {name.removesuffix(".CONSTANT") for name in code if name.startswith("LDG")}
    # Eight values of a thread: of weights in two loads, of gradients in one; the rate alone is 4
    # bytes.
    assert loads - {"LDG.E"} == {"LDG.E.128"}
    assert sum(name.startswith("LDG.E") and "128" not in name for name in code) <= 1
    assert len(code) * 8 * 32 / sgd_triton.BLOCK <= 20
