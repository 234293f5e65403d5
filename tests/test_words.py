"""Help, README and docs use the words of the field."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from alexprep.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# Phrases of this project's own that a newcomer had to decode.
DIALECT = re.compile(
    r"goes on\b|went astray|\bmend(?:s|ed)?\b|\bnoughts?\b|\bamid\b|held against|taken for|"
    r"in turns|is no number|what all chance|\bbeside\b|so many random",
    re.IGNORECASE,
)
# On disk a data set has a field called `mended`; code stands between backticks.
CODE = re.compile(r"`[^`\n]*`")


def dialect(text):
    return [line for line in CODE.sub("", text).splitlines() if DIALECT.search(line)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_in_plain_english(path):
    assert dialect(path.read_text()) == []


@pytest.mark.parametrize("name", ["", *cli.commands])
def test_help_is_in_plain_english(name):
    assert dialect(CliRunner().invoke(cli, [*name.split(), "--help"]).output) == []


def test_the_check_finds_dialect_and_spares_names_of_fields():
    assert dialect("The run goes on.\nA `mended` field.\nWhat is mended.") == [
        "The run goes on.",
        "What is mended.",
    ]
