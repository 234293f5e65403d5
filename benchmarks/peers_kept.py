"""What the comparisons with peers share: cases with their interpreters, rounds kept, results."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from alexprep.bench.frame import Result, Row, rows, save, table
from alexprep.machine import machine

ASK = "import sys, importlib.metadata as m; print([f'{n} {m.version(n)}' for n in sys.argv[1:]])"


def options(about: str | None) -> argparse.ArgumentParser:
    """What every comparison is told: the photographs, the interpreters, the rounds."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--venvs", type=Path, required=True)
    parser.add_argument("--kept", type=Path, required=True, help="file with the rounds so far")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to add")
    parser.add_argument("--only", default="", help="cases whose names have this in them")
    parser.add_argument("--out", type=Path, help="folder for the result")
    return parser


class Case(NamedTuple):
    """A way to do the work: in which virtual environment ("" is this one), with which script."""

    name: str
    venv: str
    packages: str
    words: tuple[str, ...]

    def python(self, venvs: Path) -> str:
        return str(venvs.absolute() / self.venv / "bin" / "python") if self.venv else sys.executable

    def command(self, venvs: Path, scripts: Path) -> list[str]:
        words = [str(scripts / word) if word.endswith(".py") else word for word in self.words]
        return [self.python(venvs), *words]

    def versions(self, venvs: Path) -> str:
        """Python's and the packages', as that interpreter has them; OSError if there is none."""
        words = [self.python(venvs), "-c", ASK, *self.packages.split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return ", ".join(json.loads(done.stdout.replace("'", '"')))


@dataclass(kw_only=True, slots=True)
class Kept:
    """The rounds measured so far, in a file: one call may be too long for a machine's quiet."""

    path: Path
    rates: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    starts: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    bytes_an_image: dict[str, float] = field(default_factory=dict[str, float])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def load(cls, path: Path) -> "Kept":
        raw: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return cls(path=path, **raw)

    def add(self, name: str, rate: float, size: float) -> None:
        self.rates.setdefault(name, []).append(rate)
        self.bytes_an_image[name] = round(size)

    def save(self) -> None:
        raw = asdict(self)
        del raw["path"]
        self.path.write_text(json.dumps(raw, indent=1) + "\n")


def ratios(
    rates: Mapping[str, Sequence[float]], ours: str, targets: Mapping[str, str]
) -> list[Row]:
    """Ours beside each of the peers in `targets`."""
    found: list[Row] = []
    for peer, target in targets.items():
        pair = {peer: rates[peer], ours: rates[ours]}
        found += rows(pair, floor=peer, targets={ours: target})[1:]
    return found


def keep_result(
    part: str, found: Sequence[Row], kept: Kept, notes: Sequence[str], out: Path | None
) -> str:
    """The table; with `out` also a file of results there."""
    kept.save()
    sizes = ", ".join(f"{name} {size:,}" for name, size in kept.bytes_an_image.items() if size)
    versions = "; ".join(f"{name}: {said}" for name, said in kept.versions.items() if said)
    said = [*notes, *([f"Bytes on disk an image: {sizes}."] if sizes else [])]
    said += [f"Versions: {versions}."] if versions else []
    said += [f"Not measured: {name}: {why}" for name, why in kept.failures.items()]
    result = Result(
        part=part,
        command=f"python benchmarks/{part.replace('-', '_')}.py",
        when=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        config={"rounds": max(map(len, kept.rates.values()), default=0)},
        rows=tuple(found),
        notes=tuple(said),
    )
    if out is not None:
        save(result, out)
    return "\n\n".join([table(found), *said])
