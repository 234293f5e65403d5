"""A run is the same on one device, in columns, and in columns and replicas of several processes.

Proved in float64. In float32 a sum in another order, which another processor may choose, now and
then sends a gradient through another unit or pixel of a pool, and no bound holds for the weights.
"""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from alexnet.training import checkpoint, metrics
from alexprep.dataset.stats import compute_stats
from alexprep.model.placement import Placement
from alexprep.model.recipes import RecipeInputs, make_recipe
from alexprep.model.settings import apply_settings
from alexprep.model.training import loader_config, train
from tests.ranks import ended, run_ranks, start_ranks
from tests.tarsets import write_dataset
from tests.test_training import OPTIONS, items

SETTINGS = (
    *("train.schedule=constant", "train.precision=float64", "augment.lighting_epochs=none"),
    *(f"model.conv{n}.out=16" for n in (1, 2, 3, 4, 5)),
    *("model.fc6.out=32", "model.fc7.out=32"),
    # 16 steps an epoch, so that a signal comes amid one on a busy machine too.
    "loader.batch=4",
)
SHORT = replace(OPTIONS, epochs=1, settings=(*OPTIONS.settings, *SETTINGS, "train.lr=.001"))


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
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(
                two.parts[part][name], tensor, rtol=1e-9, atol=1e-12, msg=f"{part}/{name}"
            )
    # The log sums losses in float32.
    losses = [[r["loss"] for r in metrics.read(r) if r["kind"] == "epoch"] for r in (run, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_columns_learn_what_one_device_learns_and_write_its_checkpoints(alone, dataset, tmp_path):
    train(dataset, tmp_path / "columns", replace(SHORT, devices=("cpu", "cpu")))
    assert_close(alone, tmp_path / "columns")


@pytest.fixture(scope="module")
def longer(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "longer"
    train(dataset, run, replace(SHORT, epochs=2))
    return run


def test_a_run_may_go_on_in_another_form(longer, dataset, tmp_path):
    train(dataset, tmp_path / "both", replace(SHORT, devices=("cpu", "cpu")))
    train(dataset, tmp_path / "both", replace(SHORT, epochs=2))
    assert_close(longer, tmp_path / "both")


# Trains, then writes which shards this process has opened, and whether it has loaded DALI.
COMMAND = """
import os, sys, torch
from pathlib import Path
shards = set()
def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".tar"):
        shards.add(Path(arguments[0]).parent.name)
sys.addaudithook(watch)
from alexprep.model.training import train
from tests.test_placement import SHORT
torch.set_num_threads(1)
run = Path(sys.argv[2])
train(Path(sys.argv[1]), run, SHORT)
told = " ".join([*sorted(shards), *(["dali"] if "nvidia.dali" in sys.modules else [])])
run.with_name(f"read-{os.environ['RANK']}").write_text(told)
"""


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_columns_and_replicas_in_processes_learn_what_one_learns_and_first_columns_read(
    alone, dataset, tmp_path, world
):
    command = [sys.executable, "-c", COMMAND, dataset, tmp_path / "run"]
    assert run_ranks(world, command) == [0] * world
    assert_close(alone, tmp_path / "run")
    read = [(tmp_path / f"read-{rank}").read_text() for rank in range(world)]
    assert read == ["train validation dali", ""] * (world // 2)


def command_of(dataset, run, epochs, *settings):
    """What a user types, with the settings of SHORT."""
    changes = [word for change in (*SHORT.settings, *settings) for word in ("--set", change)]
    return [
        *(sys.executable, "-m", "alexprep", "train", dataset, "--run", run),
        *("--smoke", "--epochs", epochs, *changes),
    ]


def test_a_run_goes_from_one_process_to_two_and_back_where_a_signal_stops_it(
    longer, dataset, tmp_path
):
    run = tmp_path / "run"
    train(dataset, run, SHORT)
    begun = checkpoint.steps(run)
    command = command_of(dataset, run, 2, "train.checkpoint_minutes=1e-9")
    processes = start_ranks(2, command, stderr=subprocess.PIPE)
    while checkpoint.steps(run) == begun and processes[0].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    # The other was not asked, and leaves as one that has nothing more to do.
    assert codes == [0, 128 + signal.SIGTERM], said
    stopped = checkpoint.load(checkpoint.steps(run)[-1]).meta
    assert 16 < stopped["progress"]["steps"] < 32
    assert stopped["loader"]["epoch"] == 1
    assert stopped["loader"]["step"] == stopped["progress"]["step"]
    train(dataset, run, replace(SHORT, epochs=2))
    assert_close(longer, run)


def test_a_damaged_image_of_one_process_is_named_with_the_last_checkpoint_and_ends_all(
    dataset, tmp_path
):
    damaged, run = tmp_path / "damaged", tmp_path / "run"
    shutil.copytree(dataset, damaged)
    train(damaged, run, SHORT)
    shard = next((damaged / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    place = data.index(b"\xff\xd8\xff")
    data[place : place + 2] = b"\0\0"
    shard.write_bytes(data)
    command = command_of(damaged, run, 2, "loader.check=size")
    processes = start_ranks(2, command, stderr=subprocess.PIPE)
    while all(process.poll() is None for process in processes):
        time.sleep(0.1)
    codes, said = ended(processes, timeout=200)
    assert codes == [1] * 2
    errors = [line for text in said for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2, said
    (reason,) = [error for error in errors if error.startswith(f"Error: {shard.parent}")]
    assert shard.name in reason
    assert f"Last good checkpoint: {checkpoint.steps(run)[-1]}" in reason
    assert sum("lost the connection to another process" in error for error in errors) == 1


@pytest.mark.timeout(900)  # the compiler takes minutes where others want the cores too
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_compiled_training_learns_what_it_learns_uncompiled(alone, dataset, tmp_path, world):
    command = command_of(dataset, tmp_path / "run", 1, "train.compile=on")
    assert run_ranks(world, command, timeout=800) == [0] * world
    assert_close(alone, tmp_path / "run")


@pytest.mark.parametrize(
    ("device", "settings", "dtype"),
    [
        ("cuda:0", (), "bfloat16"),
        ("cuda:0", ("train.precision=float32",), "float32"),
        ("cuda:0", ("loader.dtype=float16",), "float16"),
        ("cpu", (), "float32"),
    ],
)
def test_a_gpu_that_trains_in_bfloat16_gets_its_batches_in_it(device, settings, dtype):
    inputs = RecipeInputs(classes=1000, source=256)
    recipe = apply_settings(make_recipe("code2012", inputs), settings)
    config = loader_config(recipe, Placement(devices=(device,)))
    assert (config.dtype, config.device) == (dtype, device)
    assert config.channels_last
