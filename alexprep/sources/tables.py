"""Text files that say something about images: whatever editor saved them, errors name the line."""

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path

from alexprep.errors import PrepareError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, origin: str) -> str:
    """Text of a file with or without a byte order mark and with any line ends."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PrepareError(
            f"{origin}, line {line}: not UTF-8 text ({error.reason}). Save it as UTF-8."
        ) from None
    if "\0" in text:
        raise PrepareError(f"{origin} is not a text file: it holds zero bytes. Get it again.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text without spaces around it) of every line that is not empty."""
    for number, line in enumerate(decode_text(path.read_bytes(), str(path)).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line number, values of `columns`) of a CSV file with a header."""
    lines = decode_text(path.read_bytes(), str(path)).split("\n")
    try:
        rows = csv.reader(lines, strict=True)
        header = [name.strip() for name in next(rows, list[str]())]
        absent = [name for name in columns if name not in header]
        if absent:
            raise PrepareError(
                f"{path}, line 1: no column {absent[0]!r}; the columns are "
                f"{', '.join(header)[:200] or 'none'}. Download the original file again."
            )
        wanted = [header.index(name) for name in columns]
        for row in rows:
            if not row:
                continue
            if len(row) <= max(wanted):
                raise PrepareError(
                    f"{path}, line {rows.line_num}: {len(row)} columns where the header has "
                    f"{len(header)}. Download the original file again."
                )
            yield rows.line_num, tuple(row[number] for number in wanted)
    except csv.Error as error:
        raise PrepareError(f"{path}: not a CSV file ({error}). Download it again.") from None
