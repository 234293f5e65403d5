import os
import sys

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from alexnet.model.norms import local_response_norm, lrn_formula
from alexnet.model.spec import Lrn
from tests.forks import Fork

CODE = Lrn(size=5, alpha=1e-4, beta=0.75, k=2.0)
# Constants with which the sum matters, so that a wrong window would show.
STRONG = Lrn(size=5, alpha=0.5, beta=0.75, k=1.0)
NORMS = [CODE, STRONG, Lrn(size=3, alpha=0.1, beta=0.5, k=1.0), Lrn(size=1, alpha=1.0)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def torchs_own(x, norm, groups):
    """nn.LocalResponseNorm on each group of channels by itself."""
    layer = nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)
    return torch.cat([layer(part) for part in x.chunk(groups, dim=1)], dim=1)


def value_and_gradient(function, x, g):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    (dx,) = torch.autograd.grad(y, x, g)
    return y.detach(), dx


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_values_and_gradients_are_those_of_torch_in_float32(norm, groups, layout):
    # 5 images of 12 * 37 * 41 values are more than one block and end in a part of one.
    torch.manual_seed(0)
    x = (torch.randn(11, 12, 37, 41) * 20).to(memory_format=layout)
    g = torch.randn(11, 12, 37, 41)
    y, dx = value_and_gradient(lambda x: local_response_norm(x, norm, groups=groups), x, g)
    y_torch, dx_torch = value_and_gradient(
        lambda x: torchs_own(x, norm, groups), x.double(), g.double()
    )
    assert y.stride() == dx.stride() == x.stride()
    # 1e-6 of the largest value: single values may cancel to nothing.
    assert (y - y_torch).abs().max() <= 1e-6 * y_torch.abs().max()
    assert (dx - dx_torch).abs().max() <= 1e-6 * dx_torch.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck_holds_in_float64(norm, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, norm, groups=2), x)


def test_bf16_is_summed_in_float32_and_rounded_once():
    torch.manual_seed(0)
    x = (torch.randn(3, 96, 9, 9) * 50).bfloat16()
    g = torch.randn(3, 96, 9, 9).bfloat16()
    y, dx = value_and_gradient(lambda x: local_response_norm(x, CODE, groups=2), x, g)
    exact, dx_exact = value_and_gradient(lambda x: torchs_own(x, CODE, 2), x.double(), g.double())
    assert y.dtype == dx.dtype == torch.bfloat16
    # Half a step of the 8 bits of bf16, and a little for the float32 sums before.
    assert ((y - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()
    assert ((dx - dx_exact).abs() <= dx_exact.abs() * 2**-8 + 2e-6 * dx_exact.abs().max()).all()


def test_two_groups_do_not_see_each_other():
    x = torch.zeros(1, 8, 1, 1)
    x[0, 3] = 100.0
    y = local_response_norm(torch.ones_like(x) + x, STRONG, groups=2)
    assert (y[0, 4:] == local_response_norm(torch.ones(1, 4, 1, 1), STRONG)).all()


def test_channels_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="7 channels do not divide into 2 groups"):
        local_response_norm(torch.zeros(1, 7, 2, 2), CODE, groups=2)


def test_a_view_that_is_not_dense_is_normalised_all_the_same():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6)[:, :, ::2, 1:]
    torch.testing.assert_close(local_response_norm(x, STRONG), torchs_own(x, STRONG, 1))


def saved_bytes(function, x):
    """Bytes that autograd keeps for backward, each storage once."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)
    assert y.requires_grad
    return sum(kept.values())


def test_it_keeps_the_input_alone_where_the_formula_keeps_several_tensors():
    x = torch.randn(4, 96, 13, 13).requires_grad_()
    size = x.untyped_storage().nbytes()
    assert saved_bytes(lambda x: local_response_norm(x, CODE, groups=2), x) == size
    assert saved_bytes(lambda x: lrn_formula(x, CODE, groups=2), x) >= 4 * size


def test_compiled_code_calls_it_whole():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5).requires_grad_()
    compiled = torch.compile(
        lambda x: local_response_norm(x * 2, STRONG, groups=2).sum(), backend="aot_eager"
    )
    (dx,) = torch.autograd.grad(compiled(x), x)
    (expected,) = torch.autograd.grad(torchs_own(x * 2, STRONG, 2).sum(), x)
    torch.testing.assert_close(dx, expected)


INTERPRETED = """
import torch
from alexnet.model import norms_cpu, norms_triton
from alexnet.model.spec import Lrn
for norm in (Lrn(), Lrn(alpha=0.5, k=1.0), Lrn(3, 0.1, 0.5, 1.0)):
    for layout in (torch.contiguous_format, torch.channels_last):
        x, g = (torch.randn(2, 24, 3, 5, dtype=torch.float64) * 10 for _ in range(2))
        x, g = x.to(memory_format=layout), g.to(memory_format=layout)
        y, dx = norms_triton.forward(x, 2, norm), norms_triton.backward(x, g, 2, norm)
        assert y.stride() == dx.stride() == x.stride()
        torch.testing.assert_close(y, norms_cpu.forward(x, 2, norm))
        torch.testing.assert_close(dx, norms_cpu.backward(x, g, 2, norm))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_the_triton_kernels_compute_what_the_cpu_ones_compute():
    # Triton's interpreter runs them on a CPU; it must be chosen before Triton is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    assert Fork([sys.executable, "-c", INTERPRETED], env=environment).wait() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_values_and_gradients_on_cuda_are_those_of_torch(norm, dtype, layout):
    torch.manual_seed(0)
    x = (torch.randn(3, 96, 27, 27, device="cuda") * 20).to(dtype).to(memory_format=layout)
    g = torch.randn(3, 96, 27, 27, device="cuda").to(dtype)
    y, dx = value_and_gradient(lambda x: local_response_norm(x, norm, groups=2), x, g)
    exact, dx_exact = value_and_gradient(lambda x: torchs_own(x, norm, 2), x.double(), g.double())
    assert y.stride() == dx.stride() == x.stride()
    digits = 2e-6 if dtype == torch.float32 else 2**-8
    assert (y - exact).abs().max() <= digits * exact.abs().max()
    assert (dx - dx_exact).abs().max() <= digits * dx_exact.abs().max()


@pytest.mark.gpu
def test_cuda_keeps_the_input_alone():
    x = torch.randn(4, 96, 13, 13, device="cuda").requires_grad_()
    size = x.untyped_storage().nbytes()
    assert saved_bytes(lambda x: local_response_norm(x, CODE, groups=2), x) == size


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_for_other_types_and_layouts_compile_without_spills(capability, tmp_path):
    pytest.importorskip("triton", reason="Triton comes for Linux alone")
    import ahead_of_time  # noqa: PLC0415

    from alexnet.model import norms_triton  # noqa: PLC0415

    # Layer 1 of code2012, in NCHW and bfloat16, and in channels_last and wider types.
    maps = {"groups": 2, "channels": 48, "pixels": 3025, "step_image": 96 * 3025}
    last = (1, (1, 96))
    for kind, layout, steps in (("bf16", 0, (3025, 1)), ("fp32", *last), ("fp64", *last)):
        wide = norms_triton.tl.float64 if kind == "fp64" else norms_triton.tl.float32
        pixels, channels = norms_triton.TILES[LAYOUTS[layout]]
        norm = {"SHARE": 2e-5, "BETA": 0.75, "K": 2.0, "HALF": 2, "WIDE": wide}
        for kernel in (norms_triton._forward, norms_triton._backward):
            built = ahead_of_time.compiled(
                kernel,
                norm | {"PIXELS": pixels, "CHANNELS": channels},
                maps | dict(zip(("step_channel", "step_pixel"), steps, strict=True)),
                capability,
                types={name: f"*{kind}" for name in kernel.arg_names if "pointer" in name},
                num_warps=4,
            )
            assert not ahead_of_time.spills(built, tmp_path)
            code = ahead_of_time.instructions(built, tmp_path)
            if kind == "fp32":  # a value of a tile, by each of 4 warps of 32 threads
                share = len(code) * 4 * 32 / (pixels * channels)
                assert share <= (160 if kernel is norms_triton._backward else 32)
