"""Write into docs/recipes.md what each recipe changes in code2012, from alexprep/model/recipes.py.

Example:
    python docs/make_recipes.py
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from alexnet.model.spec import ModelConfig
from alexprep.model.recipes import RECIPES, Recipe, RecipeInputs, make_recipe
from alexprep.model.settings import SCHEDULES

PAGE = Path(__file__).parent / "recipes.md"
FULL = RecipeInputs(classes=1000, source=256)
LIST = re.compile(r"(?<=by `python docs/make_recipes.py`:\n\n```text\n).*?(?=```)", re.DOTALL)


def settings(made: Recipe) -> dict[str, str]:
    """Every value of a recipe as `--set` takes it: part.field -> text."""
    return {
        name: text(value)
        for part in ("model", "augment", "train", "loader")
        for name, value in _values(getattr(made, part), part)
    }


def _values(owner: Any, path: str) -> Iterator[tuple[str, Any]]:
    for field in fields(owner):
        value = getattr(owner, field.name)
        if isinstance(owner, ModelConfig) and field.name == "layers":
            for row in value:
                yield from _values(row, f"{path}.{row.name}")
        elif field.name != "name":
            yield f"{path}.{field.name}", value


def text(value: Any) -> str:
    """A value as it is typed behind `--set part.field=`."""
    if is_dataclass(value):
        return next(name for name, schedule in SCHEDULES.items() if schedule == value)
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def differences(name: str) -> list[str]:
    """The words of a recipe's line: settings, and layers added (+) or taken away (-)."""
    base, here = settings(make_recipe("code2012", FULL)), settings(make_recipe(name, FULL))
    rows = {row.name for row in make_recipe("code2012", FULL).model.layers}
    words: list[str] = []
    for row in make_recipe(name, FULL).model.layers:
        if row.name not in rows:
            values = ((k.rpartition(".")[2], v) for k, v in here.items() if f".{row.name}." in k)
            words.append(f"+{row.name}({' '.join(f'{k}={v}' for k, v in values)})")
    words += [f"-{row}" for row in sorted(rows) if f"model.{row}.out" not in here]
    return words + [f"{k}={here[k]}" for k, v in base.items() if k in here and here[k] != v]


def listing() -> str:
    """All recipes but code2012."""
    lines: list[str] = []
    for name in list(RECIPES)[1:]:
        lines += textwrap.wrap(
            f"{name:17} {' '.join(differences(name))}",
            width=110,
            subsequent_indent=" " * 18,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page as it should be."""
    return LIST.sub(lambda _: listing(), PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
