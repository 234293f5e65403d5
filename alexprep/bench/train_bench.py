"""`alexprep bench train`: how long a real training waits for its data.

A round is a run of `alexprep train --smoke` of at least STEPS steps, with checkpoints, validation
and log. Its first START steps fill the loader's queues and meet cold caches: they are left out of
"once running". Waiting is the log's own figure: the share of the time between the starts of the
steps in which the network had no batch to train on. Headspace is the rate of the same step on one
batch again and again, which no loader can surpass; the share of the cores is of the whole run.
"""

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from alexnet.training import metrics
from alexprep.bench.load_bench import wait_for
from alexprep.bench.measurement import Row, row
from alexprep.bench.step_bench import Case, training_step
from alexprep.bench.suite import BenchConfig, drawn_data_set
from alexprep.machine import cores
from alexprep.model.recipes import SMOKE_BATCH, RecipeInputs, make_recipe
from alexprep.model.training import TrainOptions, train
from pipelines.format import Manifest

STEPS, START = 320, 20
AGAIN = 20  # steps on the same batch
TARGET = "<= 2"
SETTINGS = (f"train.log_steps={START}", "train.keep=1", "train.checkpoint_minutes=60")


class Pace(NamedTuple):
    """Of some steps of a run: images/s, and the share of the time without data, 0..1."""

    rate: float
    waiting: float


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Waiting and images/s of the smoke size of code2012, over config.rounds runs.

    config.data is a data set with statistics and a validation split.
    """
    root = config.data or drawn_data_set(folder, config.images, size=64)
    shards = Manifest.load(root).split("train", root).shards
    options = TrainOptions(
        smoke=True,
        devices=(config.device,),
        epochs=math.ceil(STEPS * SMOKE_BATCH / sum(shard.samples for shard in shards)),
        settings=SETTINGS,
    )
    step = _smoke_step(root, config.device)
    running: list[Pace] = []
    complete: list[Pace] = []
    busy: list[float] = []
    headspace: list[float] = []
    # Every round is a run of its own: a resumed one would skip the start that is measured.
    for number in range(config.rounds):
        run = folder / f"run-{number}"
        wall, processor = time.perf_counter(), time.process_time()
        train(root, run, options)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        busy.append(100 * processor / wall / cores())
        running.append(pace(run, START))
        complete.append(pace(run, 0))
        headspace.append(_rate(step, config.device))
    rates = [steps.rate for steps in running]
    waiting, from_start = ([100 * steps.waiting for steps in runs] for runs in (running, complete))
    unit = "% of the time"
    return [
        row("smoke training, images/s once running", rates, "images/s"),
        row("smoke training, headspace: the same batch again", headspace, "images/s"),
        row("smoke training, waiting once running", waiting, unit, TARGET),
        row("smoke training, waiting with its start", from_start, unit),
        row("smoke training, share of the cores", busy, "% of all cores"),
    ]


def _smoke_step(root: Path, device: str) -> Callable[[], None]:
    """The step that `train` takes on this data set, always on the same random batch."""
    manifest = Manifest.load(root)
    inputs = RecipeInputs(classes=len(manifest.classes), source=manifest.size, smoke=True)
    network = make_recipe(TrainOptions().recipe, inputs).model
    return training_step(Case(network=network, batch=SMOKE_BATCH, device=device))


def _rate(step: Callable[[], None], device: str) -> float:
    """Images/s of AGAIN steps after one more."""
    step()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(AGAIN):
        step()
    wait_for(device)
    return AGAIN * SMOKE_BATCH / (time.perf_counter() - start)


def pace(run: Path, start: int) -> Pace:
    """Images/s and waiting of a run after its first `start` steps, from its log."""
    steps = [record for record in metrics.read(run) if record["kind"] == "step"]
    images = seconds = waited = 0.0
    for previous, record in pairwise([{"step": 0}, *steps]):
        if previous["step"] < start:
            continue
        # The last batch of an epoch may be a few images smaller, which is neglected.
        count = (record["step"] - previous["step"]) * SMOKE_BATCH
        duration = count / record["images_per_second"]
        images, seconds = images + count, seconds + duration
        waited += duration * record["waiting"]
    return Pace(images / seconds, waited / seconds)
