"""The command line. Expected failures become one line here, and nowhere else."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

import click

from alexnet.errors import RunError
from alexprep import __version__
from alexprep.commands import data, model, tools
from alexprep.errors import PrepareError, printable
from pipelines.errors import DataError

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


OUT_OF_MEMORY = (
    "This process ran out of memory. Run the same command again on a machine with more, or with "
    "fewer --workers."
)
# Of schedulers, of a terminal that is closed, and Slurm's; Ctrl-C is click's.
STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal(BaseException):
    """A signal asks the program to stop: as Ctrl-C does, by an exception that ends its workers.

    `first` is the first signal that did, for the line about it and the exit code.
    """

    first: ClassVar[signal.Signals | None] = None


class Commands(click.Group):
    """Prints expected errors, ours and the file system's, as one line; bugs keep a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """The program: with all three standard streams, whichever its caller has closed."""
        open_standard_streams()
        with raising_stop_signals():
            return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except (Exception, StopSignal):
            # Whatever it is: a library may have caught the StopSignal amid its imports, and lack
            # half of itself now.
            stop = StopSignal.first
            if stop is None:
                raise
            click.echo(f"Stopped by {stop.name}. Run the same command again.", err=True)
            raise SystemExit(128 + stop) from None

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MemoryError as error:
            raise click.ClickException(OUT_OF_MEMORY) from error
        except PrepareError as error:
            lines = [printable(str(line)) for line in error.args]
            raise click.ClickException("\n".join(lines)) from error
        except (DataError, RunError) as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            if error.filename is None and error.errno not in STORAGE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(printable(f"{where}{error.strerror}.")) from error


@contextmanager
def raising_stop_signals() -> Generator[None]:
    """Raise StopSignal for the first of each; those that the caller ignores (nohup) stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    StopSignal.first = None
    numbers = [number for number in STOPS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _raise_stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _raise_stop(number: int, _frame: FrameType | None) -> None:
    # A closed terminal sends SIGHUP twice; of the others the second ends the process at once.
    signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    StopSignal.first = StopSignal.first or signal.Signals(number)
    raise StopSignal(number)


def open_standard_streams() -> None:
    """Connect streams that are closed (`alexprep ... 2>&-`) to /dev/null.

    Otherwise the next file that is opened gets the number of the stream, and messages go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one, for those below are open by now.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, "r" if number == 0 else "w", closefd=False))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alexprep")
def cli() -> None:
    """Convert ImageNet to WebDataset shards and train the AlexNet of 2012 on them.

    \b
    Example:
        alexprep shard ~/ILSVRC ~/imagenet256
        alexprep stats ~/imagenet256
        alexprep train ~/imagenet256 --run ~/run --devices cuda:0,cuda:1
        alexprep eval ~/run --data ~/imagenet256 --views 10
    """


for command in (*data.COMMANDS, *model.COMMANDS, *tools.COMMANDS):
    cli.add_command(command)
