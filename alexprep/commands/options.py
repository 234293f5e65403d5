"""What the commands share: options, and how a wrong value and a result are told."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

# What may not be read is not wrong usage: the work says so, in one line and with exit code 1.
PATH = click.Path(path_type=Path, readable=False)
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), help="Processes.  [default: one a core]"
)
scheduler_option = click.option(
    "--scheduler", metavar="URL", help="A Dask scheduler that does the work, as tcp://host:8786."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="What all chance follows from."
)


@contextmanager
def usage() -> Generator[None]:
    """A value that a configuration refuses is wrong usage: exit code 2."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def print_json(value: object) -> None:
    """Print a result for another program."""
    click.echo(json.dumps(value, indent=1))
