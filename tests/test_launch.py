"""A run over several processes that the command starts itself, and the devices it chooses."""

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexprep.lock import hold_lock
from alexprep.model.placement import Launch, check_tasks, choose_devices, process_device
from alexprep.model.recipes import RecipeInputs, make_recipe
from alexprep.model.run_folder import LOCK
from alexprep.model.training import TrainOptions, choose_precision, train
from tests.forks import Fork
from tests.ranks import ended, start_ranks
from tests.test_placement import SHORT, alone, assert_close, command_of, dataset

__all__ = ["alone", "dataset"]  # fixtures


def start(command, **options):
    return Fork(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def completed(command, timeout=200):
    """Exit code, stdout and stderr."""
    process = start(command)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("recipe", "devices", "form"),
    [
        ("one_gpu", "cpu", "1 columns x 2 replicas, one in each process, on cpu"),
        pytest.param(
            *("code2012", "cpu,cpu", "2 columns x 2 replicas, one in each process, on cpu"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_replicas_learn_what_one_learns_and_the_first_process_speaks(
    dataset, tmp_path, recipe, devices, form
):
    train(dataset, tmp_path / "alone", replace(SHORT, recipe=recipe))
    run = tmp_path / "run"
    words = ["--recipe", recipe, "--devices", devices, "--replicas", "2"]
    code, out, err = completed([*command_of(dataset, run, 1), *words])
    assert code == 0, err
    assert_close(tmp_path / "alone", run)
    (line,) = out.splitlines()
    assert line.startswith("1 epochs, 16 steps; best top-1 acc ")
    assert err.count(form) == 1
    assert "Traceback" not in err


@pytest.mark.slow
def test_python_starts_the_processes_too_and_gets_the_summary(alone, dataset, tmp_path):
    options = replace(SHORT, devices=("cpu",), launch=Launch(replicas=2))
    summary = train(dataset, tmp_path / "run", options)
    assert (summary.epochs, summary.steps, summary.stopped) == (1, 16, "")
    assert_close(alone, tmp_path / "run")


@pytest.mark.slow
def test_a_folder_that_another_run_holds_is_refused_in_one_line_by_several_processes(
    dataset, tmp_path
):
    run = tmp_path / "run"
    run.mkdir()
    words = ["--recipe", "one_gpu", "--devices", "cpu", "--replicas", "2"]
    with hold_lock(run / LOCK, run, RunError):
        code, _, err = completed([*command_of(dataset, run, 1), *words])
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"Error: {run} is in use by process {os.getpid()}")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_command_saves_and_ends_without_a_traceback(dataset, tmp_path, number):
    run = tmp_path / "run"
    slow = command_of(dataset, run, 500, "train.checkpoint_minutes=1e-9")
    # Of one column, so that there are two processes.
    one = ["--recipe", "one_gpu", "--replicas", "2", "--devices", "cpu"]
    process = start([*slow, *one], start_new_session=True)
    while not checkpoint.steps(run) and process.poll() is None:
        time.sleep(0.05)
    # As Ctrl-C does, to the whole group of the terminal.
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 128 + number, err
    assert out.startswith(f"{number.name}: saved {checkpoint.steps(run)[-1]}. Run it again ")
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_once(dataset, tmp_path):
    run = tmp_path / "run"
    slow = command_of(dataset, run, 500, "train.checkpoint_minutes=1e-9")
    process = start([*slow, "--replicas", "2", "--devices", "cpu"])
    while not checkpoint.steps(run) and process.poll() is None:
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "--parent", str(process.pid), "--full", "spawn_main"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, err
    assert "was killed by SIGKILL. Run the command again to resume" in errors[0]
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_error_that_all_processes_meet_is_said_once(dataset, tmp_path):
    command = [*command_of(dataset, tmp_path / "run", 1), "--replicas", "2", "--devices", "cpu"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    code, out, err = completed(command)
    assert (code, out) == (1, "")
    assert [line for line in err.splitlines() if "rror" in line] == [
        f"Error: {tmp_path / 'run'} is not empty and holds no run. Name another folder with --run."
    ]


def test_processes_of_torchrun_whose_number_does_not_fit_say_so_once(dataset, tmp_path):
    # Ended by torchrun, the others may be gone before they say it; here each ends by itself.
    command = command_of(dataset, tmp_path / "run", 1)
    codes, said = ended(start_ranks(3, command, stderr=subprocess.PIPE))
    assert codes == [1] * 3
    assert "".join(said).splitlines() == [
        "Error: 3 processes do not make replicas of 2 columns. Start a multiple of 2, as in "
        "torchrun --nproc-per-node 2 ..."
    ]


@pytest.mark.parametrize(
    ("gpus", "columns", "processes", "devices", "reason"),
    [
        (0, 2, 1, ("cpu",), "torch sees no GPU"),
        (1, 2, 1, ("cuda:0",), "the only GPU"),
        (2, 2, 1, ("cuda:0", "cuda:1"), "2 GPUs, a column on each of 2"),
        (8, 2, 1, ("cuda:0", "cuda:1"), "8 GPUs, a column on each of 2"),
        (2, 1, 1, ("cuda:0",), "the first of 2 GPUs"),
        (8, 2, 8, ("cuda",), "8 GPUs for 8 processes"),
        (2, 2, 8, ("cpu",), "2 GPUs are not enough for 8 processes"),
    ],
)
def test_auto_is_a_gpu_for_each_column_or_the_only_one_or_the_cpu(
    monkeypatch, gpus, columns, processes, devices, reason
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_devices(("auto",), columns, processes) == (devices, reason)


def test_devices_that_are_named_are_used_as_they_are():
    assert choose_devices(("cuda:1", "cuda:0"), 2) == (("cuda:1", "cuda:0"), "")


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu", "cuda", "cuda:0", "cuda:0,cuda:1"])
def test_processes_have_the_kind_of_device_that_a_replica_was_given(devices):
    assert process_device(devices.split(","), 2) == devices[: 3 if devices[1] == "p" else 4]


@pytest.mark.parametrize("devices", ["cuda:2,cuda:3", "cuda:1", "cpu,cuda:0", "cpu,cpu,cpu"])
def test_processes_cannot_be_given_devices_by_number(devices):
    with pytest.raises(ValueError, match=f"--devices {devices} does not fit several processes"):
        process_device(devices.split(","), 2)


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_of_srun_or_mpirun_that_know_nothing_of_each_other_are_refused(name):
    starter = "mpirun --npernode 1" if name.startswith("OMPI") else "srun --ntasks-per-node 1"
    with pytest.raises(RunError, match=rf"4 processes \({name}=4\).*: {starter} alexprep train"):
        check_tasks({name: "4"}, nodes=1)


@pytest.mark.parametrize(
    ("environment", "nodes"),
    [
        ({}, 1),
        ({"SLURM_NTASKS": "1"}, 1),
        ({"SLURM_NTASKS": "4"}, 4),  # one on each machine
        ({"SLURM_NTASKS": "4", "WORLD_SIZE": "4"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, 1),
    ],
)
def test_a_task_that_is_alone_or_knows_the_others_may_train(environment, nodes):
    check_tasks(environment, nodes)


def test_replicas_that_machines_cannot_share_are_refused():
    assert Launch(replicas=4, nodes=2, coordinator="a:1").processes(2) == 4
    with pytest.raises(ValueError, match="are 6 processes, which 4 machines cannot share evenly"):
        Launch(replicas=3, nodes=4, coordinator="a:1").processes(2)
    with pytest.raises(ValueError, match=r"--nodes 2 needs --coordinator HOST:PORT"):
        Launch(replicas=2, nodes=2)


@pytest.mark.slow
def test_two_machines_meet_at_the_coordinator_and_learn_what_one_learns(alone, dataset, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*command_of(dataset, tmp_path / "run", 1), "--devices", "cpu"]
    launch = ["--replicas", "2", "--nodes", "2", "--coordinator", meeting]
    machines = [start([*command, *launch]) for _ in range(2)]
    outputs = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert sum("2 columns x 2 replicas" in err for _, err in outputs) == 1
    assert sum("1 epochs, 16 steps" in out for out, _ in outputs) == 1
    assert_close(alone, tmp_path / "run")


@pytest.mark.parametrize("allowed", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_a_processor_without_bfloat16_trains_in_float32_unless_told_otherwise(
    monkeypatch, tmp_path, allowed
):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    flags = Path("/proc/cpuinfo").read_text().split()
    fast = allowed == "DEFAULT" and bool({"avx512_bf16", "amx_bf16"} & {*flags})
    recipe = make_recipe("code2012", RecipeInputs(classes=10, source=256))
    cpu = TrainOptions(devices=("cpu",))
    chosen, reason = choose_precision(recipe, tmp_path, cpu)
    assert chosen.train.precision == ("bfloat16" if fast else "float32")
    assert reason == ("" if fast else " (this processor has no instructions for bfloat16)")
    asked = replace(cpu, settings=("train.precision=bfloat16",))
    warning = "" if fast else " (emulated on this processor: float32 is faster)"
    assert choose_precision(recipe, tmp_path, asked) == (recipe, warning)
    gpu = replace(cpu, devices=("cuda:0",))
    assert choose_precision(recipe, tmp_path, gpu) == (recipe, "")


@pytest.mark.parametrize("recorded", ["float32", "bfloat16"])
def test_a_run_keeps_its_precision_on_another_processor(monkeypatch, tmp_path, recorded):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2" if recorded == "bfloat16" else "DEFAULT")
    recipe = make_recipe("code2012", RecipeInputs(classes=10, source=256))
    config = {"recipe": {"train": {"precision": recorded}}, "data": {}, "calls": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    chosen, _ = choose_precision(recipe, tmp_path, TrainOptions(devices=("cpu",)))
    assert chosen.train.precision == recorded
