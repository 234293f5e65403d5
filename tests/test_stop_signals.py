"""A signal ends any command with one line, its workers and its locks; nohup is honoured."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from shard_process import members
from test_workers import wait_until

from tests.tarsets import drawn_items, write_dataset

COMMAND = (sys.executable, "-m", "alexprep")
OTHERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    items = drawn_items(np.random.default_rng(5), 24, size=40)
    splits = {"train": items}
    return write_dataset(tmp_path_factory.mktemp("stopped") / "set", splits, size=40, shards=6)


def start_stats(root, out):
    """`alexprep stats`, stopped where its workers are about to be started."""
    process = subprocess.Popen(
        [*COMMAND, "stats", str(root), "--out", str(out), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: (out / ".stats-train.sums").exists() or process.poll() is not None)
    return process


@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGUSR1, signal.SIGINT),
        *(pytest.param(number, marks=pytest.mark.slow) for number in OTHERS),
    ],
)
def test_a_signal_is_one_line_and_leaves_no_process_and_no_lock(root, tmp_path, number):
    process = start_stats(root, tmp_path / "out")
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    *progress, line = said.strip().splitlines()
    assert all(entry.startswith("stats train: ") for entry in progress if entry), said
    if number == signal.SIGINT:
        assert (line, process.returncode) == ("Aborted!", 1)
    else:
        assert line == f"Stopped by {number.name}. Run the same command again."
        assert process.returncode == 128 + number
    wait_until(lambda: not members(process.pid))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".stats-train.sums"]


@pytest.mark.slow
def test_a_closed_terminal_does_not_end_what_nohup_started(root, tmp_path):
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_stats(root, tmp_path / "out")
    finally:
        signal.signal(signal.SIGHUP, handler)
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / "out/stats.json").is_file()
