"""docs/recipes.md says of every recipe what the code says of it."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from alexprep.model.recipes import RECIPES, RecipeInputs, make_recipe
from alexprep.model.settings import apply_settings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "recipes.md").read_text()
MAKE = runpy.run_path(str(DOCS / "make_recipes.py"))
FULL = RecipeInputs(classes=1000, source=256)


def rows(head):
    """The rows of the table whose head begins so, each as a list of cells."""
    lines = PAGE[PAGE.index(f"\n| {head}") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("head", ["recipe | what it is", "recipe | error"])
def test_every_recipe_has_its_row(head):
    assert [row[0].strip("`") for row in rows(head)] == list(RECIPES)


def test_the_settings_are_those_of_the_code():
    # `python docs/make_recipes.py` writes them anew.
    assert MAKE["page"]() == PAGE


def listed():
    """name -> the words of its settings, as the page has them."""
    text = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
    found = {}
    for line in text.splitlines():
        if not line.startswith(" "):
            name = line.split()[0]
            found[name] = []
        words = re.findall(r"[+-]\w+(?:\([^)]*\))?|\S+", line.removeprefix(name))
        found[name] += words
    return found


@pytest.mark.parametrize("name", list(RECIPES)[1:])
def test_the_settings_typed_behind_code2012_make_the_recipe(name):
    words = listed()[name]
    layers = [word for word in words if word[0] in "+-"]
    recipe = apply_settings(make_recipe("code2012", FULL), [w for w in words if w not in layers])
    wanted = replace(make_recipe(name, FULL), name="code2012")
    if not layers:
        assert recipe == wanted
    else:
        there = {row.name for row in recipe.model.layers}
        changed = {row.name for row in wanted.model.layers} ^ there
        assert {re.match(r".(\w+)", word)[1] for word in layers} == changed
        same = [row for row in recipe.model.layers if row.name not in changed]
        assert same == [row for row in wanted.model.layers if row.name not in changed]


@pytest.mark.parametrize("row", rows("field | `code2012`"), ids=lambda row: row[0].strip("`"))
def test_the_table_of_differences_is_that_of_the_recipes(row):
    field, *values = row
    names = ("code2012", "paper", "caffe", "torchvision")
    for name, value in zip(names, values, strict=False):
        assert MAKE["settings"](make_recipe(name, FULL))[field.strip("`")] == value
