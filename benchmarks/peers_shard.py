"""`alexprep shard` next to what others write data sets with, on the same photographs and cores.

    python benchmarks/peers_shard.py SOURCE --venvs VENVS --state FILE --out benchmarks/results

SOURCE is a folder of class folders; benchmarks/peers/README.md says how to make VENVS. Everybody
reads the same originals from the file cache, resizes the shorter side to 256 antialiased, cuts the
middle square, encodes at quality 95 and writes to the same disk, in two processes that work; pools
have one more that writes. Each case is a process of its own, timed from outside on few images and
on many; the rate is that of the images between, so that starting interpreters, importing and
opening pools, equal in both, count for nobody (what few images take is the median of the rounds).
Cases take turns; the rounds of earlier calls are kept in a file, and a call adds to them.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rounds import Case, Rounds, finish, peer_options, ratios

from alexprep.bench.measurement import Row, compared

HERE = Path(__file__).parent / "peers"
SMALL, LARGE, OF_A_SHARD = 500, 2000, 250
OURS, BASELINE = "alexprep shard", "bare loop in memory"
SIMD = "Pillow-SIMD pool + webdataset"
CASES = (
    Case(OURS, "", "alexprep", ("-m", "alexprep", "shard")),
    Case(BASELINE, "", "", ("shard_baseline.py",)),
    Case("Pillow pool + webdataset", "webdataset", "webdataset pillow", ("shard_webdataset.py",)),
    Case(
        "Pillow + webdataset, 1 process",
        "webdataset",
        "",
        ("shard_webdataset.py", "--workers", "1"),
    ),
    Case(
        "OpenCV pool + webdataset",
        "img2dataset",
        "opencv-python-headless",
        ("shard_webdataset.py", "--codec", "opencv"),
    ),
    Case(SIMD, "", "", ("shard_webdataset.py",)),
    Case(
        "pyvips pool + webdataset",
        "pyvips",
        "pyvips pyvips-binary",
        ("shard_webdataset.py", "--codec", "pyvips"),
    ),
    Case("FFCV DatasetWriter", "ffcv", "ffcv pillow", ("shard_ffcv.py",)),
    Case(
        "streaming MDSWriter + Pillow pool",
        "streaming",
        "mosaicml-streaming pillow",
        ("shard_streaming.py",),
    ),
    Case("LitData optimize", "litdata", "litdata pillow", ("shard_litdata.py",)),
    Case("img2dataset", "img2dataset", "img2dataset", ("shard_img2dataset.py",)),
)
NOTES = (
    f"The rate is that of {LARGE - SMALL:,} images: a run on {LARGE:,} less a run on {SMALL:,}.",
    "Pillow is the plain one of PyPI unless SIMD is said; Pillow, Pillow-SIMD and alexprep resize "
    "with the antialiased bilinear filter, OpenCV and img2dataset with INTER_AREA, "
    "libvips with its thumbnail, which decodes at a reduced size where it can. All JPEGs are "
    "4:2:0 of quality 95; img2dataset alone keeps gray ones gray. alexprep alone hashes what it "
    "reads and writes, permutes the images, writes an index and syncs its files. FFCV, LitData and "
    "streaming store image and label, the others a tar with the wnid as well (img2dataset its own "
    "metadata, and a parquet file). The bare loop reads once and writes nothing.",
    "Starting FFCV, LitData, streaming and img2dataset takes seconds and varies, which the "
    "difference of two runs passes on: see their spread.",
)


def main() -> None:
    """Add rounds to those in a file, and write the result of all."""
    parser = peer_options(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    state = Rounds.load(options.state)
    with tempfile.TemporaryDirectory(prefix="peers-shard-") as folder:
        bench = Bench(Path(folder), options.source, options.venvs, options.workers)
        cases = [case for case in CASES if options.only in case.name]
        measure(bench, cases, state, options.rounds)
    sys.stdout.write(f"{finish('peers-shard', rows_of(state), state, NOTES, options.out)}\n")


class Bench:
    """The sources of two sizes, and how a case is run on one of them."""

    def __init__(self, folder: Path, source: Path, venvs: Path, workers: int) -> None:
        self.folder, self.venvs, self.workers = folder, venvs, workers
        originals = sorted(path for path in source.rglob("*") if path.is_file())
        for path in originals:
            path.read_bytes()
        self.sources = {count: self._links(originals, count) for count in (SMALL, LARGE)}

    def _links(self, originals: list[Path], count: int) -> Path:
        root = self.folder / f"source-{count}"
        for number in range(count):
            path = originals[number % len(originals)]
            link = root / path.parent.name / f"{path.stem}_{number}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        return root

    def run(self, case: Case, count: int) -> tuple[float, float]:
        """(seconds, bytes on disk an image) of one run; RuntimeError with the end of its errors."""
        out, scratch = self.folder / "out", self.folder / "scratch"
        scratch.mkdir()
        words = [*case.command(self.venvs, HERE), str(self.sources[count]), str(out)]
        words += [] if "--workers" in words else ["--workers", str(self.workers)]
        words += ["--shards", str(count // OF_A_SHARD)] if case.name == OURS else []
        # Some peers empty folders of the temporary folder.
        environment: Mapping[str, str] = {**os.environ, "TMPDIR": str(scratch)}
        start = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        seconds = time.perf_counter() - start
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        for path in (scratch, *self.folder.glob("out*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if done.returncode:
            raise RuntimeError(f"{case.name}: {(done.stderr.strip() or 'it failed')[-300:]}")
        return seconds, written / count


def measure(bench: Bench, cases: list[Case], state: Rounds, rounds: int) -> None:
    """Run new cases once unmeasured, then all interleaved; note and leave out what cannot run."""
    able: list[Case] = []
    for case in cases:
        try:
            if case.name not in state.rates:
                state.versions[case.name] = case.versions(bench.venvs)
                bench.run(case, SMALL)
            able.append(case)
        except (RuntimeError, OSError) as error:
            state.failures[case.name] = str(error)
    for _ in range(rounds):
        first = len(state.rates.get(OURS, ())) % len(able)  # each round begins with another one
        for case in able[first:] + able[:first]:
            starts = state.starts.setdefault(case.name, [])
            starts.append(bench.run(case, SMALL)[0])
            seconds, written = bench.run(case, LARGE)
            rate = (LARGE - SMALL) / (seconds - statistics.median(starts))
            state.add(case.name, rate)
            state.image_bytes[case.name] = round(written)
        state.save()


def rows_of(state: Rounds) -> list[Row]:
    """Every case compared with the bare loop, then ours with every peer."""
    peers = {
        case.name: "" if case.name == SIMD else ">= 1.6"
        for case in CASES
        if case.name in state.rates and case.name not in (OURS, BASELINE)
    }
    rows = compared(state.rates, baseline=BASELINE, targets={OURS: ">= 0.92"})
    return rows + ratios(state.rates, OURS, peers)


if __name__ == "__main__":
    main()
