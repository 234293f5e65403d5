"""Scripts that check kernels of Triton: on a CPU by its interpreter, on CUDA as they are."""

import os
import subprocess
import sys

import pytest

from tests.forks import Fork

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def run_on(device, script):
    """Run a script in a process of its own, whose tensors are on `device` unless it says so."""
    pytest.importorskip("triton", reason="Triton comes for Linux alone")
    first = f"import torch\nDEVICE = {device!r}\ntorch.set_default_device(DEVICE)\n"
    command = [sys.executable, "-c", first + script]
    if device == "cuda":
        # Not a fork, whose parent has looked for GPUs: CUDA would not start again.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
        sys.stderr.write(done.stderr)
        assert done.returncode == 0, done.stderr.splitlines()[-1:]
        return
    # The interpreter must be chosen before Triton is imported, which the forking process does not.
    assert Fork(command, env=os.environ | {"TRITON_INTERPRET": "1"}).wait() == 0
