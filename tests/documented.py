"""Whether a JSON value is as docs/generate/format.py documents it: no field more, none less."""

from docs.generate.format import FIELDS

PLAIN = {
    "string": (str,),
    "integer": (int,),
    "number": (float,),
    "boolean": (bool,),
    "string or integer": (str, int),
}


def faults(value, kind, where):
    """Where a JSON value differs from a documented type."""
    if kind in PLAIN:
        if type(value) not in PLAIN[kind]:
            yield f"{where} is {value!r}, not {kind}"
    elif kind == "array of [string, string]":
        yield from faults(value, "array of array of string", where)
        yield from (f"{where} has {pair}" for pair in value if len(pair) != 2)
    elif kind.startswith("array of "):
        for number, item in enumerate(value):
            yield from faults(item, kind.removeprefix("array of "), f"{where}[{number}]")
    elif kind.startswith("object of "):
        for name, item in value.items():
            yield from faults(item, kind.removeprefix("object of "), f"{where}.{name}")
    else:
        yield from _object_faults(value, kind, where)


def _object_faults(value, section, where):
    known = {name: kind for name, (kind, _) in FIELDS[section].items()}
    required = {name for name, kind in known.items() if not kind.startswith("optional ")}
    if not required <= value.keys() <= known.keys():
        yield f"{where}: differ in {sorted(value.keys() ^ required)}"
    for name in value.keys() & known.keys():
        yield from faults(value[name], known[name].removeprefix("optional "), f"{where}.{name}")


def assert_documented(value, section):
    assert list(faults(value, section, section)) == []
