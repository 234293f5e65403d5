"""Markdown tables, and the documentation of a dataclass's fields, read from its source."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from alexprep.model.settings import SCHEDULES

ATTRIBUTE = re.compile(r"(\w+): (.*)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def field_table(kind: type) -> str:
    """Name, default and meaning of each field of a dataclass.

    The meaning is that of the docstring's `Attributes:` section, or of the comment at the field.
    KeyError: the section lacks a field.
    """
    texts = attributes(kind) or comments(kind)
    rows = [
        (f"`{field.name}`", _default(field), _cell(texts[field.name])) for field in fields(kind)
    ]
    return table(("field", "default", "meaning"), rows)


def text(value: Any) -> str:
    """A value as it is typed behind `--set part.field=`."""
    if is_dataclass(value):
        return next(name for name, schedule in SCHEDULES.items() if schedule == value)
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def attributes(kind: type) -> dict[str, str]:
    """The `Attributes:` section of a class's docstring: name -> text."""
    _, _, section = inspect.getdoc(kind).partition("Attributes:\n")  # pyright: ignore
    entries = re.split(r"\n(?=\w)", textwrap.dedent(section).strip())
    pairs = (ATTRIBUTE.fullmatch(entry) for entry in entries if entry)
    return {pair[1]: " ".join(pair[2].split()) for pair in pairs if pair}


def comments(kind: type) -> dict[str, str]:
    """The comment behind each field of a class, or in the lines above it: name -> text."""
    lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
    texts: dict[str, str] = {}
    for node in ast.parse("\n".join(lines)).body[0].body:  # pyright: ignore
        if isinstance(node, ast.AnnAssign):
            texts[ast.unparse(node.target)] = _comment(lines, node.lineno - 1)
    return texts


def _comment(lines: list[str], number: int) -> str:
    if "  # " in lines[number]:
        return lines[number].partition("  # ")[2]
    above: list[str] = []
    while lines[number - 1].strip().startswith("# "):
        number -= 1
        above.insert(0, lines[number].strip().removeprefix("# "))
    return " ".join(above)


def _default(field: Field[Any]) -> str:
    return "" if field.default is MISSING else f"`{text(field.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").rstrip(".")
