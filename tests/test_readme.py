import re
import shlex
from pathlib import Path

import pytest

from alexprep.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A line of code ends where a comment, a redirection or a gap begins.
END = re.compile(r"\s{3,}|\s#\s|\s>\s")


def found(pattern, flags=re.MULTILINE):
    return [
        pytest.param(text, id=f"{page.name}: {text}")
        for page in PAGES
        for text in re.findall(pattern, page.read_text().replace("\\\n", " "), flags)
    ]


@pytest.mark.parametrize("line", found(r"^    (?:.*-m )?alexprep (\w.*)$"))
def test_every_command_line_in_the_pages_parses(line):
    name, *words = shlex.split(END.split(line)[0])
    if "..." not in words:
        # Of the program, as when it is typed: a command keeps the help options it first had.
        with cli.make_context("alexprep", [name]) as program:
            cli.commands[name].make_context(name, words, parent=program).close()


@pytest.mark.parametrize("mention", found(r"`alexprep (\w[^`]*)`"))
def test_every_command_mentioned_has_the_options_mentioned(mention):
    name, *words = mention.split()
    for each in name.split("|"):
        known = {option for param in cli.commands[each].params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}


def test_every_target_in_the_pages_is_in_the_makefile():
    made = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"^    make (\S+)", page.read_text(), re.M)
    }
    assert {"demo", "test"} <= named <= made
