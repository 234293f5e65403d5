"""Run the commands of ```console blocks and write what they print below them.

Progress that is not yet complete ("1:13 left") is dropped, but for the steps of a training log.
HOME is the folder that the pages call ~: ILSVRC (images in class folders) and photos (a folder per
class below train and val) have to be there. Commands run in order, in the repository.

Example:
    python -m docs.generate.outputs /tmp/home README.md docs/guide/*.md
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


def commands(page: str) -> Iterator[str]:
    """The commands of a page, behind "$ "; a backslash at the end of a line continues it."""
    for block in BLOCK.findall(page):
        for match in re.finditer(r"^\$ (.*(?<!\\)(?:\\\n.*)*)$", block, re.MULTILINE):
            yield match[1]


def with_outputs(page: str, run: Callable[[str], str]) -> str:
    """The page with the output of each command below it."""

    def block(match: re.Match[str]) -> str:
        return "".join(f"$ {command}\n{run(command)}" for command in commands(fenced(match[0])))

    return BLOCK.sub(block, page)


def fenced(text: str) -> str:
    """A block as it stands in a page."""
    return f"```console\n{text}```\n"


def shell(command: str, home: Path, *, folder: Path = ROOT, check: bool = False) -> str:
    """What a command prints, stdout and stderr together, with HOME as ~, in a folder."""
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and process.returncode:
        raise RuntimeError(f"{command} exited with {process.returncode}:\n{process.stdout}")
    lines = [
        line
        for line in process.stdout.replace(f"{home}/", "~/").splitlines()
        if not re.search(r"^(?!epoch ).*\d:\d\d left$", line)
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def main() -> None:
    """Write the outputs into the pages named on the command line."""
    home, *pages = map(Path, sys.argv[1:] or sys.exit(__doc__))
    for page in pages:
        page.write_text(with_outputs(page.read_text(), lambda command: shell(command, home)))


if __name__ == "__main__":
    main()
