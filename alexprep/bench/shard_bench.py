"""`alexprep bench shard`: the command next to a bare loop that decodes, resizes and encodes.

The loop reads the same images from memory in as many processes. Each run starts its processes anew,
which counts for both.
"""

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from alexprep.bench.measurement import Row, compared, interleaved
from alexprep.bench.suite import BenchConfig, draw_photographs
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.workers import run_tasks
from pipelines.jpeg import SOI

QUALITY, SIZE = 95, 256
BASELINE, OURS = "bare loop, simplejpeg and Pillow", "alexprep shard"
CHUNKS = 8  # tasks that the originals are divided into
DRAWN = 500  # generated originals at most: more would take longer to draw than to measure


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s with one process and with config.processes.

    config.data is a folder of class folders with JPEGs. They are linked under further names until
    there are config.images of them.
    """
    originals = _originals(config, folder)[: config.images]
    copies = max(1, config.images // len(originals))
    source, out = _linked(originals, copies, folder / "source"), folder / "shards"
    rows: list[Row] = []
    for workers in sorted({1, config.processes}):
        ending = f", {workers} process" + "es" * (workers > 1)
        cases: dict[str, Callable[[], int]] = {
            BASELINE + ending: partial(_loop, originals, copies, workers),
            OURS + ending: partial(_shard, source, out, workers),
        }
        rates = interleaved(cases, config.rounds)
        rows += compared(rates, baseline=BASELINE + ending, targets={OURS + ending: ">= 0.92"})
    return rows


def with_simplejpeg(data: bytes) -> bytes:
    """The middle square of a JPEG, 256 pixels a side, by a fast codec around Pillow's resize."""
    image = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    scale = SIZE / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    x, y = (width - SIZE) // 2, (height - SIZE) // 2
    square = image.resize((width, height), Image.Resampling.BILINEAR).crop(
        (x, y, x + SIZE, y + SIZE)
    )
    return simplejpeg.encode_jpeg(np.asarray(square), QUALITY, "RGB", "420")


@cache
def _in_memory(paths: tuple[Path, ...]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def _loop(originals: list[Path], copies: int, workers: int) -> int:
    chunks = [tuple(originals[first::CHUNKS]) for first in range(min(CHUNKS, len(originals)))]
    return sum(count for _, count in run_tasks(_encode_all, chunks * copies, workers=workers))


def _encode_all(paths: tuple[Path, ...]) -> int:
    for data in _in_memory(paths):
        with_simplejpeg(data)
    return len(paths)


def _shard(source: Path, out: Path, workers: int) -> int:
    shutil.rmtree(out, ignore_errors=True)
    config = ShardConfig(size=SIZE, quality=QUALITY)
    return shard(source, out, config, RunOptions(workers=workers)).samples


def _originals(config: BenchConfig, folder: Path) -> list[Path]:
    """JPEG files; PrepareError where config.data has other files, which the loop cannot read."""
    if config.data is None:
        drawn = draw_photographs(folder / "drawn", min(config.images, DRAWN) + 10, (300, 700))
        # The first file of a class may be a PNG or CMYK, which the loop does not read.
        return [path for path in _files(drawn / "train") if not path.stem.endswith("_00000")]
    files = _files(config.data)
    remedy = "Name a folder of class folders with JPEGs with --data."
    if not files:
        raise PrepareError(f"{config.data} has no files. {remedy}")
    for path in files:
        with path.open("rb") as file:
            if file.read(2) != SOI:
                raise PrepareError(f"{path} is not a JPEG. {remedy}")
    return files


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _linked(originals: list[Path], copies: int, folder: Path) -> Path:
    """Class folders with `copies` links to each original."""
    for path in originals:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            link = folder / path.parent.name / f"{path.stem}_{copy}{path.suffix}"
            link.symlink_to(path.absolute())
    return folder
