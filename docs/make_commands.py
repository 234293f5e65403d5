"""Write docs/commands.md, the command reference, from what `--help` prints.

Example:
    python docs/make_commands.py
"""

from pathlib import Path

import click

from alexprep.cli import cli

HEAD = "# The commands\n\nWritten by `python docs/make_commands.py` from what `--help` prints.\n"


def reference() -> str:
    """The help of `alexprep` and of each command, as Markdown."""
    sections = [HEAD]
    with click.Context(
        cli, info_name="alexprep", terminal_width=80, **cli.context_settings
    ) as context:
        sections.append(f"\n```text\n{cli.get_help(context)}\n```\n")
        for name in cli.list_commands(context):
            command = cli.commands[name]
            text = command.get_help(click.Context(command, context, name))
            sections.append(f"\n## alexprep {name}\n\n```text\n{text}\n```\n")
    return "".join(sections)


if __name__ == "__main__":
    (Path(__file__).parent / "commands.md").write_text(reference())
