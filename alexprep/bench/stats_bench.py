"""`alexprep bench stats`: exact statistics next to reading and decoding the same images.

The baseline is what a script of one's own would do, Pillow into a new array. Both run over the same
shards in the same number of processes, started anew each time.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from alexprep.bench.measurement import Row, compared, interleaved, row
from alexprep.bench.suite import BenchConfig, drawn_data_set
from alexprep.dataset.stats import StatsTask, shard_moments
from alexprep.machine import peak_megabytes
from alexprep.workers import run_tasks
from pipelines.format import Manifest, parse_index

BASELINE = "decode only, Pillow"
ILSVRC_IMAGES = 1_281_167


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s of decoding and of statistics, and the peak memory of a worker.

    config.data is a data set, of whose train split about config.images images are measured.
    """
    root = config.data or drawn_data_set(folder, config.images)
    tasks = _tasks(root, config.images)
    processes = min(config.processes, len(tasks))
    functions: dict[str, Callable[[StatsTask], int]] = {BASELINE: decode, "stats": measure_shard}
    cases = {
        name: partial(_run_all, function, tasks, processes) for name, function in functions.items()
    }
    rates = interleaved(cases, config.rounds)
    rows = compared(rates, baseline=BASELINE, targets={"stats": ">= 0.85"})
    minutes = [ILSVRC_IMAGES / rate / 60 for rate in rates["stats"]]
    peaks = [megabytes for _, megabytes in run_tasks(_peak, tasks, workers=2)]
    return [
        *rows,
        row("peak memory of a worker", peaks, "MB", target="<= 250"),
        row("all of ILSVRC2012 at that rate", minutes, "minutes"),
    ]


def decode(task: StatsTask) -> int:
    """Decode every image of a shard with Pillow; how many there are."""
    path = task.root / task.shard.name
    samples = parse_index((task.root / task.shard.index).read_bytes(), path)
    with path.open("rb") as file:
        for sample in samples:
            file.seek(sample.jpg.offset)
            np.asarray(Image.open(io.BytesIO(file.read(sample.jpg.size))))
    return len(samples)


def measure_shard(task: StatsTask) -> int:
    """Images of a shard after all that `alexprep stats` does with it."""
    return shard_moments(task).images


def _peak(task: StatsTask) -> float:
    """The most memory that this process ever held, after measuring one more shard."""
    shard_moments(task)
    return peak_megabytes()


def _run_all(function: Callable[[StatsTask], int], tasks: list[StatsTask], processes: int) -> int:
    return sum(images for _, images in run_tasks(function, tasks, workers=processes))


def _tasks(root: Path, images: int) -> list[StatsTask]:
    """Shards of the train split with about `images` images together, at least two."""
    manifest = Manifest.load(root)
    tasks: list[StatsTask] = []
    for shard in manifest.split("train", root).shards:
        if len(tasks) >= 2 and sum(task.shard.samples for task in tasks) >= images:
            break
        tasks.append(
            StatsTask(root=root, shard=shard, size=manifest.size, keep_aspect=manifest.keep_aspect)
        )
    return tasks
