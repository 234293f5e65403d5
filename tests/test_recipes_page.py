"""The generated reference of recipes: complete, and its settings make the recipes they describe."""

import re
from dataclasses import replace

import pytest

from alexprep.model.recipes import RECIPES, make_recipe
from alexprep.model.settings import apply_settings
from docs.generate.recipes import COMPARED, DIFFERENCES, FULL, REPORTED, differences, settings


def test_every_recipe_is_described():
    assert list(REPORTED) == list(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES)[1:])
def test_the_listed_settings_turn_code2012_into_the_recipe(name):
    words = differences(name)
    layers = [word for word in words if word[0] in "+-"]
    changed = apply_settings(make_recipe("code2012", FULL), [w for w in words if w not in layers])
    expected = replace(make_recipe(name, FULL), name="code2012")
    if not layers:
        assert changed == expected
    else:
        names = {row.name for row in changed.model.layers}
        other = {row.name for row in expected.model.layers} ^ names
        assert {re.match(r".(\w+)", word)[1] for word in layers} == other
        same = [row for row in changed.model.layers if row.name not in other]
        assert same == [row for row in expected.model.layers if row.name not in other]


@pytest.mark.parametrize("name", COMPARED)
def test_the_explained_fields_are_fields_of_the_recipe(name):
    assert DIFFERENCES.keys() <= settings(make_recipe(name, FULL)).keys()


def test_paper_and_code_differ_only_where_the_notes_explain_it():
    code, paper = (settings(make_recipe(name, FULL)) for name in ("code2012", "paper"))
    differing = {key for key in code if code[key] != paper[key]} - {"train.epochs", "augment.crop"}
    # One row each stands for the layers that its text names.
    rows = {re.sub(r"conv[45]\.sd", "conv3.sd", key) for key in differing}
    assert rows <= DIFFERENCES.keys()
