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
            y = drop(x, torch.tensor(first), start, columns, stride, keep, scale)
            expected = x * (mask.to(dtype) * scale)
            assert torch.equal(y.nan_to_num(-1.0), expected.nan_to_num(-1.0)), (seed, dtype, scale)
"""


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_units_are_dropped_as_on_a_cpu(device):
    run_on(device, SCRIPT)
