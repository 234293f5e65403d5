"""evaluate: the paper's numbers from checkpoints: top-1 and top-5, one or ten views, ensembles.

`--labels FILE` replaces the data set's labels by several right classes an image, or none (such
images are not counted). FILE is JSON in one of two forms: an object of key -> labels, a label being
a number or a wnid,

    {"ILSVRC2012_val_00000001": [65], "ILSVRC2012_val_00000002": ["n09193705", 795]}

or a list with the labels of ILSVRC2012_val_00000001 and so on, as in ReaL (Beyer et al. 2020,
real.json).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from alexnet.errors import RunError
from alexnet.training.evaluate import (
    Errors,
    average,
    error_rates,
    normalized,
    predict_probabilities,
    rank_of_label,
)
from alexprep import schema
from alexprep.model.placement import choose_device
from alexprep.model.predictions import SUFFIX, Predictions, check_output
from alexprep.model.trained import Trained, load_trained
from pipelines.config import BackendName, LoaderConfig
from pipelines.format import Manifest
from pipelines.loader import open_loader
from pipelines.shards import SplitReader

Classes = tuple[tuple[str, str], ...]  # (wnid, names) in label order
Label = int | str
LabelFile = dict[str, Label | list[Label]] | list[Label | list[Label]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """What is evaluated, and how.

    Attributes:
        split: of the data set.
        views: 1: the centre crop; 10: corners, centre and their mirrors, probabilities averaged.
        batch: crops the network takes at once.
        device: "auto", "cpu" or "cuda:0".
        backend: of the loader.
        weights: of the checkpoints in the average; none: equal.
        labels: a file of other labels.
    """

    split: str = "validation"
    views: Literal[1, 10] = 1
    batch: int = 100
    device: str = "auto"
    backend: BackendName = "auto"
    weights: tuple[float, ...] = ()
    labels: Path | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.views not in (1, 10):
            raise ValueError(
                f"EvalOptions expects batch >= 1 and views 1 or 10, got {self.batch}, {self.views}."
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

    `images` were counted, each once; `ranks` is the rank of each image's label among all classes,
    0 the first.
    """

    top1: float
    top5: float
    images: int
    views: int
    split: str
    dataset: str
    seconds: float
    members: tuple[tuple[str, Errors], ...]
    classes: Classes
    labels: Tensor
    ranks: Tensor

    def per_class(self) -> list[ClassErrors]:
        """One entry a class that has images, in label order."""
        rows: list[ClassErrors] = []
        for label, (wnid, names) in enumerate(self.classes):
            ranks = self.ranks[self.labels == label]
            if len(ranks):
                top1, top5 = _errors(ranks)
                row = ClassErrors(wnid=wnid, names=names, images=len(ranks), top1=top1, top5=top5)
                rows.append(row)
        return rows

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
        summary = self.members[0][0]
        if len(self.members) > 1:
            lines += [f"{e.top1:12.2%} {e.top5:12.2%}  {name}" for name, e in self.members]
            summary = f"mean of {len(self.members)}"
        return "\n".join([*lines, f"{self.top1:12.2%} {self.top5:12.2%}  {summary}"])

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
        save: where the averaged predictions are saved, to be used again as a checkpoint.

    Raises:
        RunError: a checkpoint is missing, damaged, or of other classes or images.
        DataError: the data set cannot be read.
        ValueError: weights that are not one a checkpoint.
    """
    started = time.perf_counter()
    options = replace(options, device=choose_device(options.device)[0])
    manifest = Manifest.load(dataset)
    manifest.split(options.split, dataset)
    # What can be wrong is found here, before the networks run for hours.
    weights = normalized(len(checkpoints), options.weights)
    if save is not None:
        check_output(save)
    opened = [_open_member(path, dataset, manifest, options.device) for path in checkpoints]
    # One network on the data set's own labels needs no keys before its loader has them.
    needs_keys = len(opened) > 1 or options.labels is not None
    keys = _common_keys(opened, dataset, manifest, options.split) if needs_keys else ()
    allowed = read_labels(options.labels, keys, manifest.classes) if options.labels else None

    members = [
        member
        if isinstance(member, Predictions)
        else predict_split(member, dataset, manifest, options)
        for member in opened
    ]
    mean = average([member.probabilities for member in members], weights)
    result = replace(members[0], probabilities=mean, source=" + ".join(m.source for m in members))
    if save is not None:
        result.save(save)
    return _count_errors(result, members, allowed, time.perf_counter() - started)


def _open_member(
    path: Path, dataset: Path, manifest: Manifest, device: str
) -> Trained | Predictions:
    """A checkpoint's network, or the predictions in a file, of this data set's classes."""
    member = Predictions.load(path) if path.suffix == SUFFIX else load_trained(path, device)
    source = path if isinstance(member, Predictions) else member.path
    _check_classes(source, member.classes, manifest, dataset)
    return member


def _check_classes(path: Path, classes: Classes, manifest: Manifest, dataset: Path) -> None:
    if len(classes) != len(manifest.classes):
        raise RunError(
            f"{path} knows {len(classes)} classes, {dataset} has {len(manifest.classes)}. "
            "Evaluate on the classes it was trained on."
        )
    for label, ((wnid, _), (expected, _)) in enumerate(zip(classes, manifest.classes, strict=True)):
        if wnid != expected:
            raise RunError(
                f"{path} was trained on other classes than those of {dataset}: label {label} is "
                f"{wnid}, not {expected}. Evaluate on the classes it was trained on."
            )


def _common_keys(
    opened: Sequence[Trained | Predictions], dataset: Path, manifest: Manifest, split: str
) -> tuple[str, ...]:
    """Keys of the images that all members predict; RunError if they predict different ones."""
    saved = [member for member in opened if isinstance(member, Predictions)]
    keys, where = (saved[0].keys, saved[0].source) if saved else ((), "")
    if len(saved) < len(opened):
        # Evaluation takes a split in its own order; the loader checks the bytes once more.
        reader = SplitReader(dataset, manifest, split, check="size")
        keys, where = tuple(reader.keys()), f"{dataset}/{split}"
    for member in saved:
        member.check_images(keys, where)
    return keys


def predict_split(
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


def _count_errors(
    mean: Predictions,
    members: Sequence[Predictions],
    allowed: Sequence[Sequence[int]] | None,
    seconds: float,
) -> Evaluation:
    labels = mean.labels
    if allowed is None:
        ranks = rank_of_label(mean.probabilities, labels)
        errors = [error_rates(member.probabilities, member.labels) for member in members]
    else:
        labels = labels[torch.tensor([bool(entry) for entry in allowed])]
        ranks = best_rank(mean.probabilities, allowed)
        errors = [_errors(best_rank(member.probabilities, allowed)) for member in members]
    top1, top5 = _errors(ranks)
    return Evaluation(
        top1=top1,
        top5=top5,
        images=len(ranks),
        views=mean.views,
        split=mean.split,
        dataset=mean.dataset,
        seconds=seconds,
        members=tuple((m.source, e) for m, e in zip(members, errors, strict=True)),
        classes=mean.classes,
        labels=labels,
        ranks=ranks,
    )


def _errors(ranks: Tensor) -> Errors:
    return Errors(*((ranks >= count).double().mean().item() for count in (1, 5)))


def best_rank(probabilities_NK: Tensor, labels: Sequence[Sequence[int]]) -> Tensor:
    """The best rank among the right classes of each image that has any, int64."""
    order = probabilities_NK.argsort(dim=1, descending=True, stable=True)
    ranks_NK = order.argsort(dim=1)
    best = [min(int(ranks_NK[n, k]) for k in entry) for n, entry in enumerate(labels) if entry]
    return torch.tensor(best, dtype=torch.int64)


def read_labels(path: Path, keys: Sequence[str], classes: Classes) -> list[list[int]]:
    """The right labels of each key, in order; RunError names what is wrong in the file."""
    advice = "It must hold an object of key -> labels, or a list of labels."
    table: LabelFile = schema.read(path, cast(Any, LabelFile), RunError, advice=advice)
    if isinstance(table, list):
        table = {f"ILSVRC2012_val_{n:08d}": entry for n, entry in enumerate(table, start=1)}
    missing = [key for key in keys if key not in table]
    if missing:
        raise RunError(
            f"{path} has no labels for {len(missing):,} images; the first: {missing[0]}."
        )
    numbers: dict[Label, int] = {wnid: number for number, (wnid, _) in enumerate(classes)}
    numbers |= {number: number for number in range(len(classes))}
    return [_numbers(table[key], numbers, f"{path}, {key}") for key in keys]


def _numbers(entry: Label | list[Label], numbers: dict[Label, int], where: str) -> list[int]:
    labels = entry if isinstance(entry, list) else [entry]
    for label in labels:
        if label not in numbers:
            raise RunError(f"{where}: {label!r} is none of the {len(numbers) // 2} classes.")
    return [numbers[label] for label in labels]
