"""Commands that the pages name and no test can run (a GPU, a cluster, ImageNet): they parse."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from alexprep.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# A line of code ends where a comment, a redirection, a pipe or a gap begins.
END = re.compile(r"\s{3,}|\s#\s|\s2?>\s*|\s\|\s")


def lines(pattern, flags=re.MULTILINE):
    return [
        pytest.param(text, id=f"{page.name}: {text}")
        for page in PAGES
        for text in re.findall(pattern, page.read_text().replace("\\\n", " "), flags)
    ]


@pytest.mark.parametrize("line", lines(r"^(?:    |\$ )(?:.*-m (?:-- )?)?alexprep (\w.*)$"))
def test_every_command_line_in_the_pages_parses(line):
    name, *words = shlex.split(END.split(line)[0])
    # Of the program, as when it is typed: a command keeps the help options it first had.
    with cli.make_context("alexprep", [name]) as program:
        cli.commands[name].make_context(name, words, parent=program).close()


@pytest.mark.parametrize("mention", lines(r"`alexprep (\w[^`]*)`"))
def test_every_command_mentioned_has_the_options_mentioned(mention):
    name, *words = mention.split()
    for command in name.split("|"):
        known = {option for param in cli.commands[command].params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}


@pytest.mark.parametrize("line", lines(r"torchrun (.*?-m -- alexprep .*?)(?:\s{3,}.*)?$"))
def test_torchrun_passes_the_options_of_the_pages_on(line):
    words = shlex.split(re.sub(r'"\$\([^)]*\):', '"node0:', line))
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "alexprep")
    assert parsed.training_script_args == words[words.index("alexprep") + 1 :]


def test_torchrun_is_never_shown_in_the_form_that_it_refuses():
    # Without -- it takes our --run as an abbreviation of its --run-path.
    assert lines(r"-m alexprep train .*--run ") == []


def test_every_target_in_the_pages_is_in_the_makefile():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {param.values[0] for param in lines(r"^    (?:[A-Z_]+=\S+ )*make (\S+)")}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("line", lines(r"^    (?:\S*/)?python ((?:-m )?[\w./]+.*?)(?:\s{2,}.*)?$"))
def test_every_script_of_the_pages_is_there_with_its_options(line):
    words = line.split()
    if words[:2] == ["-m", "pytest"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        markers = project["tool"]["pytest"]["ini_options"]["markers"]
        assert words[3] in [marker.split(":")[0] for marker in markers]
        return
    if words[:2] == ["-m", "build"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        extras = project["project"]["optional-dependencies"]
        assert any(requirement.startswith("build>") for requirement in extras["dev"])
        return
    source = (ROOT / words[0]).read_text()
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))
