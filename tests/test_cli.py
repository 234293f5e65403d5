import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from drawing import jpeg
from PIL import Image

from alexprep.cli import Commands, cli
from alexprep.errors import PrepareError
from pipelines.errors import DataError
from pipelines.format import Manifest


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands(cli))


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself_and_ends_with_an_example(path):
    text = run(*path, "--help").output
    assert "Example:" in text
    assert f"alexprep {' '.join(path)}" in text.split("Example:")[1]
    assert all(option.help for option in ALL[path].params if isinstance(option, click.Option))


def test_the_version_is_that_of_the_package():
    assert run("--version").output == "alexprep, version 0.1.0\n"


def a_group_that_fails_with(error):
    @click.group(cls=Commands)
    def group():
        pass

    @group.command()
    def fail():
        raise error

    return CliRunner().invoke(group, ["fail"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("x is no data set."), "Error: x is no data set.\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "Error: /x: Permission denied.\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "Error: No space left on device.\n"),
        (
            PrepareError("x holds 1 file:", "  a\nb.jpg is empty", "Remove it."),
            "Error: x holds 1 file:\n  a\\nb.jpg is empty\nRemove it.\n",
        ),
    ],
)
def test_what_goes_wrong_outside_this_program_is_one_line(error, line):
    result = a_group_that_fails_with(error)
    assert (result.output, result.exit_code) == (line, 1)


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_defect_keeps_its_traceback(error):
    assert a_group_that_fails_with(error).exception is error


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_standard_streams_that_are_closed_are_no_fault_and_no_file(tmp_path, closed):
    # What is opened next gets the number of a closed stream, and messages would go into it.
    program = """
import os, sys
from alexprep.cli import cli
try:
    cli(["shard", sys.argv[1], sys.argv[2], "--size", "32", "--workers", "1"])
finally:
    assert {os.readlink(f"/proc/self/fd/{n}") for n in map(int, sys.argv[3:])} == {"/dev/null"}
"""
    for name in ("ant", "bee"):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / f"{name}.jpg").write_bytes(jpeg(Image.new("RGB", (40, 40))))
    words = [program, tmp_path / "source", tmp_path / "made", *closed]
    shell = 'exec "$0" -c "$@" ' + " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(["sh", "-c", shell, sys.executable, *map(str, words)])
    assert done.returncode == 0
    assert Manifest.load(tmp_path / "made").splits["train"].samples == 2


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "alexprep", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "alexprep, version 0.1.0\n"
