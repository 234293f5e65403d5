"""What a person at a terminal gets, and a file or a pipe does not: colours, bars, completion."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from drawing import draw_classes

from alexprep.cli import cli
from alexprep.errors import printable
from alexprep.model.recipes import RECIPES

BIN = Path(sys.executable).parent
ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
# SGR codes that set a colour of the text or behind it; bold, italic and plain are none.
COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")

BAR = """
from alexprep.progress import ProgressBar
with ProgressBar("shard", 1_281_167) as progress:
    for _ in range(3):
        progress.advance(300_000, bytes=30_000_000_000, errors=1)
"""
TABLE = """
from pathlib import Path
from alexprep.model.display import RunDisplay
with RunDisplay(Path("runs/[bold]imagenet"), 91) as display:
    display.log("from [red]here")
    display.emit({"kind": "step", "step": 1, "epoch": 13, "at": 10009, "of": 10009, "loss": 4.3,
                    "lr": 0.01, "images_per_second": 1234.5, "waiting": 0.004})
    display.emit({"kind": "epoch", "step": 1, "epoch": 13, "epochs": 91, "loss": 4.3, "top1": 0.6,
                    "validation_loss": 4.1, "top5": 0.3, "images_per_second": 1234.5,
                    "waiting": 0.004, "bound": "compute", "seconds": 9.0,
                    "validation_seconds": 1.0})
"""


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | more


def at_a_terminal(code, columns=80, **more):
    """(what a script says on stdout, a pipe; what it says on stderr, a terminal so wide)."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=slave, env=environment(**more)
    ) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:  # Linux says so when the last writer has gone
                break
            if not piece:
                break
            seen += piece
        said = process.stdout.read()
    os.close(master)
    assert process.returncode == 0, seen
    return said, seen


@pytest.mark.parametrize("code", [BAR, TABLE], ids=["bar", "table"])
def test_a_terminal_gets_colours_and_a_pipe_plain_lines(code):
    said, seen = at_a_terminal(code)
    assert said == b""
    assert ESCAPE.search(seen)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment()
    )
    assert done.stderr.strip()
    assert b"\x1b" not in done.stdout + done.stderr


def test_a_bar_is_coloured_unless_no_color_is_set():
    _, seen = at_a_terminal(BAR)
    assert COLOUR.search(seen)
    _, seen = at_a_terminal(BAR, NO_COLOR="1")
    assert not COLOUR.search(seen)
    assert "━".encode() in seen


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_beside_the_bar_is_cut_off(columns):
    _, seen = at_a_terminal(BAR, columns)
    last = ESCAPE.sub(b"", seen).decode().split("\r")[-2].strip()
    assert last.startswith("shard ━━")
    assert re.search(r" 900,000/1,281,167 images, .*/s, .*0:00 left, 3 errors$", last)
    assert ("MB/s" in last) == (columns == 120)


def test_the_table_shows_names_as_they_are_and_fits_80_columns():
    _, seen = at_a_terminal(TABLE)
    text = ESCAPE.sub(b"", seen).decode()
    assert "runs/[bold]imagenet" in text
    assert "from [red]here" in text
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    assert (
        "epoch 14 step 10009/10009: loss 4.3000, lr 0.01, 1,234 images/s, data wait 0.4%" in lines
    )
    heads = ["epoch", "loss", "val loss", "top-1 acc", "top-5 acc", "images/s", "data wait"]
    assert heads in [re.split(r" {2,}", line) for line in lines]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["trian"], ["--version"]])
def test_commands_say_what_they_say_without_colours(words):
    done = subprocess.run([BIN / "alexprep", *words], capture_output=True, env=environment())
    assert done.stdout + done.stderr
    assert b"\x1b" not in done.stdout + done.stderr


def completed(shell, *words):
    """What the program offers a shell for the last of the words, by click's protocol."""
    if shell == "fish":
        asked = {"COMP_WORDS": " ".join(words[:-1]), "COMP_CWORD": words[-1]}
    else:
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [BIN / "alexprep"],
        env=environment(_ALEXPREP_COMPLETE=f"{shell}_complete", **asked),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_and_the_names_of_the_commands(shell):
    done = subprocess.run(
        [BIN / "alexprep"],
        env=environment(_ALEXPREP_COMPLETE=f"{shell}_source"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_ALEXPREP_COMPLETE={shell}_complete" in done.stdout
    offered = completed(shell, "alexprep", "")
    assert all(re.search(rf"\b{name}\b", offered) for name in cli.commands)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("alexprep", "tr"), ["train"]),
        (("alexprep", "train", "set", "--ba"), ["--backend"]),
        (
            ("alexprep", "train", "set", "--backend", ""),
            ["auto", "dali", "torch", "planes", "resident"],
        ),
        (("alexprep", "train", "set", "--backend", "d"), ["dali"]),
        (("alexprep", "train", "set", "--recipe", ""), list(RECIPES)),
        (("alexprep", "train", "set", "--recipe", "no_l"), ["no_lrn", "no_lighting"]),
        (("alexprep", "export", ""), ["energon", "openclip"]),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_bash_itself_completes(words, offered):
    script = (
        'eval "$(_ALEXPREP_COMPLETE=bash_source alexprep)"; COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); _alexprep_completion alexprep; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == offered
    assert done.stderr == ""


HOSTILE = "\x1b]0;title\x07\x1b[2J\n\u009b31m.jpg"
ESCAPED = r"\x1b]0;title\x07\x1b[2J\n\x9b31m.jpg"


def test_a_name_with_control_sequences_is_printed_escaped(tmp_path):
    command = [sys.executable, "-m", "alexprep", "verify", str(tmp_path / HOSTILE)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert ESCAPED in done.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stderr + done.stdout)


@pytest.mark.parametrize(
    ("text", "keep", "expected"),
    [
        ("größe 猫.jpg", "", "größe 猫.jpg"),
        (HOSTILE, "", ESCAPED),
        ("a\nb\tc\r", "\n\t", "a\nb\tc\\r"),
        ("\udcff\u202e", "", r"\udcff\u202e"),
    ],
)
def test_only_what_is_not_printable_is_escaped(text, keep, expected):
    assert printable(text, keep) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "run", "--data", "http://alice:s3cret@localhost/set"],
        ["verify", "https://localhost/set?signature=s3cret"],
        ["predict", "run", "s3://alice:s3cret@localhost/a.jpg"],
        ["shard", "http://alice:s3cret@localhost/set", "out"],
        ["shard", "{source}", "s3://alice:s3cret@localhost:1/set"],
    ],
)
def test_a_url_is_refused_in_a_message_without_its_password(words, tmp_path):
    draw_classes(tmp_path / "zoo", np.random.default_rng(0), each=1)
    words = [word.format(source=tmp_path / "zoo") for word in words]
    command = [sys.executable, "-m", "alexprep", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.returncode in (1, 2)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert "localhost" in last
    assert "s3cret" not in done.stderr + done.stdout
