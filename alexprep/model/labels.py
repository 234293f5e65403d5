"""Other labels than the data set's: several right classes for an image, or none.

A JSON file in one of two forms. An object of key -> labels, a label being a number or a wnid:

    {"ILSVRC2012_val_00000001": [65], "ILSVRC2012_val_00000002": ["n09193705", 795]}

or a list with the labels of ILSVRC2012_val_00000001 and so on, as in ReaL (Beyer et al. 2020,
real.json). Images without a label are not counted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from alexnet.errors import RunError


def read_labels(
    path: Path, keys: Sequence[str], classes: Sequence[tuple[str, str]]
) -> list[list[int]]:
    """The right labels of each key, in order; RunError says what the file has instead."""
    try:
        raw: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}).") from error
    if isinstance(raw, list):
        entries = cast(list[Any], raw)
        raw = {f"ILSVRC2012_val_{n:08d}": entry for n, entry in enumerate(entries, start=1)}
    if not isinstance(raw, dict):
        raise RunError(f"{path} must hold an object of key -> labels, or a list of labels.")
    table = cast(dict[str, Any], raw)
    missing = [key for key in keys if key not in table]
    if missing:
        raise RunError(
            f"{path} has no labels for {len(missing):,} images; the first: {missing[0]}."
        )
    numbers = {wnid: label for label, (wnid, _) in enumerate(classes)}
    return [_numbers(table[key], key, numbers, path) for key in keys]


def _numbers(entry: Any, key: str, numbers: dict[str, int], path: Path) -> list[int]:
    labels = cast(list[Any], entry) if isinstance(entry, list) else [entry]
    found: list[int] = []
    for label in labels:
        number = numbers.get(label) if isinstance(label, str) else label
        if not isinstance(number, int) or not 0 <= number < len(numbers):
            raise RunError(f"{path}, {key}: {label!r} is none of the {len(numbers)} classes.")
        found.append(number)
    return found


def right(probabilities_NK: Tensor, labels: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(which images are counted, bool (N,); the best place of a right class of each of these)."""
    counted = torch.tensor([bool(entry) for entry in labels])
    order = probabilities_NK.argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)
    best = [min(int(place[n, label]) for label in entry) for n, entry in enumerate(labels) if entry]
    return counted, torch.tensor(best, dtype=torch.int64)
