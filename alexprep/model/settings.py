"""--set part.field=value: change single fields of a recipe, with the types of their annotations.

train.lr=.02   augment.mean=channel   loader.threads=8   train.schedule=plateau
train.schedule.patience=5   train.layer_lr.fc8=10   model.conv3.sd=.01   model.dropout=0

Lists are values between commas; whatever begins with [ or { is JSON.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import msgspec

from alexnet.model.spec import ModelConfig
from alexnet.training.schedule import (
    CAFFE,
    CONSTANT,
    NET_145,
    NET_170,
    SHORT,
    PlateauSchedule,
    Schedule,
)
from alexprep.model.recipes import Recipe
from alexprep.schema import check_name, choose, convert, is_mapping, members

PARTS = ("model", "augment", "train", "loader")
SCHEDULES = {
    "plateau": PlateauSchedule(),
    "net_145": NET_145,
    "net_170": NET_170,
    "caffe": CAFFE,
    "short": SHORT,
    "constant": CONSTANT,
}
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def apply_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with all settings applied.

    ValueError says what is wrong with a setting and what would be right.
    """
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        section, *names = path.strip().split(".")
        if not equals or not names:
            raise ValueError(
                f"--set expects part.field=value, as in train.lr=.02; got {setting!r}."
            )
        check_name(section, PARTS, "--set", "a part")
        owner = getattr(recipe, section)
        values = changes.setdefault(section, asdict(owner))
        _set(values, type(owner), names, text.strip(), f"--set {path.strip()}")
    # Built once, at the end: settings may be valid only together, as model.crop and augment.crop.
    sections = {
        section: convert(values, type(getattr(recipe, section)), f"--set {section}")
        for section, values in changes.items()
    }
    return replace(recipe, **sections)


def _set(values: dict[str, Any], kind: Any, names: list[str], text: str, where: str) -> None:
    """Set the entry of `values`, the fields of a `kind`, that `names` lead to."""
    name, *deeper = names
    # Layers go by name, as in model.conv3.sd: their place in the list says nothing.
    layers: dict[str, dict[str, Any]] = {}
    if kind is ModelConfig:
        layers = {layer["name"]: layer for layer in values["layers"]}
    known = [*(field.name for field in fields(kind)), *layers]
    check_name(name, known, where, f"a field of {kind.__name__}")
    if name in layers:
        if not deeper:
            raise ValueError(f"{where}: name a field of the layer, as in model.{name}.sd.")
        layer_kind = choose(members(get_args(get_type_hints(kind)["layers"])[0]), layers[name])
        _set(layers[name], layer_kind, deeper, text, where)
        return
    hint = get_type_hints(kind)[name]
    if not deeper:
        values[name] = _parse(text, hint, where)
    elif is_mapping(hint) and len(deeper) == 1:
        entries = cast(Mapping[str, Any], values[name])
        values[name] = {**entries, deeper[0]: _parse(text, get_args(hint)[1], where)}
    elif classes := [member for member in members(hint) if is_dataclass(member)]:
        _set(values[name], choose(cast(Any, classes), values[name]), deeper, text, where)
    else:
        raise ValueError(f"{where}: {name} has no fields.")


def _parse(text: str, hint: Any, where: str) -> Any:
    """The text of a setting as its annotation demands, in the form of JSON."""
    if hint == Schedule and not text.startswith("{"):
        check_name(text, SCHEDULES, where, "a schedule")
        return asdict(SCHEDULES[text])
    if text.startswith(("[", "{")):
        value = _from_json(text, where)
    elif "," in text or get_origin(hint) is tuple:
        items = next(
            (get_args(kind) for kind in members(hint) if get_origin(kind) is tuple), (str,)
        )
        value = [_scalar(item.strip(), items[0]) for item in text.split(",")]
    elif is_mapping(hint):
        raise ValueError(f"{where} has entries; name one, as in train.layer_lr.fc8=10.")
    else:
        value = _scalar(text, hint)
    convert(value, hint, where)
    return value


def _from_json(text: str, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}.") from None


def _scalar(text: str, hint: Any) -> Any:
    """A choice, number or none, by the type of its field; the text itself where none fits."""
    for kind in members(hint):
        if get_origin(kind) is Literal:
            for choice in get_args(kind):
                if text == str(choice):
                    return choice
        elif kind is bool:
            return BOOLEANS.get(text.lower(), text)
        elif kind in (int, float):
            with suppress(ValueError):
                return kind(text)
    return None if text.lower() == "none" else text
