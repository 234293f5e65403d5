"""evaluate: the paper's numbers from checkpoints: top-1 and top-5, one or ten views, ensembles."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from alexnet.errors import RunError
from alexnet.training.evaluate import (
    Errors,
    average,
    error_rates,
    normalized,
    places,
    predict_probabilities,
)
from alexprep.model.labels import read_labels, right
from alexprep.model.predictions import SUFFIX, Predictions, check_target
from alexprep.model.trained import Trained, load_trained
from pipelines.config import BackendName, LoaderConfig
from pipelines.format import Manifest
from pipelines.loader import open_loader
from pipelines.shards import SplitReader


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """What is evaluated, and how.

    Attributes:
        split: of the data set.
        views: 1: the centre crop; 10: corners, centre and their mirrors, probabilities averaged.
        batch: crops the network takes at once.
        device: "cpu" or "cuda:0".
        backend: of the loader.
        weights: of the checkpoints in the average; none: equal.
        labels: a file of other labels, see alexprep.model.labels.
    """

    split: str = "validation"
    views: Literal[1, 10] = 1
    batch: int = 100
    device: str = "cpu"
    backend: BackendName = "auto"
    weights: tuple[float, ...] = ()
    labels: Path | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.views not in (1, 10):
            raise ValueError(
                f"EvalOptions wants batch >= 1 and views 1 or 10, got {self.batch}, {self.views}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassErrors:
    """Errors of the images of one class."""

    wnid: str
    names: str
    images: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Errors as shares, 0..1: of each member and of their average.

    `images` were counted, each once; `places` is where each image's right class came, 0 first.
    """

    top1: float
    top5: float
    images: int
    views: int
    split: str
    dataset: str
    seconds: float
    members: tuple[tuple[str, Errors], ...]
    classes: tuple[tuple[str, str], ...]
    labels: Tensor
    places: Tensor

    def per_class(self) -> list[ClassErrors]:
        """One entry a class that has images, in label order."""
        found: list[ClassErrors] = []
        for label, (wnid, names) in enumerate(self.classes):
            place = self.places[self.labels == label].double()
            if len(place):
                top1, top5 = ((place >= first).double().mean().item() for first in (1, 5))
                entry = ClassErrors(wnid=wnid, names=names, images=len(place), top1=top1, top5=top5)
                found.append(entry)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
            "views": self.views,
            "top1_error": self.top1,
            "top5_error": self.top5,
            "seconds": self.seconds,
            "members": [
                {"checkpoint": name, "top1_error": errors.top1, "top5_error": errors.top5}
                for name, errors in self.members
            ],
        }

    def table(self) -> str:
        """Errors of the members and of their average."""
        views = f"{self.views} view{'s' * (self.views > 1)}"
        lines = [
            f"{self.dataset}, {self.split}: {self.images:,} images, {views}",
            f"{'top-1 error':>12} {'top-5 error':>12}",
        ]
        if len(self.members) > 1:
            lines += [f"{e.top1:12.2%} {e.top5:12.2%}  {name}" for name, e in self.members]
        name, *others = [name for name, _ in self.members]
        what = f"mean of {len(self.members)}" if others else name
        return "\n".join([*lines, f"{self.top1:12.2%} {self.top5:12.2%}  {what}"])

    def class_table(self) -> str:
        """Errors of each class, the worst first."""
        rows = sorted(self.per_class(), key=lambda row: (-row.top1, -row.top5, row.wnid))
        lines = [f"{'top-1 error':>12} {'top-5 error':>12} {'images':>7}  class"]
        lines += [
            f"{row.top1:12.2%} {row.top5:12.2%} {row.images:7,}  {row.wnid} {row.names}"
            for row in rows
        ]
        return "\n".join(lines)


def evaluate(
    checkpoints: Sequence[Path], dataset: Path, options: EvalOptions, *, save: Path | None = None
) -> Evaluation:
    """Errors of the mean prediction of checkpoints, runs or saved predictions on a data set.

    Args:
        checkpoints: checkpoint files, run folders (their best) or files that `save` wrote.
        dataset: a folder with manifest.json.
        options: see EvalOptions.
        save: where the averaged predictions are kept, to be used again as a checkpoint.

    Raises:
        RunError: a checkpoint is missing, damaged, or of other classes or images.
        DataError: the data set cannot be read.
        ValueError: weights that are not one a checkpoint.
    """
    began = time.perf_counter()
    manifest = Manifest.load(dataset)
    manifest.split(options.split, dataset)
    # What can be wrong is found here: the networks may take hours.
    weights = normalized(len(checkpoints), options.weights)
    if save is not None:
        check_target(save)
    opened = [_opened(path, dataset, manifest, options) for path in checkpoints]
    # One network on the data set's own labels needs no keys before its loader has them.
    named = len(opened) > 1 or options.labels is not None
    keys = _images(opened, dataset, manifest, options.split) if named else ()
    allowed = read_labels(options.labels, keys, manifest.classes) if options.labels else None

    members = [
        one if isinstance(one, Predictions) else predictions_of(one, dataset, manifest, options)
        for one in opened
    ]
    mean = average([member.probabilities for member in members], weights)
    result = replace(members[0], probabilities=mean, source=" + ".join(m.source for m in members))
    if save is not None:
        result.save(save)
    return _counted(result, members, allowed, time.perf_counter() - began)


def _counted(
    mean: Predictions,
    members: Sequence[Predictions],
    allowed: Sequence[Sequence[int]] | None,
    seconds: float,
) -> Evaluation:
    labels, place = mean.labels, places(mean.probabilities, mean.labels)
    errors = [error_rates(member.probabilities, member.labels) for member in members]
    if allowed is not None:
        judged = [right(member.probabilities, allowed) for member in members]
        errors = [Errors(*((p >= n).double().mean().item() for n in (1, 5))) for _, p in judged]
        counted, place = right(mean.probabilities, allowed)
        labels = labels[counted]
    return Evaluation(
        top1=(place >= 1).double().mean().item(),
        top5=(place >= 5).double().mean().item(),
        images=len(place),
        views=mean.views,
        split=mean.split,
        dataset=mean.dataset,
        seconds=seconds,
        members=tuple((m.source, e) for m, e in zip(members, errors, strict=True)),
        classes=mean.classes,
        labels=labels,
        places=place,
    )


def _opened(
    path: Path, dataset: Path, manifest: Manifest, options: EvalOptions
) -> Trained | Predictions:
    """A checkpoint's network, or the predictions in a file, of this data set's classes."""
    if path.suffix == SUFFIX:
        saved = Predictions.load(path)
        _check_classes(path, saved.classes, manifest, dataset)
        return saved
    trained = load_trained(path, options.device)
    _check_classes(trained.path, trained.classes, manifest, dataset)
    return trained


def _images(
    opened: Sequence[Trained | Predictions], dataset: Path, manifest: Manifest, split: str
) -> tuple[str, ...]:
    """Keys of the images that all members are of; RunError if they are of different ones."""
    saved = [one for one in opened if isinstance(one, Predictions)]
    keys, where = (saved[0].keys, saved[0].source) if saved else ((), "")
    if len(saved) < len(opened):
        # Evaluation takes a split in its own order; the loader looks at the bytes again.
        reader = SplitReader(dataset, manifest, split, check="size")
        keys, where = tuple(reader.keys()), f"{dataset}/{split}"
    for one in saved:
        one.check_images(keys, where)
    return keys


def predictions_of(
    trained: Trained, dataset: Path, manifest: Manifest, options: EvalOptions
) -> Predictions:
    """Run a network over a split."""
    config = LoaderConfig(
        batch=max(options.batch // options.views, 1),
        device=options.device,
        backend=options.backend,
        views=options.views,
    )
    with open_loader(
        dataset, options.split, config, trained.augment, train=False, stats=trained.stats
    ) as loader:
        probabilities, labels = predict_probabilities(trained.model, loader)
        return Predictions(
            probabilities=probabilities,
            labels=labels,
            keys=tuple(loader.keys),
            classes=manifest.classes,
            views=options.views,
            split=options.split,
            dataset=manifest.name,
            source=str(trained.path),
        )


def _check_classes(
    path: Path, there: Sequence[tuple[str, str]], manifest: Manifest, dataset: Path
) -> None:
    wnids, here = [wnid for wnid, _ in there], [wnid for wnid, _ in manifest.classes]
    if len(wnids) != len(here):
        raise RunError(
            f"{path} knows {len(wnids)} classes, {dataset} has {len(here)}. "
            "Evaluate on the classes it learned."
        )
    for label, (one, other) in enumerate(zip(wnids, here, strict=True)):
        if one != other:
            raise RunError(
                f"{path} learned other classes than those of {dataset}: {label} is {one} there "
                f"and {other} here. Evaluate on the classes it learned."
            )
