"""train: data set, recipe and devices become a run in a folder.

RUN/config.json     recipe, data set, devices, versions, hardware, commit: written before training
RUN/metrics.jsonl   RUN/checkpoints/    see alexnet.training.train
RUN/events.*        see alexprep.model.watching
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alexnet.errors import RunError
from alexprep.machine import machine
from alexprep.model.recipes import Recipe, Target, recipe
from alexprep.model.settings import apply_settings
from pipelines.config import BackendName
from pipelines.files import write_whole
from pipelines.format import Manifest

if TYPE_CHECKING:
    from alexnet.training.run import Summary

CONFIG = "config.json"
# What may differ between the calls that make up one run: it does not change what is computed.
FREE = (
    *("train.log_steps", "train.checkpoint_minutes", "train.keep"),
    *("loader.backend", "loader.decode", "loader.device", "loader.threads", "loader.readers"),
    *("loader.prefetch", "loader.pin_memory", "loader.check", "loader.rank", "loader.world"),
)
# These follow from the number of epochs, which may grow.
GROWING = ("train.epochs", "augment.lighting_epochs")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """How to train.

    Attributes:
        recipe: a name in alexprep.model.recipes.RECIPES.
        smoke: the recipe's size for CPUs and small images.
        devices: ("cpu",), ("cuda:0",), or one for each column: ("cuda:0", "cuda:1").
        backend: of the loader, see LoaderConfig.
        epochs: None: the recipe's.
        seed: of weights, dropout, order and augmentation.
        settings: changes to single values, as alexprep.model.settings reads them.
        init_from: a checkpoint or run whose weights are copied where name and shape fit.
    """

    recipe: str = "code2012"
    smoke: bool = False
    devices: tuple[str, ...] = ("cpu",)
    backend: BackendName = "auto"
    epochs: int | None = None
    seed: int = 0
    settings: tuple[str, ...] = ()
    init_from: Path | None = None


def train(dataset: Path, run: Path, options: TrainOptions) -> "Summary":
    """Train in the folder `run`, or go on with what is there, until done or stopped by a signal.

    Raises:
        DataError: the data set is missing, unfinished, damaged or without statistics.
        RunError: the folder is a run of another recipe or data set, or the training went astray.
        ValueError: options that no recipe can follow.
    """
    manifest = Manifest.load(dataset)
    made = resolve(manifest, options)
    # Heavy imports from here on: wrong usage is answered before they are paid for.
    from alexprep.model.fitting import fit_on  # noqa: PLC0415

    return fit_on(dataset, manifest, run, made, options)


def resolve(manifest: Manifest, options: TrainOptions) -> Recipe:
    """The recipe for a data set, with all options applied."""
    target = Target(
        classes=len(manifest.classes),
        source=manifest.size,
        smoke=options.smoke,
        epochs=options.epochs,
        seed=options.seed,
    )
    made = recipe(options.recipe, target)
    made = replace(made, loader=replace(made.loader, backend=options.backend))
    return apply_settings(made, options.settings)


def describe(dataset: Path, manifest: Manifest, made: Recipe) -> dict[str, Any]:
    """The part of config.json that two calls on one run must agree on."""
    shards = manifest.split("train", dataset).shards
    return {
        "recipe": json.loads(json.dumps(made.to_dict())),
        "data": {
            "name": manifest.name,
            "size": manifest.size,
            "classes": len(manifest.classes),
            "images": sum(shard.samples for shard in shards),
            "first_shard_sha256": shards[0].sha256 if shards else "",
        },
    }


def claim(run: Path, about: Mapping[str, Any], dataset: Path, options: TrainOptions) -> None:
    """Write RUN/config.json, or check that it is of this run; RunError names what differs.

    The number of epochs may grow. Each call adds where and on what it ran.
    """
    path = run / CONFIG
    calls: list[Any] = []
    if path.exists():
        calls = _check_same(path, about)
    elif run.is_dir() and any(run.iterdir()):
        raise RunError(f"{run} is not empty and holds no run. Name another folder with --run.")
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file. Name a folder with --run.")
    run.mkdir(parents=True, exist_ok=True)
    call = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": str(dataset),
        "devices": list(options.devices),
        "init_from": str(options.init_from) if options.init_from else None,
        "machine": machine(),
    }
    text = json.dumps({**about, "calls": [*calls, call]}, indent=1)
    write_whole(path, f"{text}\n".encode())


def _check_same(path: Path, about: Mapping[str, Any]) -> list[Any]:
    """The calls so far."""
    try:
        there = json.loads(path.read_text())
        before, now = flat(there["recipe"]), flat(about["recipe"])
        calls: list[Any] = there["calls"]
        data_before, data_now = flat({"data": there["data"]}), flat({"data": about["data"]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error!r}). Name another folder with --run.") from error
    differences = [*_differences(before, now), *_differences(data_before, data_now)]
    if differences:
        raise RunError(
            f"{path.parent} is a run of another recipe or data set: {'; '.join(differences[:5])}. "
            "Resume it as it was begun, or name another folder with --run."
        )
    return calls


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    grown = now.get("train.epochs", 0) >= before.get("train.epochs", 0)
    for name in sorted({*before, *now}):
        if name in FREE or (grown and name in GROWING):
            continue
        if before.get(name) != now.get(name):
            yield f"{name} was {before.get(name)} and is {now.get(name)}"


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """JSON as one level of dotted names; lists of objects go by the places of these."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        pairs = list(cast(dict[str, Any], value).items())
    elif isinstance(value, list):
        entries = cast(list[Any], value)
        if all(isinstance(entry, dict) for entry in entries):
            pairs = [(entry.get("name", str(n)), entry) for n, entry in enumerate(entries)]
    if not pairs:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in pairs:
        found |= flat(inner, f"{name}.{key}" if name else key)
    return found
