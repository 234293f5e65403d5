"""Everything that needs a GPU, in one command of at most eight minutes: tests, then measurements.

    make gpu-check OUT=found DATA=~/imagenet256          python3 benchmarks/gpu_check.py --out found

Runs from a checkout or a copy of it with any Python that has the packages. Each part has a process
and a time limit of its own; a part that fails or is cut off keeps what it found and does not keep
the next from running. OUT gets JSON as `alexprep bench` writes it and the log of each part; a table
comes last. Exit code 1 if there is no GPU, a package is missing or any part failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

if TYPE_CHECKING:
    from alexprep.bench.frame import BenchConfig, Row

# Seconds of each part; together with the start they stay below eight minutes.
LIMITS = {"tests": 170, "load": 90, "step": 190}
PACKAGES = {
    **{name: name for name in ("torch", "triton", "numpy", "safetensors", "click", "rich")},
    **{name: name for name in ("fsspec", "pytest", "pytest_timeout")},
    "PIL": "pillow",
    "nvidia.dali": "nvidia-dali-cuda130",
}
MARKS = ("mark.gpu", "mark.two_gpus")
IMAGES, CLASSES, SIDE = 2000, 10, 256
ROUNDS = 5
GRACE = 15  # seconds in which tests that are cut off still report


def main() -> int:
    """The command; its exit code."""
    options = _options()
    useless, lacking = no_gpu(), missing()
    if useless:
        _say(f"gpu-check: {useless}; nothing was run")
        return 1
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.part:
        return run_part(options.part, out, options.data)
    failed: list[str] = []
    if lacking:
        _say(f"gpu-check: missing packages: {', '.join(lacking)}; what needs them will fail")
        failed.append("packages")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        data = options.data.resolve() if options.data else drawn(Path(folder) / "drawn")
        _say(f"gpu-check: images of {options.data or 'the demo, drawn'}, results in {out}")
        for part, seconds in LIMITS.items():
            began = time.monotonic()
            problem = _apart(part, seconds, out, data)
            _say(f"{part}: {problem or 'done'}, {time.monotonic() - began:.0f} s")
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


def _apart(part: str, seconds: int, out: Path, data: Path) -> str:
    """Run a part in a process of its own; what went wrong, or nothing."""
    command = [sys.executable, __file__, "--out", out, "--data", data, "--part", part]
    with (out / f"{part}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=HERE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Its children too: tests start processes, torch compiles in some.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"cut off after {seconds} s, see {part}.log"
    return f"failed with code {code}, see {part}.log" if code else ""


def run_part(part: str, out: Path, data: Path) -> int:
    """A part, in this process."""
    if part == "tests":
        return _tests(out)
    from alexprep.bench.frame import BenchConfig, Row, result, save  # noqa: PLC0415 - slow to import

    config = BenchConfig(rounds=ROUNDS, images=5120, device="cuda:0", data=data)
    found: list[Row] = []
    for row in _rows(part, config, data):
        found.append(row)
        save(result(part, config, found, [_about(data)]), out)
    return 0


def _rows(part: str, config: "BenchConfig", data: Path) -> "Iterator[Row]":
    if part == "load":
        from alexprep.bench.load_gpu import gpu_loads  # noqa: PLC0415 - slow to import

        return gpu_loads(data, config)
    from alexprep.bench.step_gpu import gpu_rows  # noqa: PLC0415

    return gpu_rows(config)


def _about(data: Path) -> str:
    """What the images were: their size decides how fast they are decoded."""
    from pipelines.format import Manifest  # noqa: PLC0415 - slow to import

    manifest = Manifest.load(data)
    shards = manifest.split("train", data).shards
    count, size = (sum(getattr(one, name) for one in shards) for name in ("samples", "bytes"))
    return (
        f"Data set {manifest.name}: {count} JPEG files of {manifest.size} pixels, "
        f"{size / count / 1024:.0f} KiB of shard each."
    )


def _tests(out: Path) -> int:
    """The tests marked for GPUs; what they measured becomes rows beside how they went."""
    files = [
        str(path)
        for path in sorted((HERE / "tests").glob("test_*.py"))
        if any(mark in path.read_text() for mark in MARKS)
    ]
    report = out / "tests.xml"
    import torch  # noqa: PLC0415 - slow to import

    marks = "gpu or two_gpus" if torch.cuda.device_count() > 1 else "gpu"
    # Warnings of other versions than the project's own are shown, not made failures.
    asked = ["-o", "addopts=", "-m", marks, "-W", "default", "-p", "no:cacheprovider"]
    code = subprocess.call(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rs",
            "--tb=short",
            *asked,
            f"--junitxml={report}",
            *files,
        ],
        cwd=HERE,
    )
    if report.exists():
        keep_tests(report, out)
        report.unlink()
    return code


def keep_tests(report: Path, out: Path) -> None:
    """The numbers of pytest's report as rows."""
    from alexprep.bench.frame import BenchConfig, result, row, save  # noqa: PLC0415 - slow to import

    suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {kind: int(suite.get(kind, 0)) for kind in ("tests", "failures", "errors", "skipped")}
    found = [row(f"GPU tests: {kind}", [count], "tests") for kind, count in counts.items()]
    found += [
        row(seen.get("name", ""), [float(seen.get("value", "nan"))], "as named")
        for seen in suite.iter("property")
    ]
    save(result("gpu-tests", BenchConfig(device="cuda:0"), found), out)


def tables(out: Path) -> str:
    """What was found, a table a part, and on what."""
    from alexprep.bench.frame import Result, table  # noqa: PLC0415 - slow to import

    found = [Result.load(path) for path in sorted(out.glob("*.json"))]
    parts = [f"{one.part}\n{table(one.rows)}\n" + "\n".join(one.notes) for one in found]
    where = {
        f"{', '.join(one.machine['gpus'])}; torch {one.machine['torch']}, "
        f"DALI {one.machine['nvidia-dali-cuda130']}, commit {one.machine['commit'] or 'unknown'}"
        for one in found
    }
    return "\n\n".join([*parts, *sorted(where)])


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
