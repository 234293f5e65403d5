"""Everything that needs a GPU, in one command of at most eight minutes: tests, then measurements.

    make gpu-check OUT=results DATA=~/imagenet256
    python3 benchmarks/gpu/check.py --out results

Runs from a checkout or a copy of it with any Python that has the packages. Each part has a process
and a time limit of its own, and each figure is saved when it is measured: what fails, crashes the
process or is cut off loses itself alone. OUT gets JSON as `alexprep bench` writes it and the log of
each part; the tables come last. Exit code 1 if there is no GPU, a package is missing or anything
failed.
"""

import argparse
import faulthandler
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from alexprep.bench.measurement import Row
    from alexprep.bench.suite import BenchConfig
    from benchmarks.gpu.steps import Measurement

# Seconds of each part, and those that the parts before it have left; together with the start they
# stay below eight minutes.
LIMITS = {"kernels": 65, "tests": 100, "step": 150, "layers": 40, "load": 95}
# Modules and their packages. Nothing runs without the first ones; of the others each part, and each
# file of tests, needs some.
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "msgspec": "msgspec",
    "safetensors": "safetensors",
} | {"PIL": "pillow"}
PACKAGES = NEEDED | {
    **{name: name for name in ("triton", "pytest", "hypothesis", "numba", "simplejpeg")},
    "pytest_timeout": "pytest-timeout",
    "nvidia.dali": "nvidia-dali-cuda130",
}
IMAGES, CLASSES, SIDE = 2000, 10, 256
ROUNDS = 5
LAYER_BATCH = 256
FIGURE_SECONDS = 75.0  # compiling a step cold takes the longest
DEVICE = "cuda:0"
FAILED, AGAIN = 1, 3  # exit codes of a part: figures failed; its GPU needs a new process


def main() -> int:
    """The command; its exit code."""
    options = _options()
    reason, lacking = no_gpu(), missing()
    if reason:
        _say(f"gpu-check: {reason}; nothing was run")
        return 1
    if any(package in NEEDED.values() for package in lacking):
        _say(f"gpu-check: missing packages: {', '.join(lacking)}; nothing was run")
        return 1
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.part:
        return run_part(options.part, out, options.data)
    failed = ["packages"] if lacking else []
    if lacking:
        _say(f"gpu-check: missing packages: {', '.join(lacking)}; what needs them will fail")
    for path in out.glob("*-journal.json"):
        path.unlink()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        data = options.data.resolve() if options.data else drawn(Path(folder) / "drawn")
        _say(f"gpu-check: images of {options.data or 'the demo, drawn'}, results in {out}")
        begin = time.monotonic()
        for part, end in zip(LIMITS, itertools.accumulate(LIMITS.values()), strict=True):
            start = time.monotonic()
            problem = run_apart(part, begin + end, out, data)
            _say(f"{part}: {problem or 'done'}, {time.monotonic() - start:.0f} s")
            failed += [part] * bool(problem)
    _say(tables(out))
    _say(f"gpu-check: failed: {', '.join(failed) or 'nothing'}")
    return int(bool(failed))


def no_gpu() -> str:
    """Why nothing can be run, in a few words; nothing if it can."""
    if not _found("torch"):
        return "torch is missing"
    import torch  # noqa: PLC0415 - may be missing

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def missing() -> list[str]:
    """Packages that are needed and not there."""
    return [package for module, package in PACKAGES.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def drawn(root: Path) -> Path:
    """A data set of the demo's pictures, by Pillow alone, with made-up statistics."""
    import numpy as np  # noqa: PLC0415 - may be missing

    from alexprep.synthetic import SHAPES, DrawConfig, picture  # noqa: PLC0415
    from tests.drawing import jpeg  # noqa: PLC0415
    from tests.tarsets import Item, measured, write_dataset  # noqa: PLC0415

    config = DrawConfig(shortest=SIDE, longest=SIDE)
    rng = np.random.default_rng(2012)
    # Ten times each: what is drawn takes longer to draw than to read.
    files = [
        jpeg(picture(wnid, config, rng), 95, subsampling=2)
        for _ in range(IMAGES // CLASSES // 10)
        for wnid in SHAPES
    ]
    items = [
        Item(f"drawn_{number:05d}", files[number % len(files)], number % CLASSES)
        for number in range(IMAGES)
    ]
    write_dataset(root, {"train": items}, size=SIDE, shards=8, classes=CLASSES)
    measured(root, SIDE)
    return root


def run_apart(part: str, deadline: float, out: Path, data: Path) -> str:
    """Run a part in processes of its own until a moment of time.monotonic; what went wrong, if any.

    A process that a figure has crashed, or whose GPU it has left unusable, is followed by another,
    which goes on with the next figure.
    """
    command = [sys.executable, __file__, "--out", out, "--data", data, "--part", part]
    with (out / f"{part}.log").open("w") as log:
        while True:
            tried = len(Journal.load(out, part).tried)
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # Its children too: tests start processes, torch compiles in some.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"cut off, see {part}.log"
            journal = Journal.load(out, part)
            ended = code in (0, FAILED) and not journal.open
            if ended or len(journal.tried) == tried:
                return f"failed with code {code}, see {part}.log" if code else ""


@dataclass(kw_only=True, slots=True)
class Journal:
    """The figures of a part that were tried, in a file, so that a new process can go on.

    Attributes:
        tried: their names; one is here before it is measured.
        failures: what went wrong, in words.
        rows: what was measured, as JSON.
        skipped: tests that found something missing.
    """

    path: Path
    tried: list[str] = field(default_factory=list[str])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    skipped: list[str] = field(default_factory=list[str])

    @classmethod
    def load(cls, out: Path, part: str) -> "Journal":
        path = out / f"{part}-journal.json"
        fields: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return cls(path=path, **fields)

    def save(self) -> None:
        fields = asdict(self)
        del fields["path"]
        part = self.path.with_suffix(".partial")
        part.write_text(json.dumps(fields))
        part.replace(self.path)

    def keep(self, name: str, rows: "Iterable[Row]") -> None:
        """What a figure measured."""
        self.rows[name] = [asdict(row) for row in rows]

    @property
    def open(self) -> list[str]:
        """What was begun and did not end: it ended its process, or did not move."""
        return [name for name in self.tried if name not in {*self.rows, *self.failures}]

    def end_open(self, part: str) -> None:
        """Count as failures what was begun and did not end."""
        for name in self.open:
            self.failures[name] = f"ended its process, see {part}.log"


def run_part(part: str, out: Path, data: Path) -> int:
    """Run a part in this process; its exit code."""
    if part in ("kernels", "tests"):
        return _tests(part, out)
    from alexprep.bench.suite import BenchConfig  # noqa: PLC0415 - slow to import

    config = BenchConfig(rounds=ROUNDS, images=5120, device=DEVICE, data=data)
    return measure(part, measurements(part, config, data), out, config)


def measure(part: str, figures: "Iterable[Measurement]", out: Path, config: "BenchConfig") -> int:
    """Measure what was not tried yet and save each figure as it comes; the exit code."""
    journal = Journal.load(out, part)
    journal.end_open(part)
    for name, figure in figures:
        if name in journal.tried:
            continue
        journal.tried.append(name)
        journal.save()
        # One that hangs must not lose the others: its process ends, with the stack in its log.
        faulthandler.dump_traceback_later(FIGURE_SECONDS, exit=True)
        try:
            journal.keep(name, figure())
        except Exception as error:  # noqa: BLE001 - one figure must not lose the others
            traceback.print_exc()
            journal.failures[name] = (str(error) or repr(error)).splitlines()[0]
        faulthandler.cancel_dump_traceback_later()
        journal.save()
        _save_result(part, journal, out, config)
        if name in journal.failures and not gpu_works():
            return AGAIN
    _save_result(part, journal, out, config)
    return FAILED if journal.failures else 0


def gpu_works() -> bool:
    """Whether this process can still compute on the GPU: some errors leave it unusable."""
    import torch  # noqa: PLC0415 - slow to import

    try:
        return float(torch.ones(1, device=DEVICE).sum()) == 1
    except (RuntimeError, AssertionError):
        return False


def _save_result(part: str, journal: Journal, out: Path, config: "BenchConfig") -> None:
    from alexprep.bench.measurement import Row, result, save  # noqa: PLC0415 - slow to import

    rows: dict[str, Row] = {}
    for values in itertools.chain.from_iterable(journal.rows.values()):
        # Every case has its baseline measured with it; one row of that is enough.
        rows.setdefault(values["name"], Row(**values))
    notes = [f"Not measured: {name}: {reason}" for name, reason in journal.failures.items()]
    about = [describe_data(config.data)] if config.data else []
    settings = {**asdict(config), "data": config.data and config.data.name}
    save(result(part, "make gpu-check", rows.values(), settings, [*about, *notes]), out)


def measurements(part: str, config: "BenchConfig", data: Path) -> "Iterator[Measurement]":
    """The figures of a part, in order."""
    import torch  # noqa: PLC0415 - slow to import

    from alexnet.training.step import use_fast_kernels  # noqa: PLC0415 - slow to import

    torch.cuda.set_device(DEVICE)
    use_fast_kernels()
    if part == "layers":
        from alexnet.model.networks import code2012  # noqa: PLC0415
        from benchmarks.gpu.layers import layer_measurements  # noqa: PLC0415

        return layer_measurements(code2012(), LAYER_BATCH, DEVICE, config.rounds)
    if part == "load":
        from benchmarks.gpu.loads import load_measurements  # noqa: PLC0415 - slow to import

        return load_measurements(data, config)
    from benchmarks.gpu.steps import step_measurements  # noqa: PLC0415

    return step_measurements(torch.device(DEVICE), config.rounds)


def describe_data(data: Path) -> str:
    """What the images were: their size decides how fast they are decoded."""
    from pipelines.format import Manifest  # noqa: PLC0415 - slow to import

    manifest = Manifest.load(data)
    shards = manifest.split("train", data).shards
    count, size = (sum(getattr(shard, name) for shard in shards) for name in ("samples", "bytes"))
    return (
        f"Data set {manifest.name}: {count} JPEG files of {manifest.size} pixels, "
        f"{size / count / 1024:.0f} KiB of shard each."
    )


def _tests(part: str, out: Path) -> int:
    """The tests marked for GPUs; what they measured becomes rows next to how they went."""
    import torch  # noqa: PLC0415 - slow to import

    from benchmarks.gpu import recorder  # noqa: PLC0415

    if not _found("pytest"):
        _say("pytest is missing")
        return FAILED
    marks = "gpu or two_gpus" if torch.cuda.device_count() > 1 else "gpu"
    # Kernels run in processes of their own: here the GPU is not used.
    parallel = part == "kernels" and _found("xdist")
    words = recorder.test_options(marks, parallel=parallel)
    words += map(str, recorder.gpu_test_files(part))
    journal = Journal.load(out, part)
    journal.end_open(part)
    save = partial(keep_tests, part, journal, out)
    works = (lambda: True) if part == "kernels" else gpu_works
    return recorder.run_tests(words, journal, save, works)


def keep_tests(part: str, journal: Journal, out: Path) -> None:
    """How tests went and what they measured, as rows."""
    from alexprep.bench.measurement import Row, result, row, save  # noqa: PLC0415 - slow to import

    journal.save()
    counts = {"tests": journal.tried, "failures": journal.failures, "skipped": journal.skipped}
    rows = [row(f"GPU {part}: {kind}", [len(names)], "tests") for kind, names in counts.items()]
    rows += [Row(**values) for values in itertools.chain.from_iterable(journal.rows.values())]
    notes = [f"Failed: {name}: {reason}" for name, reason in journal.failures.items()]
    save(result(f"gpu-{part}", "make gpu-check", rows, {"device": DEVICE}, notes), out)


def tables(out: Path) -> str:
    """A table for each part, with its notes, and what it was measured on."""
    from alexprep.bench.measurement import Result, conditions, table  # noqa: PLC0415 - slow to import

    results = [
        Result.load(path) for path in sorted(out.glob("*.json")) if "journal" not in path.name
    ]
    parts = [
        f"{result.part}\n{table(result.rows)}\n" + "\n".join(result.notes) for result in results
    ]
    return "\n\n".join([*parts, *sorted({conditions(result) for result in results})])


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="for JSON, logs")
    parser.add_argument("--data", type=Path, help="a data set of 256 pixels with statistics")
    parser.add_argument("--part", choices=list(LIMITS), help="only this part, in this process")
    return parser.parse_args(words)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
