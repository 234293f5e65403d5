"""--set part.field=value: change single values of a recipe, typed, with help for wrong names.

train.lr=.02   augment.mean=channel   loader.threads=8   train.schedule=plateau
train.schedule.patience=5   train.layer_lr.fc8=10   model.conv3.sd=.01   model.dropout=0
"""

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from alexnet.model.spec import ModelConfig, with_rows
from alexnet.training.schedule import CAFFE, CONSTANT, NET_145, NET_170, SHORT, Plateau
from alexprep.model.recipes import Recipe

SCHEDULES = {
    "plateau": Plateau(),
    "net_145": NET_145,
    "net_170": NET_170,
    "caffe": CAFFE,
    "short": SHORT,
    "constant": CONSTANT,
}


def apply_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with each setting applied in turn.

    ValueError says what was wrong with a setting and what would have been right.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        part, *rest = path.strip().split(".")
        if not equals or not rest:
            raise ValueError(f"--set wants part.field=value, as in train.lr=.02; got {setting!r}.")
        parts = ("model", "augment", "train", "loader")
        _check_name(part, parts, "--set", "a part")
        owner = changes.get(part, getattr(recipe, part))
        changes[part] = _changed(owner, rest, text.strip(), path)
    # All at once: settings may be valid only together, as model.crop and augment.crop.
    return dataclasses.replace(recipe, **changes)


def _changed(owner: Any, names: list[str], text: str, path: str) -> Any:
    """`owner` with the field that `names` lead to set to the value of `text`."""
    name, *deeper = names
    if isinstance(owner, ModelConfig) and name in {row.name for row in owner.layers}:
        row = next(row for row in owner.layers if row.name == name)
        if not deeper:
            raise ValueError(f"--set {path}: name a field of the layer, as in {path}.sd.")
        new = _changed(row, deeper, text, path)
        return with_rows(owner, **{name: {deeper[0]: getattr(new, deeper[0])}})
    fields = [field.name for field in dataclasses.fields(owner)]
    if isinstance(owner, ModelConfig):
        fields += [row.name for row in owner.layers]
    _check_name(name, fields, f"--set {path}", f"a field of {type(owner).__name__}")
    hint = get_type_hints(cast(Any, owner).__class__)[name]
    value = _inner(getattr(owner, name), deeper, text, path) if deeper else _typed(text, hint, path)
    return dataclasses.replace(owner, **{name: value})


def _inner(value: Any, names: list[str], text: str, path: str) -> Any:
    """A value that has fields or entries of its own, with one of them changed."""
    if dataclasses.is_dataclass(value):
        return _changed(value, names, text, path)
    if isinstance(value, Mapping) and len(names) == 1:
        entries = cast(Mapping[str, Any], value)
        return {**entries, names[0]: _number(text, float, path)}
    raise ValueError(f"--set {path}: {path.rsplit('.', 1)[0]} has no fields.")


def _check_name(name: str, known: Iterable[str], where: str, what: str) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{where}: {name!r} is not {what}; did you mean {near!r}?")


def _typed(text: str, hint: Any, path: str) -> Any:
    """The value of `text` as the annotation of its field wants it."""
    if path.endswith(".schedule"):
        _check_name(text, SCHEDULES, f"--set {path}", "a schedule")
        return SCHEDULES[text]
    choices = _choices(hint)
    if text.lower() == "none" and type(None) in choices:
        return None
    words = [
        word for choice in choices if get_origin(choice) is Literal for word in get_args(choice)
    ]
    for word in words:
        if text == str(word):
            return word
    others = [c for c in choices if c is not type(None) and get_origin(c) is not Literal]
    if not others:
        raise ValueError(f"--set {path}: {text!r} is none of {', '.join(map(str, words))}.")
    return _plain(text, others[0], path)


def _choices(hint: Any) -> list[Any]:
    """What a union is of, nested ones laid flat."""
    if get_origin(hint) in (Union, types.UnionType):
        return [choice for part in get_args(hint) for choice in _choices(part)]
    return [hint]


def _plain(text: str, kind: Any, path: str) -> Any:
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise ValueError(f"--set {path} wants true or false, got {text!r}.")
        return words[text.lower()]
    if kind in (int, float):
        return _number(text, kind, path)
    if kind is str:
        return text
    if get_origin(kind) is tuple:
        return _list(text, get_args(kind), path)
    raise ValueError(f"--set {path} has entries; name one, as in {path}.fc8={text}.")


def _number(text: str, kind: type, path: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"--set {path} wants {wanted}, got {text!r}.") from None


def _list(text: str, kinds: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    """Values between commas, or JSON for lists of lists."""
    if text.startswith("["):
        return _tuples(json.loads(text))
    values = text.split(",")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(values)
    if len(values) != len(kinds):
        raise ValueError(f"--set {path} wants {len(kinds)} values between commas, got {text!r}.")
    return tuple(_typed(v.strip(), kind, path) for v, kind in zip(values, kinds, strict=True))


def _tuples(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(_tuples(part) for part in cast(list[Any], value))
