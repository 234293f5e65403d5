"""Rounds of a comparison, kept in a file, so that a machine need be quiet for one at a time only.

Also what the comparisons with peers share: their options, and cases with interpreters of their own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from alexprep.bench.measurement import Row, compared, result, save, table

VERSIONS = (
    "import sys, importlib.metadata as m, json; "
    "print(json.dumps([f'{n} {m.version(n)}' for n in sys.argv[1:]]))"
)


def peer_options(about: str | None) -> argparse.ArgumentParser:
    """The options of every comparison with peers."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--venvs", type=Path, required=True, help="see benchmarks/peers/README.md")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    add_round_options(parser, rounds=5)
    return parser


def add_round_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The options of everything that adds rounds to a file."""
    parser.add_argument("--state", type=Path, required=True, help="file with the rounds so far")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds to add")
    parser.add_argument("--out", type=Path, help="folder for the result")


class Case(NamedTuple):
    """A way to do the work: a script in a virtual environment ("" is this one)."""

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
        """The packages' versions in that interpreter; OSError if it does not exist."""
        words = [self.python(venvs), "-c", VERSIONS, *self.packages.split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return ", ".join(json.loads(done.stdout))


@dataclass(kw_only=True, slots=True)
class Rounds:
    """What was measured so far.

    Attributes:
        rates: of each case or figure, a value for each round.
        cpu: microseconds of processors an image of each case.
        starts: seconds of a run on few images, where start-up is subtracted.
        image_bytes: on disk, for each image.
        versions: of each case's packages.
        failures: why a case was not measured.
    """

    path: Path
    rates: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    cpu: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    starts: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    image_bytes: dict[str, float] = field(default_factory=dict[str, float])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def load(cls, path: Path) -> "Rounds":
        raw: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return cls(path=path, **raw)

    def add(self, name: str, value: float) -> None:
        self.rates.setdefault(name, []).append(value)

    def save(self) -> None:
        raw = asdict(self)
        del raw["path"]
        self.path.write_text(json.dumps(raw, indent=1) + "\n")


def ratios(
    rates: Mapping[str, Sequence[float]], ours: str, targets: Mapping[str, str]
) -> list[Row]:
    """Ours compared with each of the peers in `targets`."""
    rows: list[Row] = []
    for peer, target in targets.items():
        pair = {peer: rates[peer], ours: rates[ours]}
        rows += compared(pair, baseline=peer, targets={ours: target})[1:]
    return rows


def finish(
    part: str, rows: Sequence[Row], rounds: Rounds, notes: Sequence[str], out: Path | None
) -> str:
    """Save the rounds, and with `out` the result; the table and the notes."""
    rounds.save()
    sizes = ", ".join(f"{name} {size:,}" for name, size in rounds.image_bytes.items() if size)
    versions = "; ".join(f"{name}: {text}" for name, text in rounds.versions.items() if text)
    lines = [*notes, *([f"Bytes on disk an image: {sizes}."] if sizes else [])]
    lines += [f"Versions: {versions}."] if versions else []
    lines += [f"Not measured: {name}: {reason}" for name, reason in rounds.failures.items()]
    if out is not None:
        command = f"python benchmarks/{part.replace('-', '_')}.py"
        config = {"rounds": max(map(len, rounds.rates.values()), default=0)}
        save(result(part, command, rows, config, lines), out)
    return "\n\n".join([table(rows), *lines])
