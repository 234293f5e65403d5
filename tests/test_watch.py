"""`alexprep watch` shows what a run logs until it ends, and changes nothing in its folder."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from alexprep.cli import cli
from alexprep.model import watch as watching
from alexprep.model.display import format_record
from alexprep.model.run_log import LogReader, TimeLeft
from alexprep.model.watch import RunWatch, watch
from tests.test_terminal import ESCAPE, at_a_terminal

SPEED = {"images_per_second": 100.0, "waiting": 0.01}


def step(epoch, at):
    numbers = {"step": 10 * epoch + at, "epoch": epoch, "at": at, "of": 10, "loss": 1.5, "lr": 0.01}
    return {"kind": "step", **numbers, **SPEED}


def epoch(number):
    errors = {"loss": 1.4, "validation_loss": 1.3, "top1": 0.4, "top5": 0.1}
    times = {"bound": "compute", "seconds": 20.0, "validation_seconds": 5.0}
    numbers = {"step": 10 * number + 10, "epoch": number, "epochs": 4}
    return {"kind": "epoch", **numbers, **errors, **SPEED, **times}


def write(run, records, mode="w"):
    with (run / "metrics.jsonl").open(mode) as file:
        file.writelines(f"{json.dumps(record)}\n" for record in records)


def write_config(run, recipe):
    (run / "config.json").write_text(json.dumps({"recipe": recipe, "data": {}, "calls": []}))


def lock(run, pid, host=None, since=None):
    since = since or datetime.now(UTC)
    owner = {"host": host or socket.gethostname(), "pid": pid, "since": since.isoformat()}
    (run / ".lock").write_text(json.dumps(owner))


@pytest.fixture
def run(tmp_path):
    """A run of four epochs at batch 200 that has logged one epoch and a half; nobody trains."""
    recipe = {"train": {"epochs": 4, "stop_error": None}, "loader": {"batch": 200}}
    write_config(tmp_path, recipe)
    write(tmp_path, [step(0, 5), step(0, 10), epoch(0), step(1, 5)])
    return tmp_path


def test_a_run_that_has_stopped_is_shown_and_left(run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    watch(run, interval=60)
    assert capsys.readouterr().out.splitlines() == [
        format_record(epoch(0), 4),
        format_record(step(1, 5), 4),
        f"{run}: not running, 1 of 4 epochs done, the same `alexprep train` command resumes it",
    ]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_finished_run_says_so(run, capsys):
    write(run, [epoch(number) for number in range(4)])
    watch(run, interval=60)
    assert capsys.readouterr().out.splitlines()[-1] == f"{run}: finished after 4 of 4 epochs"


def test_records_are_lines_while_a_process_trains_and_it_ends_with_the_process(
    run, capsys, monkeypatch
):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lock(run, process.pid)

        def train_on(_seconds):
            write(run, [step(1, 10), epoch(1)], mode="a")
            process.communicate(b"\n")

        monkeypatch.setattr(watching.time, "sleep", train_on)  # between two looks
        watch(run, interval=60)
    lines = capsys.readouterr().out.splitlines()
    # 35 steps of 200 images at 100 a second, and three validations of 5 s.
    assert lines[2].startswith(f"{run}: 1:05 left, process {process.pid} on {socket.gethostname()}")
    assert " GB, log 0:0" in lines[2]
    assert lines[3:5] == [format_record(step(1, 10), 4), format_record(epoch(1), 4)]
    assert "not running, 2 of 4" in lines[5]


def test_a_process_that_has_the_number_of_an_older_run_does_not_train_it(run):
    lock(run, os.getpid())
    assert RunWatch(run).active
    lock(run, os.getpid(), since=datetime.now(UTC) - timedelta(days=30))
    assert not RunWatch(run).active


def test_a_run_on_another_machine_is_over_when_its_log_is_silent_for_an_hour(run, monkeypatch):
    lock(run, 1, host="elsewhere")
    assert "process 1 on elsewhere, log 0:00 old" in RunWatch(run).status()
    monkeypatch.setattr(watching, "SILENT_SECONDS", -1.0)
    assert not RunWatch(run).active


def test_a_log_that_a_resumed_run_has_cut_is_read_anew(run):
    log = LogReader(run)
    assert log.update() == [step(0, 5), step(0, 10), epoch(0), step(1, 5)]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')  # being written
    assert log.update() == []
    write(run, [step(0, 5), epoch(0)])
    assert log.update() == []
    write(run, [step(1, 3)], mode="a")
    assert log.update() == [step(1, 3)]
    assert log.records == [step(0, 5), epoch(0), step(1, 3)]


def test_the_time_left_follows_from_steps_batch_speed_and_validation():
    left = TimeLeft(epochs=4, batch=200)
    left.add(step(0, 5))
    assert left.seconds == 35 * 200 / 100
    left.add(step(0, 10) | {"images_per_second": 300.0})
    assert left.seconds == pytest.approx(30 * 200 / 150)  # the mean time of an image counts
    left.add(epoch(0))
    assert left.seconds == 3 * 25
    left.add(step(3, 10) | {"images_per_second": 0.0})
    left.add(epoch(3))
    assert left.seconds == 0


def test_on_a_terminal_it_is_a_table_of_80_columns(run):
    imports = "import sys; from alexprep.cli import cli; sys.stdout = sys.stderr"
    code = f"{imports}; cli(['watch', {str(run)!r}])"
    _, shown = at_a_terminal(code)
    text = ESCAPE.sub(b"", shown).decode()
    assert "60.00%" in text
    assert "epoch 2 step 5/10: loss 1.5000" in text
    assert "not running, 1 of 4 epochs done" in text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "config.json").unlink(), "has no config.json"),
        (lambda run: (run / "config.json").rename(run / "manifest.json"), "is a data set"),
        (lambda run: (run / "config.json").write_text('{"recipe": {}}'), "config.json is damaged"),
        (lambda run: write_config(run, {"train": {"epochs": "4"}}), "config.json is damaged"),
        (lambda run: write(run, [epoch(0), {"kind": "step"}]), "metrics.jsonl, line 2, is damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n"), "line 1, is damaged"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"), "line 1, is damaged"),
    ],
)
def test_what_is_no_run_is_one_line(run, damage, reason):
    damage(run)
    result = CliRunner().invoke(cli, ["watch", str(run)])
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert reason in result.output


def test_a_folder_that_does_not_exist_is_one_line(tmp_path):
    result = CliRunner().invoke(cli, ["watch", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {tmp_path / 'run'} does not exist. Give the folder that `train --run` names.\n"
    )


def test_a_run_without_a_step_yet_is_watched(run, capsys):
    (run / "metrics.jsonl").unlink()
    lock(run, os.getpid())
    watch(run, interval=60, once=True)
    assert f"process {os.getpid()}" in capsys.readouterr().out
