"""One process trains in the folder of a run at a time, and a killed one does not keep it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from alexnet.errors import RunError
from alexprep.model.run_folder import (
    LOCK,
    create_or_check_config,
    open_run,
    read_config,
    run_identity,
)

IDENTITY = run_identity({"train": {"epochs": 2, "lr": 0.1}}, {"images": 3})
HOLD = """
import sys
from pathlib import Path
from alexprep.model.run_folder import open_run
from tests.test_run_folder import IDENTITY
with open_run(Path(sys.argv[1]), IDENTITY, {"call": 1}):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(run):
    """A process that holds the run until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def calls(run):
    return json.loads((run / "config.json").read_text())["calls"]


def test_a_second_start_is_told_who_holds_the_run_and_changes_nothing(tmp_path):
    run = tmp_path / "run"
    process = holder(run)
    expected = rf"run is in use by process {process.pid} on .*, since 20.*\. Wait for it"
    with pytest.raises(RunError, match=expected), open_run(run, IDENTITY, {"call": 2}):
        pass
    assert calls(run) == [{"call": 1}]
    process.communicate()
    with open_run(run, IDENTITY, {"call": 2}):
        assert calls(run) == [{"call": 1}, {"call": 2}]


def test_a_config_in_which_a_bit_has_changed_is_refused(tmp_path):
    create_or_check_config(tmp_path, IDENTITY, {"when": "2026-11-28", "seconds": 1.5})
    path = tmp_path / "config.json"
    whole = path.read_bytes()
    config = read_config(tmp_path)
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert read_config(tmp_path) == config  # another space between two words
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017 - either is right
    path.write_text(json.dumps({**IDENTITY, "calls": []}))  # of the first release
    assert read_config(tmp_path).calls == []


def test_a_killed_process_does_not_keep_the_run(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open_run(tmp_path, IDENTITY, {"call": 2}):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_first_call_that_was_killed_while_it_wrote_its_config_can_be_repeated(tmp_path):
    (tmp_path / LOCK).touch()
    (tmp_path / "config.json.partial").write_text("{")
    with open_run(tmp_path, IDENTITY, {"call": 1}):
        assert calls(tmp_path) == [{"call": 1}]


def test_a_folder_that_is_no_run_gets_no_lock(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="holds no run"), open_run(tmp_path, IDENTITY, {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"recipe": 1, "data": {}, "calls": []}', "[" * 100_000]
)
def test_a_damaged_config_is_one_line_that_names_it(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config.json is damaged .* Name another folder") as caught:
        create_or_check_config(tmp_path, IDENTITY, {})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text() == text
