"""Our loader next to what others load the same photographs with, on the same two cores.

    python benchmarks/peers_load.py SOURCE --venvs VENVS --data DATA --state FILE --out RESULTS

DATA is filled on the first call: every peer's own writer makes its form of the same 256-pixel
JPEGs. Everybody then gives float32 batches of 128 random 227-pixel crops, half of them mirrored,
less a mean, in random order, with two threads or processes. Each loader is a process that stays
open and idle between its turns; a round is an epoch, clocked from the 6th to the 21st batch. Next
to images/s stands the time of processors an image takes, which other work on the machine changes
less.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rounds import Case, Rounds, finish, peer_options, ratios

from alexprep.bench.measurement import Row, compared, row
from alexprep.dataset.decode import store_planes
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from pipelines.format import Manifest

HERE = Path(__file__).parent / "peers"
IMAGES, AHEAD, COUNT = 3000, 5, 16
SHAPE, DTYPES = [128, 3, 227, 227], ("float32", "float")
OURS, BARE = "alexprep", "bare DALI, own reader"
PLANES, TURBO, TBL = "alexprep, planes", "TurboLoader, tar", "TurboLoader, decoded file"
PLAIN = "alexprep, mean colour, no lighting"
FFCV, TORCH, WEBDATASET = "FFCV, channels_last", "torch DataLoader + Pillow", "webdataset"
TARGETS = {BARE: ">= 0.97", FFCV: ">= 1.1", TORCH: ">= 2.9", WEBDATASET: ">= 2.7"}
CASES = (
    Case(OURS, "", "nvidia-dali-cuda130", ("load_alexprep.py", "alexprep", "NCHW")),
    Case("alexprep, channels_last", "", "", ("load_alexprep.py", "alexprep", "channels_last")),
    Case(PLAIN, "", "", ("load_alexprep.py", "alexprep", "plain")),
    Case("alexprep, torch", "", "", ("load_alexprep.py", "alexprep", "torch")),
    Case(PLANES, "", "numba", ("load_alexprep.py", "alexprep", "planes")),
    Case(BARE, "", "", ("load_alexprep.py", "alexprep", "bare")),
    Case(FFCV, "ffcv", "ffcv numba", ("load_ffcv.py", "ffcv", "channels_last")),
    Case("FFCV, NCHW", "ffcv", "", ("load_ffcv.py", "ffcv", "NCHW")),
    Case(WEBDATASET, "webdataset", "webdataset pillow", ("load_webdataset.py", "alexprep")),
    Case(TORCH, "webdataset", "torch pillow", ("load_torch.py", "files")),
    Case("LitData", "litdata", "litdata pillow", ("load_litdata.py", "litdata")),
    Case("streaming", "streaming", "mosaicml-streaming pillow", ("load_streaming.py", "streaming")),
    Case(TURBO, "turboloader", "turboloader", ("load_turboloader.py", "turboloader", "tar")),
    Case(TBL, "turboloader", "", ("load_turboloader.py", "turboloader", "tbl")),
    Case("SPDL", "spdl", "spdl", ("load_spdl.py", "files")),
    Case("datago", "datago", "datago", ("load_datago.py", "files")),
    Case(
        "torch DataLoader + torchcodec",
        "torchcodec",
        "torch torchcodec",
        ("load_torchcodec.py", "files"),
    ),
)
# They hold decoded pixels, as our planes do.
STORED = (TBL,)
NOTES = (
    f"{IMAGES:,} photographs; ours also subtracts the mean image instead of a mean colour and "
    "lights the images. FFCV decodes with its fast, less exact transform; its memory format is "
    "channels_last, and NCHW costs a copy. webdataset draws shards with repeats and mixes 1,000 "
    "samples; the others permute all.",
    "TurboLoader has no crop of a fixed size: from the tar it resizes whole images, from its file "
    "of decoded pixels (196,608 bytes an image, ours of planes 98,304) a region of random size; it "
    "divides by ImageNet's deviations. SPDL decodes with FFmpeg, whose pixels differ.",
)


def main() -> None:
    """Add rounds to those in a file, and write the result of all."""
    parser = peer_options(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the peers' data sets")
    options = parser.parse_args()
    state = Rounds.load(options.state)
    options.data.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(options.data)  # which some peers empty folders of
    cases = [case for case in CASES if options.only in case.name]
    prepare(options.source, options.data, options.venvs, state)
    if options.rounds:
        measure(cases, options.data, options.venvs, state, options.rounds)
    if state.rates:
        text = finish("peers-load", rows_of(state), state, NOTES, options.out)
        sys.stdout.write(f"{text}\n")


def prepare(source: Path, data: Path, venvs: Path, state: Rounds) -> None:
    """Every peer's data set of IMAGES photographs, where it is not there yet."""
    links = data / "source"
    originals = sorted(path for path in source.rglob("*") if path.is_file())
    for number in range(0 if links.exists() else IMAGES):
        path = originals[number % len(originals)]
        link = links / path.parent.name / f"{path.stem}_{number}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())
    if not (data / "alexprep").exists():
        options = RunOptions(splits=("train",), workers=2)
        shard(links, data / "alexprep", ShardConfig(shards=8), options)
        compute_stats(data / "alexprep")
    if not (data / "files").exists():
        extract(data / "alexprep", data / "files")
    store_planes(data / "alexprep", ("train",))
    for name in ("ffcv", "litdata", "streaming", "turboloader"):
        target, partial = data / name, data / f"{name}-partial"
        words = Case(name, name, "", (f"shard_{name}.py",)).command(venvs, HERE)
        if not target.exists():
            shutil.rmtree(partial, ignore_errors=True)
            # It stores the pixels of JPEGs as they are.
            images = data / "files" if name == "turboloader" else links
            done = subprocess.run(
                [*words, str(images), str(partial)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                state.failures[f"{name}'s writer"] = done.stderr[-300:]
            else:
                partial.rename(target)


def extract(root: Path, out: Path) -> None:
    """The JPEGs of our shards as files in class folders."""
    wnids = [wnid for wnid, _ in Manifest.load(root).classes]
    for path in sorted((root / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            sample: dict[str, bytes] = {}
            for member in tar:
                stem, _, kind = member.name.partition(".")
                stream = tar.extractfile(member)
                sample[kind] = stream.read() if stream else b""
                if {"jpg", "cls"} <= sample.keys():
                    folder = out / wnids[int(sample["cls"])]
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{stem}.jpg").write_bytes(sample["jpg"])
                    sample = {}


class Loader:
    """A loader's process, which makes a round when it is asked."""

    def __init__(self, case: Case, data: Path, venvs: Path, stack: ExitStack) -> None:
        script, folder, *words = case.words
        command = [case.python(venvs), str(HERE / script), str(data / folder), *words]
        log = stack.enter_context((data / f"{case.name}.log").open("w"))
        self.name = case.name
        self.process = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        )
        self.round()

    def round(self) -> tuple[float, float]:
        """Images/s, and microseconds of processors an image.

        RuntimeError where the process ends or gives other batches than asked for.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{AHEAD} {COUNT}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        shape, kind = answer["first"]
        if shape != SHAPE or not kind.endswith(DTYPES) or answer["images"] != COUNT * SHAPE[0]:
            raise RuntimeError(f"it gave {answer['images']} images, of {shape} {kind}")
        return answer["images"] / answer["seconds"], 1e6 * answer["cpu"]


def measure(cases: list[Case], data: Path, venvs: Path, state: Rounds, rounds: int) -> None:
    """Open every loader and let it make an uncounted round, then take turns."""
    with ExitStack() as stack:
        loaders: list[Loader] = []
        for case in cases:
            try:
                state.versions[case.name] = case.versions(venvs)
                loaders.append(Loader(case, data, venvs, stack))
            except (RuntimeError, OSError) as error:
                state.failures[case.name] = str(error)
        for _ in range(rounds):
            first = len(state.rates.get(OURS, ())) % len(loaders)  # each begins with another
            for loader in loaders[first:] + loaders[:first]:
                rate, processor = loader.round()
                state.add(loader.name, rate)
                state.cpu.setdefault(loader.name, []).append(processor)
            state.save()


def rows_of(state: Rounds) -> list[Row]:
    """Every case compared with bare DALI, then ours with every peer."""
    peers = {
        case.name: TARGETS.get(case.name, "")
        for case in CASES
        if case.name in state.rates and not case.name.startswith(OURS) and case.name != BARE
    }
    rows = compared(state.rates, baseline=BARE, targets={OURS: TARGETS[BARE]})
    stored = {name: target for name, target in peers.items() if name in STORED}
    decoding = {name: target for name, target in peers.items() if name not in STORED}
    same = {FFCV: TARGETS[FFCV]} if FFCV in state.rates else {}
    rows += ratios(state.rates, OURS, decoding) + ratios(state.rates, PLAIN, same)
    if PLANES in state.rates:
        rows += ratios(state.rates, PLANES, {OURS: ">= 3", **stored})
    return rows + [row(f"{name}, processor", us, "us") for name, us in state.cpu.items()]


if __name__ == "__main__":
    main()
