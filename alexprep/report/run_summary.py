"""Numbers of a run's report: configuration, log, schedule, first layer and errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexnet.errors import RunError
from alexnet.model.grouped import Grouped
from alexnet.training import checkpoint, metrics
from alexnet.training.evaluate import error_rates
from alexnet.training.schedule import Stages
from alexprep import schema
from alexprep.errors import PrepareError, warn
from alexprep.model.predictions import SUFFIX, Predictions
from alexprep.model.recipes import Recipe
from alexprep.model.run_folder import CONFIG, flatten, read_config
from alexprep.model.run_log import Count, EpochRecord, StepRecord, read_log
from alexprep.model.trained import Trained, load_trained


class _Data(msgspec.Struct):
    name: str
    images: Count
    first_shard_sha256: str


class _Call(msgspec.Struct):
    when: str
    dataset: str
    devices: list[str]
    machine: dict[str, Any]


class ShownConfig(msgspec.Struct):
    """The fields of config.json that the report shows."""

    recipe: dict[str, Any]
    data: _Data
    calls: Annotated[list[_Call], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSummary:
    """A run folder: config.json, the log, and one checkpoint, saved after `epochs_done` epochs."""

    folder: Path
    config: ShownConfig
    recipe: Recipe
    settings: dict[str, dict[str, Any]]  # part of the recipe -> dotted name -> value
    steps: list[StepRecord]
    epochs: list[EpochRecord]
    trained: Trained
    epochs_done: int

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the lowest top-1 error."""
        return min(self.validated, key=lambda record: record.top1 or 0.0, default=None)

    @property
    def validated(self) -> list[EpochRecord]:
        """The epochs that ended with validation."""
        fields = ("validation_loss", "top1", "top5")
        return [r for r in self.epochs if None not in [getattr(r, name) for name in fields]]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.trained.model.parameters())


def read_run(folder: Path, device: str) -> RunSummary:
    """PrepareError without a checkpoint, or for a damaged log; RunError for a changed config."""
    try:
        path = checkpoint.resolve(folder)
    except RunError:
        raise PrepareError(
            f"{folder} has no checkpoint yet: a run saves its first one after ten minutes or one "
            "epoch. Wait, or resume the run with the same `alexprep train` command."
        ) from None
    config, recipe = _read_config(folder)
    records = read_log(folder)
    warn_of_changes(folder)
    # No tensors: `load_trained` reads and checks those.
    progress = checkpoint.load(path, ()).meta.get("progress", {})
    return RunSummary(
        folder=folder,
        config=config,
        recipe=recipe,
        settings={
            part: flatten(values)
            for part, values in config.recipe.items()
            if isinstance(values, dict)
        },
        steps=[record for record in records if isinstance(record, StepRecord)],
        epochs=[record for record in records if isinstance(record, EpochRecord)],
        trained=load_trained(path, device),
        epochs_done=int(progress.get("epoch", 0)),
    )


def warn_of_changes(folder: Path) -> None:
    """Say so if the log is not the one that the last checkpoint was saved with."""
    if metrics.has_changed(folder):
        warn(f"{folder / metrics.NAME} has changed since the last checkpoint was saved.")


def _read_config(folder: Path) -> tuple[ShownConfig, Recipe]:
    path = folder / CONFIG
    advice = "`alexprep train` writes it: restore it from a copy, or train again."
    try:
        config = msgspec.convert(
            read_config(folder, PrepareError, advice), ShownConfig, from_attributes=True
        )
        return config, schema.convert(config.recipe, Recipe, "recipe")
    except OSError as error:
        raise PrepareError(f"{path} cannot be read ({error.strerror}). {advice}") from None
    except ValueError as error:
        raise PrepareError(f"{path} is damaged ({error}). {advice}") from None


def schedule_marks(run: RunSummary) -> list[tuple[float, str]]:
    """(epoch, label) of each schedule change so far: learning rate, colour shift, frozen layers."""
    marks = [
        (float(step.epoch), f"lr {step.lr:.2g}")
        for previous, step in zip(run.steps, run.steps[1:], strict=False)
        if step.lr != previous.lr
    ]
    current = run.steps[-1].epoch if run.steps else 0
    augment, train = run.recipe.augment, run.recipe.train
    dark = augment.lighting_epochs
    if dark is not None and dark <= current and augment.lighting:
        marks.append((float(dark), "no colour shift"))
    stages_of: Mapping[str, Stages] = getattr(train.schedule, "layers", {})
    for layer, stages in stages_of.items():
        # The first whole epoch of a stage; 1e-9 absorbs the rounding of start * epochs.
        ends = [math.ceil(start * train.epochs - 1e-9) for start, rate in stages if not rate]
        marks += [(float(end), f"{layer} frozen") for end in ends if end <= current]
    return sorted(marks)


def first_layer(trained: Trained) -> dict[str, NDArray[np.float64]]:
    """The kernels of the first layer, (N, 3, H, W), by column."""
    model = trained.model
    assert isinstance(model, Grouped)
    weight = model.get_parameter(f"{model.layers[0]}.weight").detach().cpu().double()
    columns = weight.chunk(model.config.columns)
    return {f"column {n}": column.numpy() for n, column in enumerate(columns, start=1)}


class ErrorRow(NamedTuple):
    """Top-1 and top-5 error of `images` of the `split_images` images in a split."""

    title: str
    top1: float
    top5: float
    images: int
    split_images: int


def saved_errors(folder: Path) -> list[ErrorRow]:
    """Errors of the predictions that `alexprep eval --save-predictions` left in a run."""
    rows: list[ErrorRow] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        saved = Predictions.load(path)
        errors = error_rates(saved.probabilities, saved.labels)
        title = f"{path.name}: {saved.dataset} {saved.split}, {saved.views} views"
        rows.append(ErrorRow(title, *errors, len(saved.labels), len(saved.labels)))
    return rows


def standard_error(error: float, images: int) -> float:
    """Of an error rate in 0..1; Laplace's rule (one more right, one more wrong) keeps it off 0."""
    share = (error * images + 1) / (images + 2)
    return math.sqrt(share * (1 - share) / max(images, 1))
