"""The half of `train` that needs torch: open the loaders, build the network, fit."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import alexnet
from alexnet import checkpoint
from alexnet.errors import RunError
from alexnet.run import Data, Run, Summary
from alexnet.train import fit
from alexnet.trainer import last_good
from alexprep.recipes import Recipe
from alexprep.training import TrainOptions, claim, describe
from alexprep.watching import Watcher
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import SHAPES, ImageStats
from pipelines.loader import Loader, open_loader

# Ten views of 32 images of 224 pixels are 193 MB.
EVALUATION_BATCH = 128


def fit_on(
    dataset: Path, manifest: Manifest, run: Path, made: Recipe, options: TrainOptions
) -> Summary:
    """See alexprep.training.train."""
    check_devices(options.devices)
    stats = ImageStats.load(dataset, manifest) if made.augment.needs_stats else None
    config = replace(made.loader, device=options.devices[0], channels_last=made.train.channels_last)
    with (
        open_loader(dataset, "train", config, made.augment, stats=stats) as train,
        open_loader(
            dataset,
            "validation",
            replace(config, batch=EVALUATION_BATCH),
            made.augment,
            stats=stats,
        ) as validation,
        Watcher(run, made.train.epochs) as watcher,
    ):
        claim(run, describe(dataset, manifest, made), dataset, options)
        watcher.begin()
        model = _network(made, options.devices)
        _introduce(watcher, made, train, model)
        if options.init_from is not None and not checkpoint.steps(run):
            _start_from(model, options.init_from, watcher)
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
                ),
            )


def check_devices(devices: Sequence[str]) -> None:
    """RunError for a device this machine has not, ValueError for a word that names none."""
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(
                f"--devices wants cpu, cuda:0 or cuda:0,cuda:1; got {name!r}."
            ) from None
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        if device.type not in ("cpu", "cuda") or (device.index or 0) >= count:
            raise RunError(
                f"There is no {name} here: torch {torch.__version__} sees "
                f"{torch.cuda.device_count()} GPUs. Use --devices cpu, or see `alexprep doctor`."
            )


def _network(made: Recipe, devices: Sequence[str]) -> nn.Module:
    form = "columns" if len(devices) > 1 else "grouped"
    return alexnet.build(made.model, form=form, devices=devices, seed=made.train.seed)


def _introduce(watcher: Watcher, made: Recipe, train: Loader, model: nn.Module) -> None:
    count = sum(p.numel() for p in model.parameters())
    watcher.note(
        f"recipe {made.name}: {count:,} parameters, crops of {made.model.crop}, "
        f"{made.model.classes} classes; batch {made.loader.batch}, {made.train.epochs} epochs of "
        f"{len(train)} steps, seed {made.train.seed}"
    )
    layout = "channels_last" if made.train.channels_last else "NCHW"
    watcher.note(
        f"loader {train.backend}; {made.train.precision}, {layout}, compile {made.train.compile}"
    )


def _start_from(model: nn.Module, source: Path, watcher: Watcher) -> None:
    """Copy the weights that fit by name and shape, and list both kinds."""
    path = checkpoint.resolve(source)
    weights = checkpoint.load(path).parts["model"]
    here = dict(model.named_parameters())
    fits, differences = checkpoint.matching(here, weights)
    if not fits:
        raise RunError(f"Nothing of {path} fits this network: {'; '.join(differences[:5])}.")
    checkpoint.copy_weights(here, weights, fits)
    watcher.note(f"copied from {path}: {', '.join(fits)}")
    fresh = ", ".join(name for name in here if name not in fits) or "nothing"
    watcher.note(f"started fresh: {fresh}")


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
