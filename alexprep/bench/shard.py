"""`alexprep bench shard`: beside a bare loop on as many processes, and beside the usual script.

A bare loop decodes, resizes and encodes the same images from memory and throws the result away.
The floor is the faster of the two plain ones. Our codec in such a loop is faster still, since it
computes the middle square alone; it says what reading, hashing and writing cost. Every case starts
its processes and ends them, and nothing is taken off for that.
"""

import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from alexprep.bench.frame import BenchConfig, Row, interleaved, row, rows
from alexprep.dataset.codec import encode
from alexprep.dataset.jpeg import SOI
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.machine import peak_megabytes
from alexprep.progress import Progress
from alexprep.synthetic import DrawConfig, draw_source
from alexprep.workers import run_tasks

QUALITY, SIZE = 95, 256
FLOOR, OURS = "bare loop, simplejpeg and Pillow", "alexprep shard"
PILLOW, CODEC = "bare loop, Pillow alone", "bare loop, our codec"
SCRIPT = "Pillow pool + webdataset"
CHUNKS = 8
PEAK = "peak memory of a worker"


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s with one worker and with `config.workers`, and the most memory of a worker.

    config.data is a folder of class folders; without one, images are drawn. They are linked under
    other names until there are config.images of them.
    """
    originals = _originals(config, folder)
    source, count = _multiplied(originals, config.images, folder / "source")
    out = folder / "made"
    found: list[Row] = []
    for workers in sorted({1, config.processes}):
        loops = {
            name: partial(_loop, one, originals, count, workers) for name, one in LOOPS.items()
        }
        cases: dict[str, Callable[[], int]] = {
            **loops,
            OURS: partial(_ours, source, out, workers),
            SCRIPT: partial(_script, source, out, workers),
        }
        rates = interleaved(cases, config.rounds)
        found += _rows(rates, f", {workers} process" + "es" * (workers > 1))
    peaks = [megabytes for _, megabytes in run_tasks(_peak, [(source, out)] * 2, workers=2)]
    return [*found, row(PEAK, peaks, "MB", target="<= 250")]


def _rows(rates: dict[str, list[float]], ending: str) -> list[Row]:
    named = {name + ending: values for name, values in rates.items()}
    ours, script = OURS + ending, SCRIPT + ending
    found = rows(named, floor=FLOOR + ending, targets={ours: ">= 0.92"})
    pair = {script: named[script], ours: named[ours]}
    return found + rows(pair, floor=script, targets={ours: ">= 1.6"})[1:]


def with_our_codec(data: bytes) -> bytes:
    """What the shards hold."""
    return encode(data, size=SIZE, quality=QUALITY).jpg


def with_pillow(data: bytes) -> bytes:
    """The same with Pillow alone, in two steps, as scripts do it."""
    out = io.BytesIO()
    image = _resized(Image.open(io.BytesIO(data)).convert("RGB"))
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def with_simplejpeg(data: bytes) -> bytes:
    """The same with a faster decoder and encoder around Pillow's resize."""
    image = _resized(Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")))
    return simplejpeg.encode_jpeg(np.asarray(image), QUALITY, "RGB", "420")


def _resized(image: Image.Image) -> Image.Image:
    shorter = min(image.size)
    width, height = (round(side * SIZE / shorter) for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.crop((left, top, left + SIZE, top + SIZE))


LOOPS = {FLOOR: with_simplejpeg, PILLOW: with_pillow, CODEC: with_our_codec}


@cache
def _in_memory(paths: tuple[str, ...]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def _loop(one: Callable[[bytes], bytes], originals: list[Path], count: int, workers: int) -> int:
    chunks = [tuple(str(path) for path in originals[place::CHUNKS]) for place in range(CHUNKS)]
    tasks = [chunk for _ in range(count // len(originals)) for chunk in chunks if chunk]
    return sum(done for _, done in run_tasks(partial(_all_of, one), tasks, workers=workers))


def _all_of(one: Callable[[bytes], bytes], paths: tuple[str, ...]) -> int:
    for data in _in_memory(paths):
        one(data)
    return len(paths)


def _ours(source: Path, out: Path, workers: int) -> int:
    shutil.rmtree(out, ignore_errors=True)
    config = ShardConfig(size=SIZE, quality=QUALITY)
    manifest = shard(source, out, config, RunOptions(workers=workers))
    return sum(split.samples for split in manifest.splits.values())


def _script(source: Path, out: Path, workers: int) -> int:
    """A pool that encodes and one process that writes, as with webdataset alone."""
    # It brings torch along, which the workers of the other cases must not import.
    import webdataset  # noqa: PLC0415  # pyright: ignore

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    labels = {path.name: label for label, path in enumerate(sorted(source.iterdir()))}
    files = sorted(path for path in source.rglob("*") if path.is_file())
    with (
        multiprocessing.get_context("fork").Pool(workers) as pool,
        webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=1251, verbose=0) as tar,  # pyright: ignore
        Progress(SCRIPT, len(files)) as progress,
    ):
        for path, jpg in zip(files, pool.imap(_read_with_pillow, files, 16), strict=True):
            about = json.dumps({"wnid": path.parent.name}).encode()
            label = str(labels[path.parent.name]).encode()
            tar.write({"__key__": path.stem, "jpg": jpg, "cls": label, "json": about})  # pyright: ignore
            progress.advance(1)
    return len(files)


def _read_with_pillow(path: Path) -> bytes:
    return with_pillow(path.read_bytes())


def _peak(job: tuple[Path, Path]) -> float:
    """The most memory this process ever held, after a whole run in it."""
    source, out = job
    _ours(source, out.with_name(f"{out.name}-{os.getpid()}"), 1)
    return peak_megabytes()


def _originals(config: BenchConfig, folder: Path) -> list[Path]:
    if config.data is not None:
        return _jpegs(config.data)[: config.images]
    root = folder / "drawn"
    each = max(1, min(config.images, 500) // 10)
    drawing = DrawConfig(train=each, validation=1, shortest=300)
    for _ in draw_source(root, drawing):
        pass
    return _files(root / "train")[: config.images]


def _jpegs(root: Path) -> list[Path]:
    """The files below a folder that somebody named; PrepareError where the floors cannot read."""
    files = _files(root)
    remedy = "Name a folder of class folders with JPEGs with --data."
    if not files:
        raise PrepareError(f"{root} holds no file. {remedy}")
    for path in files:
        with path.open("rb") as file:
            if file.read(2) != SOI:
                raise PrepareError(f"{path} is no JPEG. {remedy}")
    return files


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _multiplied(originals: list[Path], images: int, folder: Path) -> tuple[Path, int]:
    """Class folders of links to the originals, as often as they fit into `images`."""
    copies = max(1, images // len(originals))
    for path in originals:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            link = folder / path.parent.name / f"{path.stem}_{copy}{path.suffix}"
            link.symlink_to(path.absolute())
    return folder, copies * len(originals)
