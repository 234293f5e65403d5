"""The kernel of dropout for CUDA: its bits, by Triton's interpreter, are those of the CPU."""

import pytest

from tests.kernel_scripts import DEVICES, run_on

SCRIPT = """
import torch
from alexnet.model.dropout import _SPREAD, keep_mask, layer_key, mix, unit_keys
from alexnet.model.dropout_triton import drop

torch.manual_seed(0)
for seed, layer, columns, each, keep, stride, first in (
    (0, 5, range(2), 700, 0.5, 1, 0),
    (3, 6, range(1, 2), 2049, 0.8, 4, 2**40 + 7),
    (2**31 - 1, 7, range(1), 33, 0.5, 3, 123_456_789),
):
    images = first + torch.arange(5) * stride
    mask = keep_mask(images, unit_keys(seed, layer, columns, each, torch.device(DEVICE)), keep)
    start = layer_key(seed, layer)
    assert start == int(mix(torch.full((1,), seed) * _SPREAD + layer))
    for dtype in (torch.float32, torch.float16):
        x = torch.randn(5, len(columns) * each, dtype=dtype)
        x[0, 0] = float("nan")
        for scale in (1.0, float(torch.ones((), dtype=dtype) / keep)):
            y = drop(x, None, torch.tensor(first), start, columns, stride, keep, scale)
            expected = x * (mask.to(dtype) * scale)
            assert torch.equal(y.nan_to_num(-1.0), expected.nan_to_num(-1.0)), (seed, dtype, scale)
"""


RELU = """
import torch
from alexnet.model import cuda_ops
from alexnet.model.dropout import Dropout
from alexnet.model.grouped import Stages
from alexnet.model.networks import code2012

torch.manual_seed(0)

def run(layer, x, g, kernels):
    cuda_ops.KERNEL_DEVICES.clear()
    cuda_ops.KERNEL_DEVICES.update({DEVICE} if kernels else set())
    x = x.detach().requires_grad_()
    y = layer(x, 6, relu=True)
    y.backward(g)
    return y.detach(), x.grad

for kind, probability, columns, stride in (
    ("mask", 0.5, range(2), 1), ("inverted", 0.2, range(1, 2), 3), ("inverted", 0.0, range(1), 1),
):
    for dtype in (torch.float32, torch.float16):
        layer = Dropout(probability, kind, seed=5, columns=columns)
        layer.set_position(2**40 + 3, stride)
        x = torch.randn(6, len(columns) * 700).to(dtype)
        x[0, :40], x[1, :40], x[2, :40], x[3, :40] = float("nan"), 0.0, -0.0, float("inf")
        g = torch.randn(x.shape).to(dtype)
        for gradient in (g, g[:, :1].expand(x.shape)):  # of a sum: one value, seen many times
            for training in (True, False):
                layer.train(training)
                for own, plain in zip(*(run(layer, x, gradient, k) for k in (True, False))):
                    torch.testing.assert_close(own, plain, rtol=0, atol=0, equal_nan=True)

# A convolution's bias comes before both, and the ReLU goes to the kernel that adds it.
config = code2012()
stages = Stages(config, seed=0, columns=range(2))
x = torch.randn(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
bias = torch.randn(16)
pairs = (("act", "dropout"),)
cuda_ops.KERNEL_DEVICES.clear()
plain = stages.apply_pairs(x, bias, pairs, 3)
cuda_ops.KERNEL_DEVICES.add(DEVICE)
own = stages.apply_pairs(x, bias, pairs, 3)
assert torch.equal(own, plain) and 0 < (own == 0).sum() < own.numel()
"""


@pytest.mark.parametrize("device", DEVICES)
def test_relu_and_dropout_in_one_kernel_are_both_in_turn(device):
    run_on(device, RELU)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_units_are_dropped_as_on_a_cpu(device):
    run_on(device, SCRIPT)
