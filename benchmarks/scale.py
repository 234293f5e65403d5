"""What the size of ILSVRC costs: sharding, planning, opening, and finding one sample.

    python benchmarks/scale.py shard --source PHOTOGRAPHS --kept FILE
    python benchmarks/scale.py plan --kept FILE
    python benchmarks/scale.py load --kept FILE --out benchmarks/results

`shard` runs the command on 5,000 and on 50,000 links to the photographs; `plan` plans the tar
headers of 1,281,167 images; `load` opens 1024 shards of 1251 samples, which are two tars under many
names, in processes that have imported what they need. Each call adds a round to those kept.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peers_kept import Kept, keep_result
from PIL import Image

from alexprep.bench.frame import Row, row
from alexprep.bench.plan import write_headers
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.machine import peak_megabytes
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.format import Manifest
from pipelines.index import parse_arrays
from pipelines.order import global_order

FEW, MANY, WORKERS, OF_A_SHARD = 5_000, 50_000, 2, 1250
SHARDS, SAMPLES = 1024, 1251
RAW = AugmentSpec(source=32, crop=28, mean="none", lighting=0, divide=1)
# row -> unit, target
ROWS = {
    "cost of an image, 50,000 beside 5,000": ("times", "<= 1.05"),
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
)


def main() -> None:
    """Add a round of one part to those kept, and write the result of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--source", type=Path, help="class folders of photographs, for shard")
    parser.add_argument("--kept", type=Path, required=True, help="file with the rounds so far")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the result")
    asked = parser.parse_args()
    kept = Kept.load(asked.kept)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        PARTS[asked.part](Path(folder), asked.source, asked.rounds, kept)
    sys.stdout.write(f"{keep_result('scale', found(kept), kept, NOTES, asked.out)}\n")


def found(kept: Kept) -> list[Row]:
    """A row for everything that was measured."""
    made: list[Row] = []
    for name, values in kept.rates.items():
        unit, target = ROWS.get(name, ("images/s" if "images/s" in name else "", ""))
        unit = unit or ("MB" if "memory" in name else "s")
        made.append(row(name.replace(", images/s", ""), values, unit, target))
    return made


def measure_shard(folder: Path, source: Path, rounds: int, kept: Kept) -> None:
    """Images/s and peak memory of `alexprep shard` on few images and on many, in turns."""
    originals = sorted(path for path in source.rglob("*") if path.is_file())
    for path in originals:
        path.read_bytes()
    for count in (FEW, MANY):
        for number in range(count):
            path = originals[number % len(originals)]
            link = folder / str(count) / path.parent.name / f"{path.stem}_{number}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    for _ in range(rounds):
        seconds = {count: _shard(folder, count, kept) for count in (FEW, MANY)}
        cost = seconds[MANY] / MANY / (seconds[FEW] / FEW)
        kept.add("cost of an image, 50,000 beside 5,000", cost, 0)


def _shard(folder: Path, count: int, kept: Kept) -> float:
    """Seconds of the whole command; the memory is what /proc says while it runs."""
    words = ["shard", str(folder / str(count)), str(folder / "out"), "--workers", str(WORKERS)]
    began = time.perf_counter()
    command = [sys.executable, "-m", "alexprep", *words, "--shards", str(count // OF_A_SHARD)]
    peaks: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None:
            for pid in (run.pid, *_children(run.pid)):
                peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
            time.sleep(0.1)
    seconds = time.perf_counter() - began
    if run.returncode:
        raise RuntimeError(f"alexprep shard of {count} images ended with {run.returncode}")
    subprocess.run(["rm", "-r", str(folder / "out")], check=True)
    kept.add(f"alexprep shard, {count:,} images, images/s", count / seconds, 0)
    parent = peaks.pop(run.pid)
    kept.add(f"peak memory of the parent, {count:,} images", parent, 0)
    kept.add(f"peak memory of a worker, {count:,} images", max(peaks.values()), 0)
    return seconds


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _peak(pid: int) -> float:
    """Megabytes that a process held at most; 0 for one that has ended."""
    try:
        return peak_megabytes(pid)
    except (OSError, IndexError):
        return 0


def measure_plan(folder: Path, source: Path | None, rounds: int, kept: Kept) -> None:
    """Listing, planning and every task, each time in a new process."""
    write_headers(folder)
    for _ in range(rounds):
        run = [sys.executable, "-m", "alexprep.bench.plan", str(folder)]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
        kept.add("planning 1,281,167 images", float(said[0]), 0)
        kept.add("planning 1,281,167 images, peak memory", float(said[1]), 0)


def measure_load(folder: Path, source: Path | None, rounds: int, kept: Kept) -> None:
    """The first batch, the memory of the index, and `alexprep cat` before and after it has one."""
    root = many_shards(folder)
    # A key that is in the last shard alone.
    key = (root / "index" / f"{_name(SHARDS - 1)}.idx").read_text().split()[-1].partition(".")[0]
    context = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for backend, label in (("dali", "DALI"), ("torch", "torch")):
            with context.Pool(1) as pool:
                seconds = pool.apply(first_batch, (root, backend))
            kept.add(f"open 1024 shards and first batch, {label}", seconds, 0)
        with context.Pool(1) as pool:
            kept.add("index of 1,281,024 samples", pool.apply(index_megabytes, (root,)), 0)
        for path in (*(root / "index").glob("keys-*"), *(root / "index").glob("buckets-*")):
            path.unlink()
        for which in ("first", "second"):
            began = time.perf_counter()
            command = [sys.executable, "-m", "alexprep", "cat", str(root), key]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            kept.add(f"alexprep cat, {which} call", time.perf_counter() - began, 0)


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
        old = [root / kind / f"{Path(one['name']).stem}.{ending}" for one in (first, last)]
        kept = [path.rename(path.with_name(f"kept-{place}")) for place, path in enumerate(old)]
        for number in range(SHARDS):
            os.link(kept[number == SHARDS - 1], root / kind / f"{_name(number)}.{ending}")
        for path in kept:
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
    for each in (small, root):  # what the first pipeline of a process loads is not the data's cost
        began = time.perf_counter()
        config = LoaderConfig(backend="dali" if backend == "dali" else "torch")
        with open_loader(each, config=config, augment=RAW) as loader:
            next(iter(loader))
            seconds = time.perf_counter() - began
    return seconds


def index_megabytes(root: Path) -> float:
    """What the process grows by when the index of every shard and an epoch's order are kept."""
    split = Manifest.load(root).split("train", root)
    before = _held()
    held = [parse_arrays((root / one.index).read_bytes(), one, one.index) for one in split.shards]
    order = global_order(split.samples, 0, 0)
    grown = _held() - before
    assert (len(held), len(order)) == (len(split.shards), split.samples)
    return grown


def _held() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


PARTS = {"shard": measure_shard, "plan": measure_plan, "load": measure_load}

if __name__ == "__main__":
    main()
