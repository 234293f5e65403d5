"""A run is the same on one device, in columns, and in columns and replicas of several processes."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from alexnet import checkpoint, metrics
from alexprep.stats import compute_stats
from alexprep.training import train
from tests.tarsets import write_dataset
from tests.test_training import OPTIONS, items

# Lighting off and few steps: float32 sums in another order drift apart with every step.
SHORT = replace(OPTIONS, epochs=1, settings=(*OPTIONS.settings, "train.lr=.001"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(5)
    splits = {"train": items(rng, 64, "t"), "validation": items(rng, 21, "v")}
    root = write_dataset(tmp_path_factory.mktemp("data") / "stripes", splits, size=64)
    compute_stats(root)
    return root


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("runs") / "alone"
    train(dataset, run, SHORT)
    return run


def assert_close(run, other):
    one, two = (
        checkpoint.load(checkpoint.steps(r)[-1], ("model", "velocity")) for r in (run, other)
    )
    for part in ("model", "velocity"):
        assert one.parts[part].keys() == two.parts[part].keys()
        for name, tensor in one.parts[part].items():
            # float32 in another order: now and then a pooling or a neuron falls the other way.
            room = 1e-5 if part == "model" else 0.03 * float(tensor.abs().max())
            difference = float((two.parts[part][name] - tensor).abs().max())
            assert difference <= room, (part, name, difference)
    losses = [[r["loss"] for r in metrics.read(r) if r["kind"] == "step"] for r in (run, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_columns_learn_what_one_device_learns_and_write_its_checkpoints(alone, dataset, tmp_path):
    train(dataset, tmp_path / "columns", replace(SHORT, devices=("cpu", "cpu")))
    assert_close(alone, tmp_path / "columns")


def test_a_run_may_go_on_in_another_form(dataset, tmp_path):
    constant = replace(
        SHORT,
        settings=(*SHORT.settings, "train.schedule=constant", "augment.lighting_epochs=none"),
    )
    train(dataset, tmp_path / "one", replace(constant, epochs=2))
    train(dataset, tmp_path / "both", replace(constant, devices=("cpu", "cpu")))
    train(dataset, tmp_path / "both", replace(constant, epochs=2))
    assert_close(tmp_path / "one", tmp_path / "both")


COMMAND = """
import sys, torch
from pathlib import Path
from alexprep.training import train
from tests.test_placement import SHORT
torch.set_num_threads(1)
train(Path(sys.argv[1]), Path(sys.argv[2]), SHORT)
"""


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def run_processes(dataset, run, world):
    """What torchrun does: the same command in `world` processes that are told their ranks."""
    port = str(free_port())
    processes = []
    for rank in range(world):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", COMMAND, str(dataset), str(run)]
        processes.append(subprocess.Popen(command, env={**os.environ, **told, **meeting}))
    return [process.wait(timeout=200) for process in processes]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_as_columns_and_replicas_learn_what_one_learns(alone, dataset, tmp_path, world):
    assert run_processes(dataset, tmp_path / "run", world) == [0] * world
    assert_close(alone, tmp_path / "run")
