"""What a checkpoint of `train` needs to predict without its data set, written and read back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

import alexnet
from alexnet.errors import RunError
from alexnet.model.spec import ModelConfig, state_shapes
from alexnet.training import checkpoint
from alexnet.training.one_device import check_shapes, load_weights
from alexprep.model.placement import check_devices
from alexprep.schema import convert
from pipelines.augment import AugmentSpec
from pipelines.imagestats import SHAPES, ImageStats


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network that can predict without the data set it was trained on.

    `classes` are (wnid, names) in label order, `stats` those of its training images.
    """

    path: Path
    model: nn.Module
    augment: AugmentSpec
    stats: ImageStats | None
    classes: tuple[tuple[str, str], ...]


class StatsMeta(msgspec.Struct):
    """What is not an array in ImageStats."""

    split: str
    images: int
    height: int
    width: int
    shards: dict[str, str]


class CheckpointMeta(msgspec.Struct):
    """The JSON that `train` puts into each checkpoint; alexnet adds its own fields."""

    recipe: dict[str, Any]
    classes: tuple[tuple[str, str], ...]
    stats: StatsMeta | None


def checkpoint_meta(
    recipe: dict[str, Any], classes: Sequence[tuple[str, str]], stats: ImageStats | None
) -> dict[str, Any]:
    """CheckpointMeta as JSON holds it."""
    meta = None
    if stats is not None:
        meta = StatsMeta(stats.split, stats.images, stats.height, stats.width, dict(stats.shards))
    return {
        "recipe": recipe,
        "classes": [list(entry) for entry in classes],
        "stats": msgspec.to_builtins(meta),
    }


def checkpoint_stats(stats: ImageStats | None) -> dict[str, Tensor]:
    """The arrays of the statistics, float64."""
    if stats is None:
        return {}
    return {name: torch.as_tensor(np.array(getattr(stats, name))) for name in SHAPES}


def load_trained(path: Path, device: str = "cpu") -> Trained:
    """The network of a checkpoint, or of the best one of a run folder, ready to evaluate.

    RunError if it is not one, is damaged, or was not written by `alexprep train`, and for a device
    that is not available; ValueError for a word that names none.
    """
    check_devices((device,))
    file = checkpoint.resolve(path)
    saved = checkpoint.load(file, ("model", "stats"))
    try:
        meta = msgspec.convert(saved.meta, CheckpointMeta)
        config = convert(meta.recipe.get("model"), ModelConfig, "recipe.model")
        augment = convert(meta.recipe.get("augment"), AugmentSpec, "recipe.augment")
        stats = _build_stats(meta.stats, saved.parts["stats"])
        _check_agreement(meta, config, augment)
        # Before the network is built: a size that is not the weights' could fill the memory.
        check_shapes(state_shapes(config), saved.parts["model"], file)
        model = alexnet.build(config, devices=(device,))
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise RunError(f"{file} holds no network of `alexprep train` ({error}).") from error
    load_weights(model, saved.parts["model"], file)
    return Trained(
        path=file, model=model.eval(), augment=augment, stats=stats, classes=meta.classes
    )


def check_finite(probabilities: Tensor, path: Path) -> None:
    """RunError if the network of `path` gives anything but numbers."""
    if not probabilities.isfinite().all():
        raise RunError(f"{path} outputs NaN: its weights have diverged. Use an earlier checkpoint.")


def _check_agreement(meta: CheckpointMeta, config: ModelConfig, augment: AugmentSpec) -> None:
    """ValueError where parts of a checkpoint do not belong together."""
    if len(meta.classes) != config.classes:
        raise ValueError(f"it names {len(meta.classes)} classes for {config.classes} outputs")
    if augment.crop != config.crop:
        raise ValueError(f"crops are {augment.crop} pixels, the network takes {config.crop}")
    if augment.needs_stats and meta.stats is None:
        raise ValueError("the statistics of its images are missing")


def _build_stats(meta: StatsMeta | None, tensors: Mapping[str, Tensor]) -> ImageStats | None:
    if meta is None:
        return None
    arrays: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        expected = shape or (meta.height, meta.width, 3)
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != expected or tensor.dtype != torch.float64:
            raise ValueError(f"stats/{name} is not float64 of shape {expected}")
        arrays[name] = tensor.numpy()
    return ImageStats(**msgspec.structs.asdict(meta), **arrays)
