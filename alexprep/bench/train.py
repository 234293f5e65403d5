"""`alexprep bench train`: how long a real training waits for its data.

A round is a run of `alexprep train --smoke`: at least STEPS steps with checkpoints, validation and
log. Its first START steps fill the loader's queues once and meet caches that are cold: left out of
"once running", counted in "with its start". Waiting is what the log calls so: the share of the time
between the steps' beginnings in which the network asked for a batch and had none.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from alexnet.training import metrics
from alexprep.bench.frame import BenchConfig, Row, row
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.model.recipes import SMOKE_BATCH
from alexprep.model.training import TrainOptions, train
from alexprep.synthetic import DrawConfig, draw_source
from pipelines.format import Manifest

STEPS, START = 320, 20
TARGET = "<= 2"
SETTINGS = (f"train.log_steps={START}", "train.keep=1", "train.checkpoint_minutes=60")


class Pace(NamedTuple):
    """Of some steps of a run: images/s, and the share of the time without data, in 0..1."""

    rate: float
    waiting: float


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Waiting and images/s of the smoke size of code2012, over config.rounds runs.

    config.data is a data set with statistics and a validation split; without one, config.images
    pictures of 64 pixels are drawn.
    """
    root = config.data or drawn_data_set(folder, config.images)
    manifest = Manifest.load(root)
    images = sum(one.samples for one in manifest.split("train", root).shards)
    options = TrainOptions(
        smoke=True,
        devices=(config.device,),
        epochs=math.ceil(STEPS * SMOKE_BATCH / images),
        settings=SETTINGS,
    )
    running: list[Pace] = []
    whole: list[Pace] = []
    for number in range(config.rounds):
        place = folder / f"run-{number}"
        train(root, place, options)
        running.append(pace(place, START))
        whole.append(pace(place, 0))
    return [
        row("smoke training, images/s once running", [one.rate for one in running], "images/s"),
        row(
            "smoke training, waiting once running",
            [100 * one.waiting for one in running],
            "% of the time",
            TARGET,
        ),
        row(
            "smoke training, waiting with its start",
            [100 * one.waiting for one in whole],
            "% of the time",
        ),
    ]


def pace(run: Path, start: int) -> Pace:
    """What the log of a run says of its steps after the first `start`."""
    steps = [record for record in metrics.read(run) if record["kind"] == "step"]
    images = seconds = waited = 0.0
    for before, record in pairwise([{"step": 0}, *steps]):
        if before["step"] < start:
            continue
        # The last batch of an epoch may be smaller by some: it weighs as a whole one here.
        count = (record["step"] - before["step"]) * SMOKE_BATCH
        took = count / record["images_per_second"]
        images, seconds = images + count, seconds + took
        waited += took * record["waiting"]
    return Pace(images / seconds, waited / seconds)


def drawn_data_set(folder: Path, images: int) -> Path:
    """Ten classes of drawn pictures, sharded at 64 pixels and measured."""
    source, root = folder / "source", folder / "shards"
    config = DrawConfig(train=-(-images // 10), validation=10, shortest=64, longest=96)
    for _ in draw_source(source, config):
        pass
    shard(source, root, ShardConfig(size=64), RunOptions())
    compute_stats(root)
    return root
