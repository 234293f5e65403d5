"""train: a data set, a recipe and devices become a run in a folder (alexprep.model.run_folder)."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from alexnet.errors import RunError
from alexnet.model.spec import parameter_count
from alexnet.training import checkpoint
from alexnet.training.one_device import copy_fitting
from alexnet.training.pretrained import first_weights
from alexnet.training.run import Data, RunContext, Summary
from alexnet.training.schedule import PlateauSchedule
from alexnet.training.step import image_type, keep_freed_memory
from alexnet.training.trainer import fit
from alexprep.errors import checking_options
from alexprep.machine import computes_bfloat16, machine
from alexprep.model.display import RunDisplay
from alexprep.model.placement import (
    AUTO,
    Launch,
    Placement,
    check_tasks,
    choose_devices,
    in_process_group,
    init_devices,
    said_once,
)
from alexprep.model.recipes import Recipe, RecipeInputs, make_recipe
from alexprep.model.run_folder import CONFIG, open_run, read_config, run_identity
from alexprep.model.settings import apply_settings
from alexprep.model.trained import checkpoint_meta, checkpoint_stats
from alexprep.progress import preload
from pipelines.config import BackendName, LoaderConfig
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from pipelines.loader import Loader, open_loader

EVALUATION_BATCH = 128  # over all replicas
VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """How to train.

    Attributes:
        recipe: a name in alexprep.model.recipes.RECIPES.
        smoke: the recipe's size for CPUs and small images.
        devices: ("auto",), ("cpu",), ("cuda:0",), or one for each column: ("cuda:0", "cuda:1").
        launch: the processes to start; by default this one trains.
        backend: of the loader, see LoaderConfig.
        epochs: None: the recipe's.
        seed: of weights, dropout, order and augmentation.
        settings: changes of single fields, see alexprep.model.settings.
        validation: off: train on a data set without a validation split; the newest checkpoint is
            then the best.
        init_from: a checkpoint, run, or file of weights (alexnet.training.pretrained), to be copied
            where name and shape fit.
        stats: the folder of the training images' statistics; None: the data set's.
    """

    recipe: str = "code2012"
    smoke: bool = False
    devices: tuple[str, ...] = AUTO
    launch: Launch = field(default_factory=Launch)
    backend: BackendName = "auto"
    epochs: int | None = None
    seed: int = 0
    settings: tuple[str, ...] = ()
    validation: bool = True
    init_from: Path | None = None
    stats: Path | None = None


def train(dataset: Path, run: Path, options: TrainOptions) -> Summary:
    """Train in the folder `run`, or resume the run in it, until done or stopped by a signal.

    What can be wrong with the options, the data set or the devices is found before `run` is made.

    Raises:
        DataError: the data set is missing, unfinished, damaged or without statistics.
        RunError: the folder is a run of another recipe or data set or in use, or training diverged.
        ValueError: options that no recipe can follow.
    """
    check_tasks(os.environ, options.launch.nodes)
    with said_once(), checking_options():
        job = _prepare(dataset, run, options)
    if options.launch.wanted and not in_process_group():
        return _train_in_processes(job)
    recipe = job.recipe
    with (
        init_devices(recipe.model.columns, options.devices) as placement,
        _open_loaders(job, placement) as data,
        _open_display(job, placement) as display,
        ExitStack() as held,
    ):
        keep_freed_memory()
        with checking_options():
            model = placement.build(recipe.model, recipe.train.seed)
        messages = [*_describe_setup(job, data, placement), *_initialize(model, job)]
        if placement.replicas.writes:
            identity = run_identity(asdict(recipe), _describe_data(job))
            held.enter_context(open_run(run, identity, _describe_call(job, placement)))
        # The other processes must not touch the folder before the first one has made it.
        placement.barrier()
        display.open_events()
        for message in messages:
            display.log(message)
        context = RunContext(
            folder=run,
            meta=checkpoint_meta(asdict(recipe), job.manifest.classes, job.stats),
            tensors={"stats": checkpoint_stats(job.stats)},
            emit=display.emit,
            replicas=placement.replicas,
        )
        with _naming_checkpoint(run):
            return fit(model, recipe.train, data, context)


class _Job(NamedTuple):
    """What is trained on what; `precision` says why it is another than the recipe's."""

    dataset: Path
    run: Path
    options: TrainOptions
    manifest: Manifest
    recipe: Recipe
    stats: ImageStats | None
    precision: str


def _prepare(dataset: Path, run: Path, options: TrainOptions) -> _Job:
    manifest = Manifest.load(dataset)
    _check_dataset(dataset, manifest, options)
    recipe = resolve_recipe(manifest, options)
    stats = None
    if recipe.augment.needs_stats:
        stats = ImageStats.load(dataset, manifest, folder=options.stats)
    recipe, precision = choose_precision(recipe, run, options)
    return _Job(dataset, run, options, manifest, recipe, stats, precision)


def _train_in_processes(job: _Job) -> Summary:
    from alexprep.model.launch import run_in_processes  # noqa: PLC0415 - takes .3 s to import

    options, columns = job.options, job.recipe.model.columns
    with checking_options():
        processes = options.launch.processes(columns)
        devices, _ = choose_devices(options.devices, columns, processes)
    work = partial(train, job.dataset, job.run, options)
    summary, first = run_in_processes(work, options.launch, columns, devices, _exit_code)
    # Of several machines the one with the first process reports, whoever heard of a signal.
    return replace(summary, writes=first)


def _exit_code(summary: Summary) -> int:
    return summary.exit_code


def resolve_recipe(manifest: Manifest, options: TrainOptions) -> Recipe:
    """The recipe for a data set, with all options applied."""
    inputs = RecipeInputs(
        classes=len(manifest.classes),
        source=manifest.size,
        smoke=options.smoke,
        epochs=options.epochs,
        seed=options.seed,
    )
    recipe = make_recipe(options.recipe, inputs)
    recipe = replace(
        recipe,
        loader=replace(recipe.loader, backend=options.backend),
        # Of whole images AlexNet sees the central squares, as in 2012.
        augment=replace(recipe.augment, square=manifest.keep_aspect),
    )
    recipe = apply_settings(recipe, options.settings)
    if not options.validation and isinstance(recipe.train.schedule, PlateauSchedule):
        raise ValueError(
            "--no-validation leaves nothing for the schedule 'plateau' to follow. Choose another "
            "one, as in --set train.schedule=net_145."
        )
    return recipe


def _check_dataset(dataset: Path, manifest: Manifest, options: TrainOptions) -> None:
    if len(manifest.classes) == 1:
        raise DataError(
            f"{dataset} has one class, {manifest.classes[0][0]!r}: there is nothing to learn. Was "
            "its source one folder too high? `alexprep shard SOURCE OUT --dry-run` shows classes."
        )
    if options.validation and VALIDATION not in manifest.splits:
        raise DataError(
            f"{dataset} has no split {VALIDATION!r}; it has {', '.join(sorted(manifest.splits))}. "
            "Make the data set again with `alexprep shard SOURCE OUT --validation 10%`, or train "
            "with --no-validation."
        )


def _open_display(job: _Job, placement: Placement) -> RunDisplay:
    train, batch = job.recipe.train, job.recipe.loader.batch
    return RunDisplay(job.run, train.epochs, batch=batch, silent=not placement.replicas.writes)


@contextmanager
def _open_loaders(job: _Job, placement: Placement) -> Generator[Data]:
    """The replica's share of both splits; no loaders where another column's process feeds this."""
    dataset, recipe, stats = job.dataset, job.recipe, job.stats
    validation = job.options.validation
    if not placement.reads:
        yield Data(train=None, validation=None, has_validation=validation)
        return
    config = loader_config(recipe, placement)
    evaluation = replace(config, batch=EVALUATION_BATCH)
    with checking_options():
        loader = open_loader(dataset, "train", config, recipe.augment, stats=stats)
    with loader as train:
        preload(train, "train")
        if not validation:
            yield Data(train=train, validation=None, has_validation=False)
            return
        with open_loader(dataset, VALIDATION, evaluation, recipe.augment, stats=stats) as loader:
            preload(loader, VALIDATION)
            yield Data(train=train, validation=loader)


def loader_config(recipe: Recipe, placement: Placement) -> LoaderConfig:
    """How the batches of this process are made."""
    device, dtype = placement.devices[0], recipe.loader.dtype
    return replace(
        recipe.loader,
        device=device,
        dtype=image_type(recipe.train, device) if dtype == "float32" else dtype,
        # The other columns' GPUs hold parts of images that do not fit on one.
        peers=tuple(name for name in placement.devices[1:] if name.startswith("cuda")),
        channels_last=recipe.train.channels_last,
        rank=placement.replicas.rank,
        world=placement.replicas.world,
    )


def choose_precision(recipe: Recipe, run: Path, options: TrainOptions) -> tuple[Recipe, str]:
    """The recipe in a precision that the processor has, and why it is another one.

    A run keeps the precision that it was started with, and a setting is left as it is. On an EPYC
    with AVX512_BF16 code2012 took .61 of float32's time in bfloat16; where oneDNN was kept from
    these instructions it took 2.6 times as long, which no user would choose.
    """
    if recipe.train.precision != "bfloat16":
        return recipe, ""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices, _ = choose_devices(options.devices, recipe.model.columns, processes)
    emulated = devices[0] == "cpu" and not computes_bfloat16()
    if any(setting.startswith("train.precision=") for setting in options.settings):
        return recipe, " (emulated on this processor: float32 is faster)" if emulated else ""
    if (run / CONFIG).exists():
        recorded = read_config(run).recipe.get("train", {}).get("precision")
        emulated = recorded == "float32"
        reason = "as this run was started"
    else:
        reason = "this processor has no instructions for bfloat16"
    if not emulated:
        return recipe, ""
    return replace(recipe, train=replace(recipe.train, precision="float32")), f" ({reason})"


def _describe_setup(job: _Job, data: Data, placement: Placement) -> Generator[str]:
    """The first lines of the log, of the process that has loaders."""
    if not isinstance(data.train, Loader):
        return
    recipe = job.recipe
    yield (
        f"recipe {recipe.name}: {parameter_count(recipe.model):,} parameters, crops of "
        f"{recipe.model.crop}, {recipe.model.classes} classes; batch {recipe.loader.batch}, "
        f"{recipe.train.epochs} epochs of {len(data.train)} steps, seed {recipe.train.seed}"
    )
    layout = "channels_last" if recipe.train.channels_last else "NCHW"
    yield (
        f"{placement.text()}; {recipe.train.precision}{job.precision}, {layout}, "
        f"compile {recipe.train.compile}; loader {data.train.backend}"
    )


def _describe_data(job: _Job) -> dict[str, Any]:
    manifest = job.manifest
    shards = manifest.split("train", job.dataset).shards
    # A field only where there is none: config.json of runs with validation stays as it was.
    return ({} if job.options.validation else {"validation": False}) | {
        "name": manifest.name,
        "size": manifest.size,
        "classes": len(manifest.classes),
        "images": sum(shard.samples for shard in shards),
        "first_shard_sha256": shards[0].sha256 if shards else "",
    }


def _describe_call(job: _Job, placement: Placement) -> dict[str, Any]:
    init_from = job.options.init_from
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": str(job.dataset),
        "devices": list(placement.devices),
        "init_from": str(init_from) if init_from else None,
        "machine": machine(),
    }


def _initialize(model: nn.Module, job: _Job) -> list[str]:
    """Copy the weights of --init-from that fit by name and shape; two lines that list which.

    A run that resumes has weights of its own.
    """
    source = job.options.init_from
    if source is None or checkpoint.steps(job.run):
        return []
    path = checkpoint.resolve(source)
    copied, fresh = copy_fitting(model, first_weights(path))
    if not copied:
        raise RunError(f"No tensor in {path} fits this network by name and shape.")
    return [
        f"copied from {path}: {', '.join(copied)}",
        f"newly initialized: {', '.join(fresh) or 'nothing'}",
    ]


@contextmanager
def _naming_checkpoint(run: Path) -> Generator[None]:
    """Where the data set fails during training, say which checkpoint the run resumes from."""
    try:
        yield
    except DataError as error:
        raise RunError(f"{error} {checkpoint.last_good(run)}") from error
