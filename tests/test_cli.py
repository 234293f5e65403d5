import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from alexprep.cli import Commands, cli
from pipelines.errors import DataError


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
    ],
)
def test_what_goes_wrong_outside_this_program_is_one_line(error, line):
    result = a_group_that_fails_with(error)
    assert (result.output, result.exit_code) == (line, 1)


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_defect_keeps_its_traceback(error):
    assert a_group_that_fails_with(error).exception is error


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "alexprep", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "alexprep, version 0.1.0\n"
