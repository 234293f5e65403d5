"""A trained network out of a checkpoint: weights, classes, and how its pictures are prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

import alexnet
from alexnet.errors import RunError
from alexnet.model.spec import ModelConfig
from alexnet.training import checkpoint
from alexnet.training.one_device import load_weights
from alexprep.model.placement import check_devices
from pipelines.augment import AugmentSpec
from pipelines.imagestats import ImageStats


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network that can predict without the data set it learned from.

    `classes` are (wnid, names) in label order, `stats` those of its training images.
    """

    path: Path
    model: nn.Module
    augment: AugmentSpec
    stats: ImageStats | None
    classes: tuple[tuple[str, str], ...]


def load_trained(path: Path, device: str = "cpu") -> Trained:
    """The network of a checkpoint, or of the best one of a run folder, ready to evaluate.

    RunError if it is none, damaged, or was written by something else than `alexprep train`, and
    for a device that is not here; ValueError for a word that names none.
    """
    check_devices((device,))
    file = checkpoint.resolve(path)
    saved = checkpoint.load(file, ("model", "stats"))
    meta = saved.meta
    try:
        config = ModelConfig.from_dict(meta["recipe"]["model"])
        augment = _augment(meta["recipe"]["augment"])
        stats = _stats(meta["stats"], saved.parts["stats"])
        classes = tuple((str(wnid), str(names)) for wnid, names in meta["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} holds no network of `alexprep train` ({error}).") from error
    model = alexnet.build(config, devices=(device,))
    load_weights(model, saved.parts["model"], file)
    return Trained(path=file, model=model.eval(), augment=augment, stats=stats, classes=classes)


def _augment(raw: Mapping[str, Any]) -> AugmentSpec:
    known = {field.name for field in fields(AugmentSpec)}
    values: dict[str, Any] = {
        name: tuple(cast(list[Any], value)) if isinstance(value, list) else value
        for name, value in raw.items()
    }
    if set(values) - known:
        raise ValueError(f"AugmentSpec has no {', '.join(sorted(set(values) - known))}")
    return AugmentSpec(**values)


def _stats(about: Mapping[str, Any] | None, arrays: Mapping[str, Tensor]) -> ImageStats | None:
    if about is None:
        return None
    values: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    return ImageStats(**about, **values)
