"""evaluate: the paper's numbers from checkpoints: top-1 and top-5, one or ten views, ensembles.

`--labels FILE` replaces the data set's labels by several right classes an image, or none (such
images are not counted). FILE is JSON in one of two forms: an object of key -> labels, a label being
a number or a wnid,

    {"ILSVRC2012_val_00000001": [65], "ILSVRC2012_val_00000002": ["n09193705", 795]}

or a list with the labels of ILSVRC2012_val_00000001 and so on, as in ReaL (Beyer et al. 2020,
real.json).

A data set may have other classes than the network, such as some of them: see alexprep.model.classes
for how they are matched. Errors are then counted twice: over all classes of the network, and over
those of the data set alone. Images of classes that the network does not know are not counted.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
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
from alexprep.errors import checking_options, counted
from alexprep.model.classes import Classes, ClassMatch, match_classes
from alexprep.model.placement import check_devices, choose_device
from alexprep.model.predictions import SUFFIX, Predictions, check_output
from alexprep.model.trained import Trained, check_finite, load_trained
from alexprep.progress import DELAY, ProgressBar, preload
from pipelines.config import BackendName, LoaderConfig
from pipelines.format import Manifest
from pipelines.loader import Loader, open_loader
from pipelines.shards import SplitReader

Label = int | str
LabelFile = dict[str, Label | list[Label]] | list[Label | list[Label]]
MOST_SHOWN = 4


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
    0 the first. `present` are the errors among the classes that the data set has, of the average
    and of each member; they are the others where it has all of them. `left_out` images are of
    classes that the network does not know.
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
    match: ClassMatch
    present: Errors
    members_present: tuple[Errors, ...]
    left_out: int

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
            "top1_error_present": self.present.top1,
            "top5_error_present": self.present.top5,
            "classes": len(self.classes),
            "classes_present": len(self.match.present),
            "classes_unknown": list(self.match.unknown),
            "classes_matched_by": self.match.basis,
            "images_left_out": self.left_out,
            "seconds": self.seconds,
            "members": [
                {
                    "checkpoint": name,
                    "top1_error": errors.top1,
                    "top5_error": errors.top5,
                    "top1_error_present": present.top1,
                    "top5_error_present": present.top5,
                }
                for (name, errors), present in zip(self.members, self.members_present, strict=True)
            ],
        }

    def table(self) -> str:
        """Errors of the members and of their average; twice if the data set lacks classes."""
        views = counted(self.views, "view")
        lines = [f"{self.dataset}, {self.split}: {self.images:,} images, {views}"]
        members = [errors for _, errors in self.members]
        if len(self.match.present) < len(self.classes):
            lines += [
                f"Among all {len(self.classes):,} classes of the network:",
                *self._rows(members, Errors(self.top1, self.top5)),
                f"Among the {len(self.match.present):,} classes that {self.dataset} has:",
                *self._rows(self.members_present, self.present),
            ]
        else:
            lines += self._rows(members, Errors(self.top1, self.top5))
        return "\n".join([*lines, *self._notes()])

    def _rows(self, members: Sequence[Errors], mean: Errors) -> Iterator[str]:
        yield f"{'top-1 error':>12} {'top-5 error':>12}"
        summary = self.members[0][0]
        if len(members) > 1:
            for (name, _), errors in zip(self.members, members, strict=True):
                yield f"{errors.top1:12.2%} {errors.top5:12.2%}  {name}"
            summary = f"mean of {len(members)}"
        yield f"{mean.top1:12.2%} {mean.top5:12.2%}  {summary}"

    def _notes(self) -> Iterator[str]:
        """What a reader should know of how classes were matched."""
        if self.match.basis == "name":
            yield "Classes are matched by name."
        if self.match.basis == "number":
            count = len(self.match.label)
            yield f"The class folders 0 to {count - 1:,} are read as labels of the network."
        if self.match.unknown:
            unknown = self.match.unknown
            shown = ", ".join(unknown[:MOST_SHOWN]) + ", ..." * (len(unknown) > MOST_SHOWN)
            yield (
                f"Left out: {self.left_out:,} images of {len(unknown):,} classes that the network "
                f"does not know ({shown})."
            )

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
        RunError: a checkpoint is missing or damaged, knows none of the classes, or is of other
            classes or images than the others.
        DataError: the data set cannot be read.
        ValueError: weights that are not one a checkpoint.
    """
    started = time.perf_counter()
    # What can be wrong is found here, before the networks run for hours.
    with checking_options():
        options = replace(options, device=choose_device(options.device)[0])
        check_devices((options.device,))
        weights = normalized(len(checkpoints), options.weights)
        if save is not None:
            check_output(save)
    manifest = Manifest.load(dataset)
    manifest.split(options.split, dataset)
    opened = [_open_member(path, options.device) for path in checkpoints]
    match = _match_members(checkpoints, opened, manifest, dataset)
    if match.same:
        # One network on the data set's own labels needs no keys before its loader has them.
        needs_keys = len(opened) > 1 or options.labels is not None
        keys = _common_keys(opened, dataset, manifest, options.split) if needs_keys else ()
    else:
        keys = ()
        _check_known(checkpoints[0], dataset, manifest, options, match)
        opened = [_select_known(m, dataset, manifest, options.split, match) for m in opened]
    allowed = read_labels(options.labels, keys, manifest.classes) if options.labels else None

    members = [
        member
        if isinstance(member, Predictions)
        else predict_split(member, dataset, manifest, options, match)
        for member in opened
    ]
    for member in members[1:]:
        member.check_images(members[0].keys, members[0].source)
    mean = average([member.probabilities for member in members], weights)
    result = replace(members[0], probabilities=mean, source=" + ".join(m.source for m in members))
    if save is not None:
        result.save(save)
    return _count_errors(
        result,
        members,
        allowed,
        match,
        left_out=manifest.splits[options.split].samples
        - _known_images(manifest, options.split, match),
        seconds=time.perf_counter() - started,
    )


def _open_member(path: Path, device: str) -> Trained | Predictions:
    """A checkpoint's network, or the predictions in a file."""
    return Predictions.load(path) if path.suffix == SUFFIX else load_trained(path, device)


def _match_members(
    paths: Sequence[Path],
    members: Sequence[Trained | Predictions],
    manifest: Manifest,
    dataset: Path,
) -> ClassMatch:
    """Where the data set's classes are among those of the members, which must be the same."""
    first = members[0]
    for path, member in zip(paths[1:], members[1:], strict=True):
        if [wnid for wnid, _ in member.classes] != [wnid for wnid, _ in first.classes]:
            raise RunError(
                f"{paths[0]} knows {len(first.classes):,} classes, {path} knows others "
                f"({len(member.classes):,}) or in another order. An average needs networks of the "
                "same classes."
            )
    return match_classes(first.classes, manifest.classes, str(paths[0]), dataset)


def _known_images(manifest: Manifest, split: str, match: ClassMatch) -> int:
    """Images of a split whose classes the network knows."""
    contents = manifest.splits[split]
    if match.same:
        return contents.samples
    counts = zip(contents.counts, match.label.numpy(), strict=False)
    return sum(count for count, label in counts if label >= 0)


def _check_known(
    path: Path, dataset: Path, manifest: Manifest, options: EvalOptions, match: ClassMatch
) -> None:
    if options.labels is not None:
        raise RunError(
            f"{options.labels} replaces the labels of {dataset}, whose classes are not those of "
            f"{path}. Evaluate it on a data set of the same classes."
        )
    if _known_images(manifest, options.split, match) == 0:
        raise RunError(
            f"{dataset}/{options.split} has no images of the {len(match.present):,} classes that "
            f"{path} knows. Evaluate another split."
        )


def _select_known(
    member: Trained | Predictions,
    dataset: Path,
    manifest: Manifest,
    split: str,
    match: ClassMatch,
) -> Trained | Predictions:
    """Of saved predictions those of a split's images, in its order; networks as they are."""
    if not isinstance(member, Predictions):
        return member
    rows = {key: row for row, key in enumerate(member.keys)}
    reader = SplitReader(dataset, manifest, split, check="size")
    split_keys = reader.keys()
    keys = [key for key in split_keys if key in rows]
    selected = member.select([rows[key] for key in keys])
    known = _known_images(manifest, split, match)
    if len(keys) != known or not torch.isin(selected.labels, match.present).all():
        raise RunError(
            f"{member.source} predicts {len(keys):,} images of {dataset}/{split}, which has "
            f"{known:,} of classes that it knows. Evaluate the network itself on this data set."
        )
    return selected


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
    trained: Trained, dataset: Path, manifest: Manifest, options: EvalOptions, match: ClassMatch
) -> Predictions:
    """Run a network over the images of a split whose classes it knows."""
    config = LoaderConfig(
        # In crops, of which an image has one for each view.
        batch=max(options.batch // options.views, 1),
        device=options.device,
        backend=options.backend,
        views=options.views,
    )
    with open_loader(
        dataset,
        options.split,
        config,
        replace(trained.augment, square=True),  # also of a data set of whole images
        train=False,
        stats=trained.stats,
    ) as loader:
        known: list[Tensor] = []
        counted = _counted(loader, options)
        batches = counted if match.same else _known_batches(counted, match, known)
        probabilities, labels = predict_probabilities(trained.model, batches)
        check_finite(probabilities, trained.path)
        keys = loader.keys if match.same else list(compress(loader.keys, torch.cat(known)))
        return Predictions(
            probabilities=probabilities,
            labels=labels,
            keys=tuple(keys),
            classes=match.classes,
            views=options.views,
            split=options.split,
            dataset=manifest.name,
            source=str(trained.path),
        )


def _counted(loader: Loader, options: EvalOptions) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader, with a bar."""
    preload(loader, options.split)
    with ProgressBar(f"eval {options.split}", loader.samples, delay=DELAY) as progress:
        for images, labels in loader:
            yield images, labels
            progress.advance(len(labels))


def _known_batches(
    batches: Iterable[tuple[Tensor, Tensor]], match: ClassMatch, known: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of known classes with the network's labels; which they were is added to `known`."""
    for images, labels in batches:
        network_labels = match.label.to(labels.device)[labels]
        mask = network_labels >= 0
        known.append(mask.cpu())
        if mask.any():
            yield images[mask], network_labels[mask]


def _count_errors(
    mean: Predictions,
    members: Sequence[Predictions],
    allowed: Sequence[Sequence[int]] | None,
    match: ClassMatch,
    *,
    left_out: int,
    seconds: float,
) -> Evaluation:
    labels = mean.labels
    if allowed is None:
        ranks = rank_of_label(mean.probabilities, labels)
        errors = [error_rates(member.probabilities, member.labels) for member in members]
    else:
        # Images without a right label, as ReaL has some, are not counted.
        labels = labels[torch.tensor([bool(entry) for entry in allowed])]
        ranks = best_rank(mean.probabilities, allowed)
        errors = [_errors(best_rank(member.probabilities, allowed)) for member in members]
    top1, top5 = _errors(ranks)
    present, members_present = Errors(top1, top5), errors
    if len(match.present) < len(match.classes):
        present = _present_errors(mean, match.present)
        members_present = [_present_errors(member, match.present) for member in members]
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
        match=match,
        present=present,
        members_present=tuple(members_present),
        left_out=left_out,
    )


def _present_errors(predictions: Predictions, present: Tensor) -> Errors:
    """Errors where only the `present` classes, ascending, can be answered."""
    labels = torch.searchsorted(present, predictions.labels)
    return error_rates(predictions.probabilities[:, present], labels)


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
    labels = [_numbers(table[key], numbers, f"{path}, {key}") for key in keys]
    if keys and not any(labels):
        raise RunError(f"{path} has no label for any of {len(keys):,} images.")
    return labels


def _numbers(entry: Label | list[Label], numbers: dict[Label, int], where: str) -> list[int]:
    labels = entry if isinstance(entry, list) else [entry]
    for label in labels:
        if label not in numbers:
            raise RunError(f"{where}: {label!r} is none of the {len(numbers) // 2} classes.")
    return [numbers[label] for label in labels]
