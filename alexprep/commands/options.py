"""Options that several commands share, and how results and wrong values are printed."""

import json
import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from alexprep.errors import printable

T = TypeVar("T")
Callback = TypeVar("Callback", bound=Callable[..., Any])
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class LocalPath(click.Path):
    """A path of this machine; a URL is a usage error that does not show its password."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and URL.match(value):
            self.fail(
                f"{printable(value)} is a URL, where a path of this machine is "
                "needed. Copy the files here first; in Python, open_loader reads data sets by URL.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


# An unreadable file is no usage error (exit code 2): the command itself reports it, with 1.
PATH = LocalPath(path_type=Path, readable=False)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of worker processes.  [default: one per core]",
)
scheduler_option = click.option(
    "--scheduler", metavar="URL", help="Dask scheduler to run on, for example tcp://host:8786."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device: auto, cpu or cuda:0. auto is the first GPU, or the CPU.",
)


def views_option(default: str) -> Callable[[Callback], Callback]:
    """The crops of an image that eval and predict average."""
    return click.option(
        "--views",
        type=click.Choice(["1", "10"]),
        default=default,
        show_default=True,
        help="1: centre crop. 10: corners, centre and their mirror images, as in the paper.",
    )


def take_fields(kind: type[T], options: Mapping[str, Any]) -> T:
    """The dataclass `kind` made of the options of a command that are fields of it."""
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: options[name] for name in names if name in options})


@contextmanager
def usage(kind: type[ValueError] = ValueError) -> Generator[None]:
    """Report a value that a configuration rejects as a usage error: exit code 2.

    Around the work itself `kind` is OptionError, for any other ValueError is a defect.
    """
    try:
        yield
    except kind as error:
        raise click.UsageError(printable(str(error))) from error


def import_numpy() -> None:
    """Import NumPy without the threads of its OpenBLAS.

    They take .03 s to start, no command that calls this uses them, and a process with threads
    cannot be forked.
    """
    chosen = "OPENBLAS_NUM_THREADS" in os.environ
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import_module("numpy")
    if not chosen:
        del os.environ["OPENBLAS_NUM_THREADS"]


def start_workers(workers: int | None, *modules: str) -> None:
    """Prepare worker processes, if there will be any, that have imported `modules`."""
    from alexprep.machine import cores
    from alexprep.workers import start_server

    import_numpy()
    if (workers or cores()) > 1:
        start_server(*modules)


def print_text(text: object) -> None:
    """Print a result of several lines, with names from files in it."""
    click.echo(printable(f"{text}", keep="\n\t"))


def print_json(value: object) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_device(device: str) -> None:
    """Say on stderr what "auto" was and why; after the work, so that an error is one line."""
    from alexprep.model.placement import choose_device

    name, reason = choose_device(device)
    if reason:
        click.echo(f"device {name} ({reason})", err=True)
