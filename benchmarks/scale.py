"""What the size of ILSVRC costs: sharding, planning, opening, and looking up one sample.

    python benchmarks/scale.py shard --source PHOTOGRAPHS --state FILE
    python benchmarks/scale.py plan --state FILE
    python benchmarks/scale.py load --state FILE --out benchmarks/results
    python benchmarks/scale.py full --source PHOTOGRAPHS --state FILE --out benchmarks/results

`full` is every command once on 1,281,167 links (--images) to the photographs in 1,000 class
folders: shard, killed half-way and resumed, verify, stats, the first batches in the three orders,
cat and report. It needs 45 GB in --folder, hours of two cores, and deletes what it made.

`shard` runs the command on 5,000 and on 50,000 links to the photographs; `plan` plans the tar
headers of 1,281,167 images; `load` opens 1024 shards of 1251 samples, which are two tars under many
names, in processes that have imported what they need. Each call adds rounds to those in FILE.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image
from rounds import Rounds, add_round_options, finish

from alexprep.bench.measurement import Row, row
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.shard_plan import default_shards, make_plan
from alexprep.machine import peak_megabytes
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import TRAIN_TAR
from alexprep.sources.synsets import ilsvrc2012
from alexprep.tar import build_header
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.format import BLOCK, Manifest, ShardIndex
from pipelines.order import Order, global_order

ILSVRC_TRAIN = 1_281_167
TAR_END = bytes(2 * BLOCK)
FEW, MANY, WORKERS, OF_A_SHARD = 5_000, 50_000, 2, 1250
SHARDS, SAMPLES = 1024, 1251
# Of an image on disk: 32.8 KB in a shard, and a link.
SAMPLE_BYTES = 35_000
BATCHES = 8
RAW = AugmentSpec(source=32, crop=28, mean="none", lighting=0, divide=1)
COST = "cost of an image, 50,000 beside 5,000"
# row -> unit, target
ROWS = {
    COST: ("times", "<= 1.05"),
    "peak memory of a worker, 50,000 images": ("MB", "<= 250"),
    "planning 1,281,167 images": ("s", "<= 60"),
    "planning 1,281,167 images, peak memory": ("MB", "<= 1000"),
    "open 1024 shards and first batch, DALI": ("s", "<= 1"),
    "open 1024 shards and first batch, torch": ("s", "<= 1"),
    "index of 1,281,024 samples": ("MB", "<= 100"),
}
NOTES = (
    "Sharding is the whole command with two workers on links to 500 photographs; planning is that "
    "of an archive's headers in a new process. A loader is opened in a process that has opened "
    "another data set before, so that imports do not count; `alexprep cat` is the whole command, "
    "which at its first call lists the keys of all shards beside their indexes.",
    "`full` is each command once on links to 500 photographs in 1,000 class folders, two workers; "
    "batches are of 128, in a process that has imported torch and DALI.",
)


def main() -> None:
    """Add rounds of one part to those in a file, and write the result of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=[*sorted(PARTS), "full"])
    parser.add_argument("--source", type=Path, help="folder of photographs, for shard and full")
    parser.add_argument("--images", type=int, default=ILSVRC_TRAIN, help="links, for full")
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's")
    add_round_options(parser, rounds=1)
    options = parser.parse_args()
    state = Rounds.load(options.state)
    parts = PARTS | {"full": partial(measure_full, images=options.images)}
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as folder:
        parts[options.part](Path(folder), options.source, options.rounds, state)
    sys.stdout.write(f"{finish('scale', rows_of(state), state, NOTES, options.out)}\n")


def rows_of(state: Rounds) -> list[Row]:
    """A row for every figure."""
    rows: list[Row] = []
    for name, values in state.rates.items():
        unit, target = ROWS.get(name, ("images/s" if "images/s" in name else "", ""))
        unit = unit or ("MB" if "memory" in name else "" if "open files" in name else "s")
        rows.append(row(name.replace(", images/s", ""), values, unit, target))
    return rows


def measure_shard(folder: Path, source: Path, rounds: int, state: Rounds) -> None:
    """Images/s and peak memory of `alexprep shard` on few images and on many, interleaved."""
    originals = _photographs(source)
    for count in (FEW, MANY):
        for number in range(count):
            path = originals[number % len(originals)]
            link = folder / str(count) / path.parent.name / f"{path.stem}_{number}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    for _ in range(rounds):
        seconds = {count: _shard(folder, count, state) for count in (FEW, MANY)}
        cost = seconds[MANY] / MANY / (seconds[FEW] / FEW)
        state.add(COST, cost)


def _shard(folder: Path, count: int, state: Rounds) -> float:
    """Seconds of the whole command; the memory is what /proc says while it runs."""
    words = ["shard", str(folder / str(count)), str(folder / "out"), "--workers", str(WORKERS)]
    run = watch([*words, "--shards", str(count // OF_A_SHARD)])
    subprocess.run(["rm", "-r", str(folder / "out")], check=True)
    state.add(f"alexprep shard, {count:,} images, images/s", count / run.seconds)
    state.add(f"peak memory of the parent, {count:,} images", run.parent)
    state.add(f"peak memory of a worker, {count:,} images", run.worker)
    return run.seconds


def _photographs(source: Path) -> list[Path]:
    """Absolute paths, each file read once, so that the first run does not wait for the disk."""
    paths = sorted(path.absolute() for path in source.rglob("*") if path.is_file())
    for path in paths:
        path.read_bytes()
    return paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A command that has ended: its seconds, and the most that /proc showed while it ran.

    Megabytes of the first process and of the largest other one, files that one of them had open.
    """

    seconds: float
    parent: float
    worker: float
    open_files: int


def watch(words: list[str], until: Callable[[], bool] = lambda: False) -> Watched:
    """Run a command of alexprep; when `until` holds, kill it with SIGKILL."""
    start = time.perf_counter()
    peaks: dict[int, float] = {}
    open_files = 0
    command = [sys.executable, "-m", "alexprep", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while run.poll() is None:
            for pid in (run.pid, *_descendants(run.pid)):
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
                open_files = max(open_files, _open_files(pid))
            if until():
                run.kill()
            time.sleep(0.1)
        errors = run.stderr.read().decode() if run.stderr else ""
    seconds = time.perf_counter() - start
    if run.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"alexprep {' '.join(words)} ended with {run.returncode}: {errors}")
    parent = peaks.pop(run.pid, 0.0)
    return Watched(
        seconds=seconds,
        parent=parent,
        worker=max(peaks.values(), default=0.0),
        open_files=open_files,
    )


def _descendants(pid: int) -> list[int]:
    try:
        listing = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in listing.split()]
    return [*children, *(pid for child in children for pid in _descendants(child))]


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - three times as fast
    except OSError:
        return 0


def _peak(pid: int) -> float:
    """Peak megabytes of a process; 0 for one that has ended."""
    try:
        return peak_megabytes(pid)
    except (OSError, IndexError):
        return 0


def measure_full(
    folder: Path, source: Path, rounds: int, state: Rounds, images: int = ILSVRC_TRAIN
) -> None:
    """Every command once on `images` links to the photographs."""
    free, needed = shutil.disk_usage(folder).free, images * SAMPLE_BYTES
    if free < needed:
        raise SystemExit(f"{folder} has {free:,} bytes free; {images:,} images need {needed:,}.")
    for _ in range(rounds):
        keys = link_images(folder / "source", _photographs(source), images)
        root = folder / "set"
        words = ["shard", str(folder / "source"), str(root), "--workers", str(WORKERS)]
        shards = default_shards("train", images, ShardConfig())
        commands: dict[str, tuple[list[str], Callable[[], bool]]] = {
            "shard until killed half-way": (words, partial(_has_tars, root, shards // 2)),
            "shard, resumed": (words, _never),
            "verify": (["verify", str(root), "--workers", str(WORKERS)], _never),
            "stats": (["stats", str(root), "--workers", str(WORKERS)], _never),
            "cat, first call": (["cat", str(root), keys[-1]], _never),
            "cat, second call": (["cat", str(root), keys[0]], _never),
            "report": (["report", str(root)], _never),
        }
        # Each figure is saved as it comes: a run of hours that ends early keeps what it measured.
        for name, (command, until) in commands.items():
            _add(state, f"alexprep {name}, {images:,} images", watch(command, until))
        for order in get_args(Order):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                run = pool.apply(first_batches, (root, order))
            _add(state, f"{BATCHES} batches in order {order}, {images:,} images", run)
        shutil.rmtree(folder / "source")
        shutil.rmtree(root)


def _never() -> bool:
    return False


def _has_tars(root: Path, count: int) -> bool:
    """Whether so many shards are finished, but at least one."""
    return len([*(root / "train").glob("*.tar")]) >= max(1, count)


def _add(state: Rounds, name: str, run: Watched) -> None:
    state.add(name, run.seconds)
    state.add(f"{name}, peak memory", run.parent)
    if run.worker:
        state.add(f"{name}, peak memory of a worker", run.worker)
    state.add(f"{name}, open files", run.open_files)
    state.save()


def link_images(folder: Path, originals: list[Path], images: int) -> list[str]:
    """`images` links in ILSVRC's 1,000 class folders; the keys of the samples."""
    synsets, keys = ilsvrc2012(), list[str]()
    for synset in synsets:
        (folder / synset.wnid).mkdir(parents=True)
    for number in range(images):
        wnid = synsets[number % len(synsets)].wnid
        original = originals[number % len(originals)]
        keys.append(f"{wnid}_{number}")
        (folder / wnid / f"{keys[-1]}{original.suffix}").symlink_to(original)
    return keys


def first_batches(root: Path, order: Literal["global", "window", "shards"]) -> Watched:
    """Open the loader and read BATCHES batches of 128, in this process, its imports excluded."""
    start = time.perf_counter()
    with open_loader(root, config=LoaderConfig(order=order)) as loader:
        batches = iter(loader)
        for _ in range(min(BATCHES, len(loader))):
            next(batches)
        seconds, open_files = time.perf_counter() - start, _open_files(os.getpid())
    return Watched(seconds=seconds, parent=peak_megabytes(), worker=0, open_files=open_files)


def write_headers(folder: Path, images: int = ILSVRC_TRAIN) -> None:
    """ILSVRC2012_img_train.tar with `images` names of ILSVRC's kind and one block of data each."""
    synsets = ilsvrc2012()
    with (folder / TRAIN_TAR).open("wb") as tar:
        for label, synset in enumerate(synsets):
            count = images * (label + 1) // len(synsets) - images * label // len(synsets)
            members = b"".join(
                build_header(f"{synset.wnid}_{number}.JPEG".encode(), BLOCK) + bytes(BLOCK)
                for number in range(count)
            )
            inner = members + TAR_END
            tar.write(build_header(f"{synset.wnid}.tar".encode(), len(inner)) + inner)
        tar.write(TAR_END)


def plan_everything(folder: Path) -> tuple[float, float, int]:
    """(seconds, peak megabytes of this process, images) of listing, planning and every task."""
    start = time.perf_counter()
    plan = make_plan(find_source(folder), ShardConfig())
    images = sum(len(task.samples.key) for task in plan.tasks("out", {}, skip=False))
    plan.identity()
    return time.perf_counter() - start, peak_megabytes(), images


def measure_plan(folder: Path, source: Path | None, rounds: int, state: Rounds) -> None:
    """Listing, planning and every task, each time in a new process."""
    write_headers(folder)
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        with context.Pool(1) as pool:
            seconds, megabytes, _ = pool.apply(plan_everything, (folder,))
        state.add("planning 1,281,167 images", seconds)
        state.add("planning 1,281,167 images, peak memory", megabytes)


def measure_load(folder: Path, source: Path | None, rounds: int, state: Rounds) -> None:
    """The first batch, the memory of the index, and `alexprep cat` without and with its lists."""
    root = many_shards(folder)
    # A key that is in the last shard alone.
    key = (root / "index" / f"{_name(SHARDS - 1)}.idx").read_text().split()[-1].partition(".")[0]
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for backend, label in (("dali", "DALI"), ("torch", "torch")):
            with context.Pool(1) as pool:
                seconds = pool.apply(first_batch, (root, backend))
            state.add(f"open 1024 shards and first batch, {label}", seconds)
        with context.Pool(1) as pool:
            state.add("index of 1,281,024 samples", pool.apply(index_megabytes, (root,)))
        for path in (*(root / "index").glob("keys-*"), *(root / "index").glob("buckets-*")):
            path.unlink()
        for ordinal in ("first", "second"):
            start = time.perf_counter()
            command = [sys.executable, "-m", "alexprep", "cat", str(root), key]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            state.add(f"alexprep cat, {ordinal} call", time.perf_counter() - start)


def many_shards(folder: Path) -> Path:
    """A data set of SHARDS shards, all but the last of which are one file."""
    source, root = folder / "drawn", folder / "set"
    rng = np.random.default_rng(0)
    for number in range(2 * SAMPLES):
        path = source / "train" / f"n{number % 1000:08d}" / f"n{number % 1000:08d}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path, "JPEG")
    shard(source, root, ShardConfig(size=32, shards=2), RunOptions(workers=WORKERS))
    manifest = json.loads((root / "manifest.json").read_text())
    first, last = manifest["splits"]["train"]["shards"]
    shards = [first | {"name": f"train/{_name(number)}.tar"} for number in range(SHARDS - 1)]
    for kind, ending in (("train", "tar"), ("index", "idx")):
        names = [root / kind / f"{Path(shard['name']).stem}.{ending}" for shard in (first, last)]
        files = [path.rename(path.with_name(f"file-{n}")) for n, path in enumerate(names)]
        for number in range(SHARDS):
            os.link(files[number == SHARDS - 1], root / kind / f"{_name(number)}.{ending}")
        for path in files:
            path.unlink()
    shards.append(last | {"name": f"train/{_name(SHARDS - 1)}.tar"})
    manifest["splits"]["train"] |= {"shards": shards}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def _name(number: int) -> str:
    return f"drawn-train-{number:06d}"


def first_batch(root: Path, backend: str) -> float:
    """Seconds from opening to the first batch, DALI or torch already imported."""
    small = root.parent / "small"
    if not small.exists():
        shard(root.parent / "drawn", small, ShardConfig(size=32, shards=2), RunOptions(workers=1))
    seconds = 0.0
    # Both in turn: what the first pipeline of a process loads is not the data's cost.
    for dataset in (small, root):
        start = time.perf_counter()
        config = LoaderConfig(backend="dali" if backend == "dali" else "torch")
        with open_loader(dataset, config=config, augment=RAW) as loader:
            next(iter(loader))
            seconds = time.perf_counter() - start
    return seconds


def index_megabytes(root: Path) -> float:
    """What the process grows by with the index of every shard and the order of an epoch."""
    split = Manifest.load(root).split("train", root)
    empty = _resident()
    indexes = [
        ShardIndex.parse((root / shard.index).read_bytes(), shard, shard.index)
        for shard in split.shards
    ]
    order = global_order(split.samples, 0, 0)
    grown = _resident() - empty
    assert (len(indexes), len(order)) == (len(split.shards), split.samples)
    return grown


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


PARTS = {"shard": measure_shard, "plan": measure_plan, "load": measure_load}

if __name__ == "__main__":
    main()
