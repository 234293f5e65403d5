"""The command line. Expected failures become one line here, and nowhere else."""

import errno
import os
import sys
from typing import Any

import click

from alexnet.errors import RunError
from alexprep import __version__
from alexprep.commands import data, model, tools
from alexprep.errors import PrepareError, printable
from pipelines.errors import DataError

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class Commands(click.Group):
    """Prints expected errors, ours and the file system's, as one line; bugs keep a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """The program: with all three standard streams, whichever its caller has closed."""
        open_standard_streams()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
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
