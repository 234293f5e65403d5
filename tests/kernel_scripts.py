"""Scripts that check kernels of Triton: on a CPU by its interpreter, on CUDA as they are."""

import os
import subprocess
import sys

import pytest

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def run_on(device, script):
    """Run a script in a process of its own, whose tensors are on `device` unless it says so."""
    pytest.importorskip("triton", reason="Triton comes for Linux alone")
    # The interpreter must be chosen before Triton is imported.
    interpreter = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    environment = {**os.environ, **interpreter, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = f"import torch\nDEVICE = {device!r}\ntorch.set_default_device(DEVICE)\n"
    subprocess.run([sys.executable, "-c", first + script], env=environment, check=True)
