"""Scripts that check kernels of Triton: on a CPU by its interpreter, on CUDA as they are."""

import os
import sys

import pytest

from tests.forks import Fork

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def run_on(device, script):
    """Run a script in a process of its own, whose tensors are on `device` unless it says so."""
    pytest.importorskip("triton", reason="Triton comes for Linux alone")
    # The interpreter must be chosen before Triton is imported, which the forking process does not.
    interpreter = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    first = f"import torch\nDEVICE = {device!r}\ntorch.set_default_device(DEVICE)\n"
    command = [sys.executable, "-c", first + script]
    assert Fork(command, env=os.environ | interpreter).wait() == 0
