"""The command line. Expected failures become one line here, and nowhere else."""

import errno
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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (DataError, PrepareError, RunError) as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            if error.filename is None and error.errno not in STORAGE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(printable(f"{where}{error.strerror}.")) from error


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
