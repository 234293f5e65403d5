"""`alexprep bench stats`: exact statistics beside reading and decoding the same images.

All cases run over the same shards in the same number of processes, started anew each time. Pillow
into an array is the floor: it is what a script of one's own would do. simplejpeg is the decoder
that stats uses, into an array that is used again.
"""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from alexprep.bench.frame import BenchConfig, Row, interleaved, row, rows
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import ShardTask, shard_moments
from alexprep.machine import peak_megabytes
from alexprep.synthetic import DrawConfig, draw_source
from alexprep.workers import run_tasks
from pipelines.format import Manifest, parse_index

FLOOR = "decode only, Pillow"
SHARDS = 4
ILSVRC_IMAGES = 1_281_167


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s of decoding and of statistics, and the most memory that a worker takes.

    config.data is a data set whose train split is measured, up to config.images images; without
    one, images are drawn.
    """
    root = config.data or _drawn(folder, config.images)
    tasks = _tasks(root, config.images)
    every: dict[str, Callable[[ShardTask], int]] = {
        FLOOR: decode_with_pillow,
        "decode only, simplejpeg": decode_with_simplejpeg,
        "stats": measure_shard,
    }
    processes = min(config.processes, len(tasks))
    cases = {name: partial(_images, function, tasks, processes) for name, function in every.items()}
    rates = interleaved(cases, config.rounds)
    found = rows(rates, floor=FLOOR, targets={"stats": ">= 0.85"})
    minutes = [ILSVRC_IMAGES / rate / 60 for rate in rates["stats"]]
    few, many = "stats, one shard", "stats, every shard, one process"
    one_process = {
        few: partial(_images, measure_shard, tasks[:1], 1),
        many: partial(_images, measure_shard, tasks, 1),
    }
    found += rows(interleaved(one_process, config.rounds), floor=few, targets={many: ">= 0.95"})
    peaks = [megabytes for _, megabytes in run_tasks(measured_peak, tasks, workers=2)]
    return [
        *found,
        row("peak memory of a worker", peaks, "MB", target="<= 250"),
        row("all of ILSVRC2012 at that rate", minutes, "minutes"),
    ]


def decode_with_pillow(task: ShardTask) -> int:
    """Images of a shard, each read by its place and decoded to a new array."""
    images = 0
    for jpg in _jpgs(task):
        np.asarray(Image.open(io.BytesIO(jpg)))
        images += 1
    return images


def decode_with_simplejpeg(task: ShardTask) -> int:
    """The same by simplejpeg, into one array."""
    buffer_HWC = np.empty((task.size, task.size, 3), np.uint8)
    images = 0
    for jpg in _jpgs(task):
        simplejpeg.decode_jpeg(jpg, "RGB", buffer=buffer_HWC)
        images += 1
    return images


def measure_shard(task: ShardTask) -> int:
    """Images of a shard after all that `alexprep stats` does with it."""
    return shard_moments(task).images


def measured_peak(task: ShardTask) -> float:
    """The most memory this process ever held, after measuring one more shard."""
    shard_moments(task)
    return peak_megabytes()


def _images(function: Callable[[ShardTask], int], tasks: list[ShardTask], processes: int) -> int:
    return sum(images for _, images in run_tasks(function, tasks, workers=processes))


def _jpgs(task: ShardTask) -> Iterator[bytes]:
    """The images of a shard, each read by its place."""
    path = task.root / task.shard.name
    listed = parse_index((task.root / task.shard.index).read_text(), path)
    with path.open("rb") as file:
        for sample in listed:
            file.seek(sample.jpg.offset)
            yield file.read(sample.jpg.size)


def _tasks(root: Path, images: int) -> list[ShardTask]:
    """Shards of the train split that have about `images` images together, two at least."""
    manifest = Manifest.load(root)
    chosen: list[ShardTask] = []
    for one in manifest.split("train", root).shards:
        if len(chosen) >= 2 and sum(task.shard.samples for task in chosen) >= images:
            break
        chosen.append(ShardTask(root=root, shard=one, size=manifest.size))
    return chosen


def _drawn(folder: Path, images: int) -> Path:
    """Drawn pictures of photographs' size as a data set."""
    config = DrawConfig(train=-(-images // 10), validation=1, shortest=256, longest=500)
    for _ in draw_source(folder / "source", config):
        pass
    options = RunOptions(splits=("train",))
    shard(folder / "source", folder / "shards", ShardConfig(shards=SHARDS), options)
    return folder / "shards"
