"""The commands that show, check and measure."""

from pathlib import Path

import click

from alexprep.options import PATH


@click.command()
@click.argument("out", type=PATH, default=Path("alexprep-demo"))
def demo(out: Path) -> None:
    """Draw images, shard, measure, train and evaluate: the whole way in OUT, in minutes.

    \b
    Example:
        alexprep demo /tmp/demo
    """
    from alexprep.demo import run_demo, table

    click.echo(table(run_demo(out)))


COMMANDS = (demo,)
