"""The half of `train` that needs torch: open the loaders, build the network, fit."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.errors import RunError
from alexnet.model.spec import parameter_count
from alexnet.training import checkpoint
from alexnet.training.memory import keep_freed_memory
from alexnet.training.one_device import copy_fitting
from alexnet.training.run import Data, Run, Summary
from alexnet.training.train import fit
from alexnet.training.trainer import last_good
from alexprep.model.placement import Placement, placed
from alexprep.model.recipes import Recipe
from alexprep.model.training import TrainOptions, claim, describe
from alexprep.model.watching import Watcher
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import SHAPES, ImageStats
from pipelines.loader import Loader, open_loader

EVALUATION_BATCH = 128  # over all replicas


def fit_on(
    dataset: Path, manifest: Manifest, run: Path, made: Recipe, options: TrainOptions
) -> Summary:
    """See alexprep.model.training.train."""
    stats = ImageStats.load(dataset, manifest) if made.augment.needs_stats else None
    with (
        placed(made, options.devices) as placement,
        _loaders(dataset, made, stats, placement) as loaders,
        Watcher(run, made.train.epochs, silent=not placement.replicas.writes) as watcher,
    ):
        # Before the folder is taken: a run without its first weights is no run.
        source = None if checkpoint.steps(run) else options.init_from
        start = None if source is None else _first_weights(source)
        if placement.replicas.writes:
            claim(run, describe(dataset, manifest, made), dataset, options)
        # The others must not touch the folder before the first one has taken it.
        placement.meet()
        watcher.begin()
        keep_freed_memory()
        model = placement.network(made)
        train, validation = loaders or (None, None)
        if train is not None:
            _introduce(watcher, made, train, placement)
        if start is not None:
            _start_from(model, *start, watcher)
            start = None  # as large as the network
        with naming_lost_data(run):
            return fit(
                model,
                made.train,
                Data(train=train, validation=validation),
                Run(
                    folder=run,
                    meta=saved_meta(made, manifest, stats),
                    tensors={"stats": saved_stats(stats)},
                    report=watcher.report,
                    replicas=placement.replicas,
                ),
            )


@contextmanager
def _loaders(
    dataset: Path, made: Recipe, stats: ImageStats | None, placement: Placement
) -> Generator[tuple[Loader, Loader] | None]:
    """The replica's share of training and validation; None where another process feeds this."""
    if not placement.reads:
        yield None
        return
    config = replace(
        made.loader,
        device=placement.devices[0],
        channels_last=made.train.channels_last,
        rank=placement.replicas.rank,
        world=placement.replicas.world,
    )
    counted = replace(config, batch=EVALUATION_BATCH)
    with (
        open_loader(dataset, "train", config, made.augment, stats=stats) as train,
        open_loader(dataset, "validation", counted, made.augment, stats=stats) as validation,
    ):
        yield train, validation


def _introduce(watcher: Watcher, made: Recipe, train: Loader, placement: Placement) -> None:
    watcher.note(
        f"recipe {made.name}: {parameter_count(made.model):,} parameters, crops of "
        f"{made.model.crop}, {made.model.classes} classes; batch {made.loader.batch}, "
        f"{made.train.epochs} epochs of {len(train)} steps, seed {made.train.seed}"
    )
    layout = "channels_last" if made.train.channels_last else "NCHW"
    watcher.note(
        f"{placement.text()}; {made.train.precision}, {layout}, compile {made.train.compile}; "
        f"loader {train.backend}"
    )


def _first_weights(source: Path) -> tuple[Path, Mapping[str, Tensor]]:
    path = checkpoint.resolve(source)
    return path, checkpoint.load(path).parts["model"]


def _start_from(
    model: nn.Module, path: Path, weights: Mapping[str, Tensor], watcher: Watcher
) -> None:
    """Copy the weights that fit by name and shape, and list both kinds."""
    copied, fresh = copy_fitting(model, weights)
    if not copied:
        raise RunError(f"Nothing of {path} fits this network by name and shape.")
    watcher.note(f"copied from {path}: {', '.join(copied)}")
    watcher.note(f"started fresh: {', '.join(fresh) or 'nothing'}")


@contextmanager
def naming_lost_data(run: Path) -> Generator[None]:
    """A data set that fails amid training: say from where the run can go on."""
    try:
        yield
    except DataError as error:
        raise RunError(f"{error} {last_good(run)}") from error


def saved_meta(made: Recipe, manifest: Manifest, stats: ImageStats | None) -> dict[str, Any]:
    """What a checkpoint needs to predict without its data set, beside tensors."""
    about = None
    if stats is not None:
        about = {
            "split": stats.split,
            "images": stats.images,
            "height": stats.height,
            "width": stats.width,
            "shards": dict(stats.shards),
        }
    return {
        "recipe": made.to_dict(),
        "classes": [list(entry) for entry in manifest.classes],
        "stats": about,
    }


def saved_stats(stats: ImageStats | None) -> dict[str, Tensor]:
    """The arrays of the statistics, float64."""
    if stats is None:
        return {}
    return {name: torch.as_tensor(np.array(getattr(stats, name))) for name in SHAPES}
