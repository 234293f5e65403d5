"""Flip single bits of a data set, an unfinished one and a run, and count what becomes of each.

    python benchmarks/flips.py --flips 10000 [--seed 0] [--out build/flips]

Half of the flips are drawn over all bytes, half over all files, so that small ones get their share.
After each, the commands that read the folder are run in this process: `cat` of every key, `verify`
and the readers of the loader on a data set; `shard` on an unfinished one; `train`, then what
`report`, `predict` and `eval` read, on a run. Then the folder is put back. The outcomes:

    refused   an error or a fault of `verify` names what is wrong
    repaired  the command ends with the bytes of a folder without the flip
    noted     it goes on, and a note or warning names the file
    harmless  nothing is said, and all data that is read is the same
    believed  other data, and not a word: a defect, kept in --out as a line of believed.txt

A table is printed; the exit code is 1 if a flip was believed.
"""

import argparse
import contextlib
import io
import json
import random
import re
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_targets import dataset_config, make_dataset, make_run, run_options

from alexnet.errors import RunError
from alexnet.training import checkpoint
from alexprep.dataset.card import Card
from alexprep.dataset.lookup import read_sample
from alexprep.dataset.manifest import begin
from alexprep.dataset.shard import RunOptions, shard
from alexprep.dataset.shard_writer import write_shard
from alexprep.dataset.splits import plan_source
from alexprep.dataset.store import LocalStore
from alexprep.dataset.verify import verify
from alexprep.errors import PrepareError
from alexprep.model.predictions import Predictions
from alexprep.model.run_folder import read_config
from alexprep.model.trained import load_trained
from alexprep.model.training import train
from alexprep.report.run_summary import read_run
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from pipelines.planestore import PlanesReader
from pipelines.shards import SplitReader

OWN = (RunError, PrepareError, DataError)
OUTCOMES = ("refused", "repaired", "noted", "harmless", "believed")
# Written anew by every call, or read by TensorBoard, which has its own checksums.
PASSING = re.compile(r"events\.out|\.lock$")
Files = dict[str, bytes]
Check = Callable[[str], str]


def snapshot(root: Path) -> Files:
    """Every file below a folder by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not PASSING.search(path.name)
    }


def restore(root: Path, files: Files) -> None:
    """Put a folder back as it was; a file that is as it was is left alone."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        if str(path.relative_to(root)) not in files:
            path.unlink()
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)


class Folder(ABC):
    """A folder whose bits are flipped; subclasses run the commands that read it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = snapshot(root)
        self.expected = self.contents()

    @abstractmethod
    def contents(self) -> Any:
        """All data that is read from the folder."""

    def outcome(self, name: str) -> str:
        """What becomes of a folder whose file `name` has a flipped bit."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                quiet = self.run()
                same = self.contents() == self.expected
        except OWN:
            return "refused"
        path = self.root / name
        if same and path.is_file() and path.read_bytes() == self.files[name]:
            return "repaired"
        if not quiet or path.name in said.getvalue():
            return "noted"
        return "harmless" if same else "believed"

    @abstractmethod
    def run(self) -> bool:
        """Run the command that finds damage; whether it had nothing to say."""


class DataSet(Folder):
    """A finished data set."""

    def contents(self) -> Any:
        manifest = Manifest.load(self.root)
        samples: list[Any] = []
        for split in manifest.splits:
            reader = SplitReader(self.root, manifest, split, "sha256")
            planes = PlanesReader(self.root, manifest, split, "sha256")
            for row, key in enumerate(reader.keys()):
                image, decoded = reader.read(row), planes.read(row)
                samples.append(
                    (image.jpg.tobytes(), image.label, decoded.jpg.tobytes(), decoded.label)
                )
                samples.append(read_sample(self.root, key))
        stats = ImageStats.load(self.root, manifest)
        arrays = json.dumps(stats.to_dict()), stats.mean_image_HWC.tobytes()
        return manifest, samples, arrays, Card.load(self.root).publication

    def run(self) -> bool:
        for name in ("ant_val_0", "bee_val_1", "cat_train_0"):
            read_sample(self.root, name)
        result = verify(self.root, workers=1)
        if result.faults:
            raise DataError(result.faults[0])
        for warning in result.warnings:
            sys.stderr.write(f"{warning}\n")
        return not result.warnings


class Unfinished(Folder):
    """A data set whose `shard` was killed after its shards and before its manifest."""

    def __init__(self, root: Path, source: Path, whole: Files) -> None:
        self.source, self.whole = source, whole
        super().__init__(root)

    def contents(self) -> Any:
        return None

    def run(self) -> bool:
        shard(self.source, self.root, dataset_config(), RunOptions(workers=1))
        return True

    def outcome(self, name: str) -> str:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self.run()
        except OWN:
            return "refused"
        files = snapshot(self.root)
        # Without statistics and planes, which it does not have, the card is another.
        names = [name for name in self.whole if name.endswith((".tar", ".idx", "manifest.json"))]
        same = all(files.get(name) == self.whole[name] for name in names)
        return "repaired" if same else "believed"


class Run(Folder):
    """A finished run: `train` resumes from its newest checkpoint that is whole."""

    def __init__(self, root: Path, dataset: Path) -> None:
        self.dataset = dataset
        super().__init__(root)

    def contents(self) -> Any:
        config = read_config(self.root)
        summary = read_run(self.root, "cpu")
        saved = Predictions.load(self.root / "a.predictions")
        trained = load_trained(self.root)
        weights = {name: tensor.tolist() for name, tensor in trained.model.state_dict().items()}
        newest = checkpoint.load(checkpoint.steps(self.root)[-1], ("model", "velocity", "chance"))
        state = {
            part: {name: tensor.tolist() for name, tensor in tensors.items()}
            for part, tensors in newest.parts.items()
        }
        log = [record_without_speed(record) for record in (*summary.steps, *summary.epochs)]
        return (
            (config.recipe, config.data, config.calls[0], summary.settings, log),
            (saved.probabilities.tolist(), saved.labels.tolist(), saved.keys, saved.classes),
            (saved.views, saved.split, saved.dataset, saved.source),
            (weights, trained.augment, trained.classes, state),
        )

    def run(self) -> bool:
        train(self.dataset, self.root, run_options())
        return True


def record_without_speed(record: Any) -> tuple[Any, ...]:
    """What is the same for steps that are taken again."""
    names = ("epoch", "batch", "batches", "loss", "lr", "validation_loss", "top1", "top5")
    return tuple(getattr(record, name, None) for name in names)


def kind_of(label: str, name: str) -> str:
    """Files that differ by their number or split are one row of the table."""
    return f"{label}: {re.sub(r'(train|validation)(?=[-/])|-[0-9a-f]{6,16}', '*', name)}"


def draw(files: Files, chance: random.Random, over_bytes: bool) -> tuple[str, int]:
    """A file, and one of its bits."""
    names = [name for name, data in files.items() if data]
    weights = [len(files[name]) for name in names] if over_bytes else None
    name = chance.choices(names, weights)[0]
    return name, chance.randrange(8 * len(files[name]))


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.unlink()  # a hard link of it (best.safetensors) is another file on a disk that fails
    path.write_bytes(data)


def make_folders(folder: Path) -> dict[str, Folder]:
    """The three folders, small and whole."""
    root = make_dataset(folder)
    run = make_run(root, folder / "run")
    begun = folder / "begun" / "set"
    begin_dataset(folder / "source", begun)
    return {
        "data set": DataSet(root),
        "unfinished": Unfinished(begun, folder / "source", snapshot(root)),
        "run": Run(run, root),
    }


def begin_dataset(source: Path, root: Path) -> None:
    """What `shard` leaves if it is killed before it writes the manifest."""
    store, plan = LocalStore(root), plan_source(source, dataset_config(), workers=1)
    with store.locked():
        begin(store, plan)
        for task in plan.tasks(store.url, {}, skip=False):
            write_shard(task)


def count_flips(
    folders: dict[str, Folder], flips: int, seed: int, out: Path
) -> dict[str, Counter[str]]:
    """Outcomes by kind of file."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    every = {
        f"{label}/{name}": data for label, f in folders.items() for name, data in f.files.items()
    }
    for number in range(flips):
        chance = random.Random(f"{seed}/{number}")
        path, bit = draw(every, chance, number % 2 == 0)
        label, _, name = path.partition("/")
        folder = folders[label]
        flip(folder.root / name, bit)
        try:
            result = folder.outcome(name)
        except Exception as error:  # noqa: BLE001 - a traceback is a defect
            result = "believed"
            name = f"{name}: {type(error).__name__}: {error}"
        counts[kind_of(label, path.partition("/")[2])][result] += 1
        if result == "believed":
            out.mkdir(parents=True, exist_ok=True)
            with (out / "believed.txt").open("a") as file:
                file.write(f"{number}: {label}, bit {bit} of {name}\n")
        restore(folder.root, folder.files)
    return counts


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown: flips and outcomes of each kind of file."""
    lines = [f"| file | flips | {' | '.join(OUTCOMES)} |", "| --- " * (len(OUTCOMES) + 2) + "|"]
    total = sum(counts.values(), Counter[str]())
    for name, row in (*sorted(counts.items()), ("all", total)):
        cells = [row.total(), *(row[outcome] for outcome in OUTCOMES)]
        lines.append(f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/flips"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    memory = Path("/dev/shm")  # a disk would write every flip
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        counts = count_flips(make_folders(Path(folder)), options.flips, options.seed, options.out)
    sys.stdout.write(f"{table(counts)}\n")
    return 1 if any(row["believed"] for row in counts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
