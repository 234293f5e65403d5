"""Values from files and the command line, checked against the annotations of our types by msgspec.

    read(path, kind, PrepareError)     a JSON file of ours
    parse(data, kind, PrepareError, source=path)   the same, of bytes already at hand
    convert(value, kind)               what JSON holds as a (nested) dataclass

`kind` is a msgspec.Struct, a dataclass or any type msgspec knows. A file is data of unknown origin:
its size is bounded before it is read, msgspec bounds its depth, and NaN is no JSON.
"""

import dataclasses
import difflib
import functools
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T")
MAX_BYTES = 256 << 20  # the manifest of a data set with a million skipped files is below


def read(path: Path, kind: type[T], error: type[Exception], *, advice: str = "") -> T:
    """A JSON file as `kind`; `error` names the file and what is wrong in it, OSError passes."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise error(_sentence(f"{path} has {size:,} bytes, at most {MAX_BYTES:,} are read", advice))
    return parse(path.read_bytes(), kind, error, source=path, advice=advice)


def parse(
    data: bytes | str, kind: type[T], error: type[Exception], *, source: object, advice: str = ""
) -> T:
    """JSON as `kind`; `error` says that `source` is damaged, and how."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as reason:  # ValueError: msgspec's own errors are that too
        raise error(_sentence(f"{source} is damaged ({reason})", advice)) from reason


def _sentence(problem: str, advice: str) -> str:
    return f"{problem}. {advice}".rstrip()


def convert(value: Any, kind: Any, where: str = "") -> Any:
    """`value`, made of what JSON holds, as `kind`; ValueError says where and what is expected.

    msgspec ignores fields that a dataclass does not have and takes no union of dataclasses. So
    dataclasses are built here, field by field, and of a union the one with these fields is taken.
    """
    options = members(kind)
    classes: list[Any] = [option for option in options if dataclasses.is_dataclass(option)]
    lists = [option for option in options if _has_dataclass_items(option)]
    if classes and isinstance(value, Mapping):
        fields = cast(Mapping[str, Any], value)
        return _build(fields, choose(classes, fields), where)
    if lists and isinstance(value, list | tuple):
        item, items = get_args(lists[0])[0], cast(list[Any], value)
        return tuple(convert(entry, item, f"{where}[{n}]") for n, entry in enumerate(items))
    others = [option for option in options if option not in [*classes, *lists]]
    try:
        if not others or not _is_finite(value):
            raise ValueError
        return msgspec.convert(
            value, functools.reduce(lambda union, option: union | option, others)
        )
    except (ValueError, RecursionError):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise ValueError(f"{where}: expected {describe(kind)}, got {shown}.") from None


def _has_dataclass_items(kind: Any) -> bool:
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    return any(dataclasses.is_dataclass(option) for option in members(item))


def _build(values: Mapping[str, Any], kind: type[Any], where: str) -> Any:
    fields = dataclasses.fields(kind)
    for name in values:
        check_name(name, [field.name for field in fields], where, f"a field of {kind.__name__}")
    for field in fields:
        defaults = (field.default, field.default_factory)
        if field.name not in values and defaults == (dataclasses.MISSING, dataclasses.MISSING):
            raise ValueError(f"{where}: {kind.__name__} needs {field.name!r}, which is missing.")
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    return kind(**{n: convert(value, hints[n], f"{prefix}{n}") for n, value in values.items()})


def choose(classes: Iterable[type[Any]], values: Mapping[str, Any]) -> type[Any]:
    """The dataclass of a union that `values` are the fields of: on disk no tag names it."""

    def misfit(kind: type[Any]) -> tuple[int, int]:
        fields = dataclasses.fields(kind)
        required = {
            field.name
            for field in fields
            if field.default is field.default_factory is dataclasses.MISSING
        }
        return len(set(values) - {field.name for field in fields}), len(required - set(values))

    return min(classes, key=misfit)


def check_name(name: str, known: Iterable[str], where: str, what: str) -> None:
    """ValueError with the nearest known name unless `name` is one."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"{where}: {name!r} is not {what}; did you mean {near!r}?")


def members(kind: Any) -> list[Any]:
    """The types of a union, nested ones flattened; a type alone is a union of one."""
    if get_origin(kind) in (Union, types.UnionType):
        return [member for option in get_args(kind) for member in members(option)]
    return [kind]


def is_mapping(kind: Any) -> bool:
    """Whether a type is one of names with values."""
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def describe(kind: Any) -> str:
    """What values a type has, for a message: "a whole number or none", "float32 or bfloat16"."""
    return " or ".join(text for member in members(kind) for text in _words(member))


def _words(kind: Any) -> list[str]:
    plain = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "none",
    }
    arguments = get_args(kind)
    origin = get_origin(kind)
    if origin is Literal:
        return [str(choice) for choice in arguments]
    if origin is tuple:
        one_kind = arguments[-1] is Ellipsis
        count = "a list" if one_kind else f"{len(arguments)} values"
        return [f"{count} (each {describe(arguments[0])})"]
    if is_mapping(kind):
        return [f"names with values (each {describe(arguments[1])})"]
    return [plain.get(kind) or f"the fields of {getattr(kind, '__name__', kind)}"]


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(cast(Mapping[str, Any], value).values())
    if isinstance(value, list | tuple):
        return all(_is_finite(item) for item in cast(list[Any], value))
    return not isinstance(value, float) or math.isfinite(value)
