"""`alexprep bench train`: how long a real training waits for its data.

A round is a run of `alexprep train --smoke` of at least STEPS steps, with checkpoints, validation
and log. Its first START steps fill the loader's queues and meet cold caches: they are left out of
"once running". Waiting is the log's own figure: the share of the time between the starts of the
steps in which the network had no batch to train on.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from alexnet.training import metrics
from alexprep.bench.measurement import Row, row
from alexprep.bench.suite import BenchConfig, drawn_data_set
from alexprep.model.recipes import SMOKE_BATCH
from alexprep.model.training import TrainOptions, train
from pipelines.format import Manifest

STEPS, START = 320, 20
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
    running: list[Pace] = []
    complete: list[Pace] = []
    for number in range(config.rounds):
        run = folder / f"run-{number}"
        train(root, run, options)
        running.append(pace(run, START))
        complete.append(pace(run, 0))
    rates = [steps.rate for steps in running]
    waiting, from_start = ([100 * steps.waiting for steps in runs] for runs in (running, complete))
    unit = "% of the time"
    return [
        row("smoke training, images/s once running", rates, "images/s"),
        row("smoke training, waiting once running", waiting, unit, TARGET),
        row("smoke training, waiting with its start", from_start, unit),
    ]


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
