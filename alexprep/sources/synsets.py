"""The 1000 classes of ILSVRC2012: label, devkit id, wnid and names.

Labels are in ASCII order of wnid. The devkit counts differently: its ILSVRC2012_ID is 1-based and
in no such order, so validation labels go id -> wnid -> label.
"""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from alexprep.errors import PrepareError
from alexprep.sources.tables import read_lines

SYNSETS_FILE = "synsets.txt"


class Synset(NamedTuple):
    """One class; `id` is the devkit's ILSVRC2012_ID, 1..1000."""

    label: int
    id: int
    wnid: str
    names: str


@cache
def ilsvrc2012() -> tuple[Synset, ...]:
    """The 1000 classes in label order."""
    text = files("alexprep").joinpath("data/ilsvrc2012_synsets.tsv").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return tuple(Synset(int(label), int(ident), wnid, names) for label, ident, wnid, names in rows)


@cache
def names_by_wnid() -> dict[str, str]:
    """What people call the 1000 classes."""
    return {synset.wnid: synset.names for synset in ilsvrc2012()}


@cache
def wnid_by_id() -> dict[int, str]:
    """The wnid of a devkit id, 1..1000."""
    return {synset.id: synset.wnid for synset in ilsvrc2012()}


def named(wnids: list[str], source: Path, *more_files: str) -> tuple[tuple[str, str], ...]:
    """(wnid, names) of the classes: from SOURCE/synsets.txt, else ILSVRC, else the folder's name.

    A line of synsets.txt is a class folder, a tab or a space, and what people call it.
    """
    known = dict(names_by_wnid())
    for path in (source / name for name in (*more_files, SYNSETS_FILE)):
        if path.is_file():
            known |= _read_names(path)
    return tuple((wnid, known.get(wnid, wnid)) for wnid in wnids)


def read_classes(path: Path) -> tuple[str, ...]:
    """The classes of a file, one a line: a wnid with or without names, or a folder's name.

    A tab ends the name, and so does a space after a wnid. PrepareError if one comes twice.
    """
    lines: dict[str, int] = {}
    try:
        for number, line in read_lines(path):
            wnid = re.match(r"n\d{8}(?=\s|$)", line)
            name = wnid[0] if wnid else line.split("\t")[0].strip()
            if name in lines:
                raise PrepareError(
                    f"{path}, line {number}: {name!r} is in line {lines[name]} too. Name each "
                    "class once."
                )
            lines[name] = number
    except OSError as error:
        raise PrepareError(f"Cannot read {path}: {error.strerror}.") from None
    if not lines:
        raise PrepareError(f"{path} names no class. Put one a line.")
    return tuple(lines)


def _read_names(path: Path) -> dict[str, str]:
    rows = (
        line.split(maxsplit=1) if "\t" not in line else line.split("\t", 1)
        for _, line in read_lines(path)
    )
    return {row[0].strip(): row[-1].strip() for row in rows}
