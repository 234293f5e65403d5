"""What goes wrong while preparing data and is not a defect of this program."""

import logging
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from pipelines.errors import hide_secrets


class PrepareError(Exception):
    """A source or target is unusable; the message says what, where, what was found, what to do.

    Each argument is a line of it, for those that list files.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class OptionError(ValueError):
    """A value of an option that cannot be followed: wrong usage, and no fault of a file."""


@contextmanager
def checking_options() -> Generator[None]:
    """Mark what a block finds wrong as wrong options; later a ValueError is a defect of ours."""
    try:
        yield
    except ValueError as error:
        raise OptionError(str(error)) from error


def listed(entries: Sequence[str], most: int = 50) -> list[str]:
    """The first entries as lines of a message, and how many more there are."""
    lines = [f"  {entry}" for entry in entries[:most]]
    return lines + ([f"  and {len(entries) - most:,} more"] if len(entries) > most else [])


def shown(names: Sequence[str], most: int = 4) -> str:
    """Names within a sentence: the first ones, and how many more there are if it is not one."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"


def counted(count: int, singular: str, plural: str = "") -> str:
    """A number with its noun: 1 file, 2 files, 2 classes."""
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal: names of files and classes may hold sequences that control one.

    What is not printable is written as Python writes it, but for the characters of `keep`. URLs
    lose their passwords and signatures.
    """
    text = hide_secrets(text)
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in text
    )


def warn(text: str) -> None:
    """Say on stderr what a user should know of, though the work goes on."""
    sys.stderr.write(f"Warning: {printable(text)}\n")


@contextmanager
def quiet_loggers(*prefixes: str) -> Generator[None]:
    """Keep libraries from logging what is raised here as well.

    Each of their loggers may have a level of its own, so it is not enough to set the topmost.
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith(prefixes)]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
