"""What a run says when its disk or its data set goes away amid an epoch: a real process each."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alexnet.training import checkpoint, metrics
from tests.forks import Fork
from tests.tarsets import drawn_items, measured, write_dataset

BATCH = 4
COMMAND = (
    *(sys.executable, "-m", "alexprep", "train", "--smoke", "--epochs", "2"),
    *("--set", f"loader.batch={BATCH}", "--set", "train.log_steps=1", "--set", "train.lr=.001"),
)
EVERY_STEP = ("--set", "train.checkpoint_minutes=1e-9")


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(3)
    splits = {
        "train": drawn_items(rng, 120, prefix="t"),
        "validation": drawn_items(rng, 12, prefix="v"),
    }
    root = write_dataset(tmp_path / "data", splits, size=64)
    measured(root)
    return root


def start(dataset, run, *options):
    """A run in a process of its own, on one thread, whose words are kept."""
    return Fork(
        [*COMMAND, dataset, "--run", run, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def amid_the_first_epoch(process, sign, action):
    """Halt the process once the file `sign` is there, act, and let it go on."""
    deadline = time.monotonic() + 120
    while not (sign.exists() and sign.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    action()
    process.send_signal(signal.SIGCONT)


def last_words(process):
    """(exit code, the line of the error); no traceback, and it does end."""
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, said
    assert said.rstrip().endswith(errors[0])
    return process.returncode, errors[0]


def truncate(dataset):
    for tar in (dataset / "train").iterdir():
        os.truncate(tar, 5000)


def rename(dataset):
    dataset.rename(dataset.with_name("elsewhere"))


def delete(dataset):
    shutil.rmtree(dataset)


@pytest.mark.parametrize(
    ("fault", "backend"),
    [
        *((truncate, "torch"), (rename, "dali"), (delete, "torch")),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (truncate, "dali"),
                (rename, "torch"),
                (delete, "dali"),
            )
        ),
    ],
)
def test_a_data_set_that_goes_away_ends_the_run_with_one_line(dataset, tmp_path, backend, fault):
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    run = tmp_path / "run"
    process = start(dataset, run, "--backend", backend, *EVERY_STEP)
    amid_the_first_epoch(process, checkpoint.step_path(run, 1), lambda: fault(dataset))
    code, error = last_words(process)
    assert code == 1
    assert str(dataset) in error
    # What the system still gave out may have been trained on; the checkpoint named is the latest.
    assert f"Last good checkpoint: {checkpoint.steps(run)[-1]}" in error
    assert checkpoint.load(checkpoint.steps(run)[-1], ("model", "velocity", "chance"))


def test_a_run_goes_on_when_its_data_set_is_back(dataset, tmp_path):
    run = tmp_path / "run"
    process = start(dataset, run, "--backend", "torch", *EVERY_STEP)
    amid_the_first_epoch(process, checkpoint.step_path(run, 1), lambda: rename(dataset))
    assert last_words(process)[0] == 1
    missing = start(dataset, run, "--backend", "torch", *EVERY_STEP)
    code, error = last_words(missing)
    assert code == 1
    assert re.search("data is not a folder", error)
    dataset.with_name("elsewhere").rename(dataset)
    process = start(dataset, run, "--backend", "torch")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "resuming from" in said
    assert "2 epochs, 60 steps" in out


def test_a_second_start_of_a_run_is_refused_while_the_first_trains(dataset, tmp_path):
    run = tmp_path / "run"
    refusals = []
    process = start(dataset, run, *EVERY_STEP)

    def start_again():
        refusals.append(last_words(start(dataset, run, *EVERY_STEP)))

    amid_the_first_epoch(process, checkpoint.step_path(run, 1), start_again)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert refusals[0][0] == 1
    assert f"{run} is in use by process {process.pid} on" in refusals[0][1]
    steps = [record["step"] for record in metrics.read(run) if record["kind"] == "step"]
    assert steps == list(range(1, 61))


# tests/test_train.py has every signal, in the process of the test.
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(
            pytest.param(getattr(signal, f"SIG{name}"), marks=pytest.mark.slow)
            for name in ("HUP", "USR1", "USR2")
        ),
    ],
)
def test_a_signal_saves_and_the_same_command_resumes(dataset, tmp_path, number):
    run = tmp_path / "run"
    process = start(dataset, run)
    amid_the_first_epoch(process, run / metrics.NAME, lambda: process.send_signal(number))
    out, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert f"{number.name}: saved {checkpoint.steps(run)[-1]}. Run it again to resume." in out
    process = start(dataset, run)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "2 epochs, 60 steps" in out


def test_a_terminal_that_is_closed_leaves_a_checkpoint(dataset, tmp_path):
    run = tmp_path / "run"
    pid, terminal = os.forkpty()
    if pid == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [*COMMAND, str(dataset), "--run", str(run)])
    log = run / metrics.NAME
    while not (log.exists() and log.stat().st_size):
        os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    saved = checkpoint.load(checkpoint.steps(run)[-1])
    assert 0 < saved.meta["progress"]["steps"] < 60
    assert len(list(metrics.read(run))) == saved.meta["progress"]["lines"]


IMPATIENT = """
import os, signal, sys, time
from pathlib import Path
from alexnet.training.run import Data, RunContext
from alexnet.training.trainer import fit
from tests.batches import Batches
from tests.test_train import CONFIG, Evaluation, network

class Twice(Batches):
    def __iter__(self):
        for batch in super().__iter__():
            for _ in range(2):
                os.kill(os.getpid(), int(sys.argv[2]))
                time.sleep(0.01)
            yield batch

data = Data(train=Twice(), validation=Evaluation())
fit(network(), CONFIG, data, RunContext(folder=Path(sys.argv[1])))
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGUSR1)),
    ],
)
def test_a_second_signal_leaves_at_once(tmp_path, number):
    words = [sys.executable, "-c", IMPATIENT, str(tmp_path / "run"), str(int(number))]
    assert Fork(words).wait(120) == -number
    assert not checkpoint.steps(tmp_path / "run")


def limit_files(process, size):
    """From now on no file of the process may grow beyond `size`: its disk is full there."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
def test_a_disk_that_fills_up_while_a_checkpoint_is_written_ends_the_run_with_one_line(
    dataset, tmp_path
):
    run = tmp_path / "run"
    process = start(dataset, run, *EVERY_STEP)
    amid_the_first_epoch(
        process, checkpoint.step_path(run, 2), lambda: limit_files(process, 1_000_000)
    )
    code, error = last_words(process)
    assert code == 1
    assert os.strerror(errno.EFBIG) in error
    left = sorted((run / checkpoint.FOLDER).iterdir())
    assert f"Last good checkpoint: {left[-1]}" in error
    assert all(checkpoint.load(path, ("model", "velocity")) for path in left)


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
def test_a_disk_that_fills_up_while_metrics_are_written_ends_the_run_with_one_line(
    dataset, tmp_path
):
    run = tmp_path / "run"
    process = start(dataset, run)
    metrics = run / "metrics.jsonl"
    amid_the_first_epoch(
        process, metrics, lambda: limit_files(process, metrics.stat().st_size + 20)
    )
    code, error = last_words(process)
    assert code == 1
    assert os.strerror(errno.EFBIG) in error
    assert str(run) in error
    assert "No checkpoint had been written." in error
    # With space again the same command begins anew and leaves whole lines only.
    again = start(dataset, run)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert all(line.endswith("}") for line in metrics.read_text().splitlines())
