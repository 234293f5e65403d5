"""Types are checked where JSON comes in, and what is wrong is one line that says where."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.model import networks
from alexnet.training.config import TrainConfig
from alexnet.training.schedule import NET_145, PlateauSchedule
from alexprep import schema
from alexprep.errors import PrepareError
from pipelines.augment import AugmentSpec


class Entry(msgspec.Struct):
    name: str
    sizes: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float
    kind: Literal["thin", "thick"] = "thin"


@dataclass(frozen=True, kw_only=True)
class Square:
    side: float


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shapes: tuple[Circle | Square, ...]
    main: Circle | Square | None = None


@pytest.mark.parametrize("part", [networks.code2012(), TrainConfig(), AugmentSpec()])
def test_every_part_of_a_recipe_comes_back_equal_from_json(part):
    assert schema.convert(json.loads(json.dumps(asdict(part))), type(part)) == part


def test_a_union_of_dataclasses_is_told_apart_by_its_fields():
    for schedule in (NET_145, PlateauSchedule(patience=2)):
        config = TrainConfig(schedule=schedule)
        assert schema.convert(json.loads(json.dumps(asdict(config))), TrainConfig) == config
    raw = {"shapes": [{"side": 1}, {"radius": 2}], "main": None}
    assert schema.convert(raw, Drawing) == Drawing(shapes=(Square(side=1), Circle(radius=2)))


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ({"shapes": [{"radius": "big"}]}, r"it.shapes\[0\].radius: expected a number, got 'big'"),
        ({"shapes": [{}]}, r"it.shapes\[0\]: .* needs '.*', which is missing"),
        ({"shapes": [{"raduis": 1}]}, r"'raduis' is not a field of .*did you mean 'radius'"),
        ({"shapes": 3}, "it.shapes: expected a list"),
        ({"shapes": [3]}, r"it.shapes\[0\]: expected the fields of Circle or .*Square, got 3"),
        ({"shapes": [], "main": []}, "it.main: expected .* or none"),
        ({"shapes": [{"radius": 1, "kind": "fat"}]}, "expected thin or thick, got 'fat'"),
        ({"shapes": [{"radius": float("nan")}]}, "expected a number, got nan"),
        ({}, "needs 'shapes'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(raw, answer):
    with pytest.raises(ValueError, match=answer) as caught:
        schema.convert(raw, Drawing, "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "truncated"),
        (b'{"name": "a"', "truncated"),
        (b"[1]", "Expected `object`"),
        (b'{"name": 1}', "Expected `str`"),
        (b'{"sizes": []}', "missing required field `name`"),
        (b'{"name": "\xff"}', "utf-8|malformed"),
        (b'{"name": "a", "sizes": [NaN]}', "malformed"),
        (b"[" * 200_000, "Expected `object`|depth"),
        (b'{"x": ' + b"[" * 200_000, "depth"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, text, reason):
    path = tmp_path / "entry.json"
    path.write_bytes(text)
    with pytest.raises(PrepareError, match=reason) as caught:
        schema.read(path, Entry, PrepareError, advice="Make it again.")
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("). Make it again.")
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "entry.json"
    with path.open("wb") as file:
        file.truncate(schema.MAX_BYTES + 1)
    with pytest.raises(PrepareError, match=r"has 268,435,457 bytes, at most 268,435,456"):
        schema.read(path, Entry, PrepareError)


@given(st.recursive(st.none() | st.floats() | st.text() | st.integers(), st.lists))
def test_whatever_a_value_is_it_becomes_its_type_or_one_line(value):
    try:
        drawing = schema.convert({"shapes": [{"radius": value}]}, Drawing)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert math.isfinite(drawing.shapes[0].radius)
    assert message.startswith("shapes[0].radius: expected a number, got") or not message
    assert "\n" not in message
