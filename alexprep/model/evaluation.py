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
from typing import Any, Literal, NamedTuple, cast

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
from alexprep.errors import checking_options, counted, shown
from alexprep.model.classes import Classes, ClassMatch, match_classes
from alexprep.model.placement import usable_device
from alexprep.model.predictions import SUFFIX, Predictions, check_output
from alexprep.model.trained import Trained, check_finite, load_trained
from alexprep.progress import DELAY, ProgressBar, preload
from pipelines.config import BackendName, LoaderConfig
from pipelines.format import Manifest
from pipelines.loader import Loader, open_loader
from pipelines.shards import SplitReader

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


class MemberErrors(NamedTuple):
    """Of a checkpoint, or of the average of several.

    `errors` are those among all classes of the network, `present` among those that the data set
    has: the same where it has all of them.
    """

    name: str
    errors: Errors
    present: Errors


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Errors as shares, 0..1: of each member and of their average.

    `labels` are those of the images that were counted, each once; `ranks` is the rank of each
    image's label among all classes, 0 the first. `left_out` images are of classes that the network
    does not know.
    """

    mean: MemberErrors
    members: tuple[MemberErrors, ...]
    views: int
    split: str
    dataset: str
    seconds: float
    labels: Tensor
    ranks: Tensor
    match: ClassMatch
    left_out: int

    @property
    def top1(self) -> float:
        return self.mean.errors.top1

    @property
    def top5(self) -> float:
        return self.mean.errors.top5

    @property
    def present(self) -> Errors:
        """Errors of the average among the classes that the data set has."""
        return self.mean.present

    @property
    def images(self) -> int:
        return len(self.ranks)

    @property
    def classes(self) -> Classes:
        """Those of the network."""
        return self.match.classes

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
            **_error_fields(self.mean),
            "classes": len(self.classes),
            "classes_present": len(self.match.present),
            "classes_unknown": list(self.match.unknown),
            "classes_matched_by": self.match.basis,
            "images_left_out": self.left_out,
            "seconds": self.seconds,
            "members": [{"checkpoint": m.name, **_error_fields(m)} for m in self.members],
        }

    def table(self) -> str:
        """Errors of the members and of their average; twice if the data set lacks classes."""
        views = counted(self.views, "view")
        lines = [f"{self.dataset}, {self.split}: {self.images:,} images, {views}"]
        rows = [*self.members, self.mean] if len(self.members) > 1 else [self.mean]
        if len(self.match.present) < len(self.classes):
            lines += [
                f"Among all {len(self.classes):,} classes of the network:",
                *_error_rows([(row.errors, row.name) for row in rows]),
                f"Among the {len(self.match.present):,} classes that {self.dataset} has:",
                *_error_rows([(row.present, row.name) for row in rows]),
            ]
        else:
            lines += _error_rows([(row.errors, row.name) for row in rows])
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> Iterator[str]:
        """What a reader should know of how classes were matched."""
        if self.match.basis == "name":
            yield "Classes are matched by name."
        if self.match.basis == "number":
            count = len(self.match.label)
            yield f"The class folders 0 to {count - 1:,} are read as labels of the network."
        if self.match.unknown:
            unknown = self.match.unknown
            yield (
                f"Left out: {self.left_out:,} images of {len(unknown):,} classes that the network "
                f"does not know ({shown(unknown)})."
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


def _error_fields(member: MemberErrors) -> dict[str, float]:
    return {
        "top1_error": member.errors.top1,
        "top5_error": member.errors.top5,
        "top1_error_present": member.present.top1,
        "top5_error_present": member.present.top5,
    }


def _error_rows(rows: Sequence[tuple[Errors, str]]) -> list[str]:
    head = f"{'top-1 error':>12} {'top-5 error':>12}"
    return [head, *(f"{top1:12.2%} {top5:12.2%}  {name}" for (top1, top5), name in rows)]


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
    # What can be wrong is found first, in all members, before the networks run for hours.
    with checking_options():
        options = replace(options, device=usable_device(options.device))
        weights = normalized(len(checkpoints), options.weights)
        if save is not None:
            check_output(save)
    manifest = Manifest.load(dataset)
    manifest.split(options.split, dataset)
    opened = [
        Predictions.load(path) if path.suffix == SUFFIX else load_trained(path, options.device)
        for path in checkpoints
    ]
    match = _match_members(checkpoints, opened, manifest, dataset)
    split = _Split(root=dataset, manifest=manifest, options=options, match=match)
    members, keys = split.check_members(checkpoints[0], opened)
    allowed = read_labels(options.labels, keys, manifest.classes) if options.labels else None

    members = [m if isinstance(m, Predictions) else split.predict(m) for m in members]
    mean = _mean_of(members, weights)
    if save is not None:
        mean.save(save)
    labels, ranks = _ranks(mean, allowed)
    name = mean.source if len(members) == 1 else f"mean of {len(members)}"
    return Evaluation(
        mean=_errors_of(mean, name, allowed, match),
        members=tuple(_errors_of(m, m.source, allowed, match) for m in members),
        views=mean.views,
        split=mean.split,
        dataset=mean.dataset,
        seconds=time.perf_counter() - started,
        labels=labels,
        ranks=ranks,
        match=match,
        left_out=manifest.splits[options.split].samples - split.known_images,
    )


def _mean_of(members: Sequence[Predictions], weights: Sequence[float]) -> Predictions:
    for member in members[1:]:
        member.check_images(members[0].keys, members[0].source)
    probabilities = average([member.probabilities for member in members], weights)
    sources = " + ".join(member.source for member in members)
    return replace(members[0], probabilities=probabilities, source=sources)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """The split of a data set that networks predict, and how its classes are among theirs."""

    root: Path
    manifest: Manifest
    options: EvalOptions
    match: ClassMatch

    def __str__(self) -> str:
        return f"{self.root}/{self.options.split}"

    @property
    def known_images(self) -> int:
        """Images whose classes the network knows."""
        contents = self.manifest.splits[self.options.split]
        if self.match.same:
            return contents.samples
        counts = zip(contents.counts, self.match.label.numpy(), strict=False)
        return sum(count for count, label in counts if label >= 0)

    def keys(self) -> list[str]:
        """In the order of the split, which is that of evaluation."""
        # The loader checks the bytes once more.
        return SplitReader(self.root, self.manifest, self.options.split, check="size").keys()

    def check_members(
        self, path: Path, opened: Sequence[Trained | Predictions]
    ) -> tuple[Sequence[Trained | Predictions], tuple[str, ...]]:
        """Members (of `path` and others) for this split alone; their keys, where needed."""
        if not self.match.same:
            self.check_known(path)
            return [self.select(m) if isinstance(m, Predictions) else m for m in opened], ()
        # One network on the data set's own labels needs no keys before its loader has them.
        needs_keys = len(opened) > 1 or self.options.labels is not None
        return opened, self.common_keys(opened) if needs_keys else ()

    def check_known(self, path: Path) -> None:
        """RunError where a network of other classes, at `path`, has nothing to predict."""
        if self.options.labels is not None:
            raise RunError(
                f"{self.options.labels} replaces the labels of {self.root}, whose classes are not "
                f"those of {path}. Evaluate it on a data set of the same classes."
            )
        if self.known_images == 0:
            raise RunError(
                f"{self} has no images of the {len(self.match.present):,} classes that {path} "
                "knows. Evaluate another split."
            )

    def select(self, member: Predictions) -> Predictions:
        """Of saved predictions those of the split's images, in its order."""
        rows = {key: row for row, key in enumerate(member.keys)}
        selected = member.select([rows[key] for key in self.keys() if key in rows])
        count, known = len(selected.keys), self.known_images
        if count != known or not torch.isin(selected.labels, self.match.present).all():
            raise RunError(
                f"{member.source} predicts {count:,} images of {self}, which has {known:,} of "
                "classes that it knows. Evaluate the network itself on this data set."
            )
        return selected

    def common_keys(self, opened: Sequence[Trained | Predictions]) -> tuple[str, ...]:
        """Keys of the images that all members predict; RunError if they predict different ones."""
        saved = [member for member in opened if isinstance(member, Predictions)]
        if len(saved) < len(opened):
            keys, where = tuple(self.keys()), str(self)
        else:
            keys, where = saved[0].keys, saved[0].source
        for member in saved:
            member.check_images(keys, where)
        return keys

    def predict(self, trained: Trained) -> Predictions:
        """Run a network over the images whose classes it knows."""
        options, match = self.options, self.match
        config = LoaderConfig(
            # In crops, of which an image has one for each view.
            batch=max(options.batch // options.views, 1),
            device=options.device,
            backend=options.backend,
            views=options.views,
        )
        augment = replace(trained.augment, square=True)  # also of a data set of whole images
        with open_loader(
            self.root, options.split, config, augment, train=False, stats=trained.stats
        ) as loader:
            known: list[Tensor] = []
            batches = _counted(loader, options)
            batches = batches if match.same else _known_batches(batches, match, known)
            probabilities, labels = predict_probabilities(trained.model, batches)
            check_finite(probabilities, trained.path)
            keys = loader.keys if match.same else compress(loader.keys, torch.cat(known))
            return Predictions(
                probabilities=probabilities,
                labels=labels,
                keys=tuple(keys),
                classes=match.classes,
                views=options.views,
                split=options.split,
                dataset=self.manifest.name,
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


def _ranks(
    predictions: Predictions, allowed: Sequence[Sequence[int]] | None
) -> tuple[Tensor, Tensor]:
    """(label, rank of the right answer) of each image that counts."""
    labels = predictions.labels
    if allowed is None:
        return labels, rank_of_label(predictions.probabilities, labels)
    # Images without a right label, as ReaL has some, are not counted.
    labels = labels[torch.tensor([bool(entry) for entry in allowed])]
    return labels, best_rank(predictions.probabilities, allowed)


def _errors_of(
    predictions: Predictions,
    name: str,
    allowed: Sequence[Sequence[int]] | None,
    match: ClassMatch,
) -> MemberErrors:
    errors = _errors(_ranks(predictions, allowed)[1])
    if len(match.present) == len(match.classes):
        return MemberErrors(name, errors, errors)
    # Only the classes that are present, ascending, can be answered.
    labels = torch.searchsorted(match.present, predictions.labels)
    return MemberErrors(
        name, errors, error_rates(predictions.probabilities[:, match.present], labels)
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
