"""`python -m alexprep` is the command `alexprep`."""

from alexprep.cli import cli

cli(prog_name="alexprep")
