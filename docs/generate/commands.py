"""The help of every command, for docs/reference/commands.md."""

import click

from alexprep.cli import cli


def commands() -> str:
    """What `alexprep --help` and `alexprep COMMAND --help` print at 80 columns, as Markdown."""
    with click.Context(
        cli, info_name="alexprep", terminal_width=80, **cli.context_settings
    ) as context:
        sections = [f"```text\n{cli.get_help(context)}\n```\n"]
        for name in cli.list_commands(context):
            command = cli.commands[name]
            text = command.get_help(click.Context(command, context, name))
            sections.append(f"\n## alexprep {name}\n\n```text\n{text}\n```\n")
    return "".join(sections)
