"""The frame of the benchmarks: rows, interleaved timing, tables, files of results.

A part is measured by `run(config, folder) -> list[Row]` in alexprep/bench/<part>.py. What is
compared is run in turns within one process, so that a machine that slows down slows all of it; a
ratio is the median over the rounds of the ratio within a round.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alexprep.machine import cores, machine
from pipelines.files import write_whole

PARTS = ("shard", "stats", "load", "step", "train")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """How long to measure, and on what.

    rounds: measurements of each row
    images: images a measurement works through; the parts draw their own input of this size
    data: where a part should find its input instead (a source for shard, else a data set)
    """

    rounds: int = 5
    images: int = 1024
    workers: int = 0
    device: str = "cpu"
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.images < 1 or self.workers < 0:
            raise ValueError(
                "BenchConfig wants rounds and images of at least 1 and workers of at least 0 "
                f"(0 = one a core), got {self.rounds}, {self.images} and {self.workers}."
            )

    @property
    def processes(self) -> int:
        return self.workers or cores()


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured figure.

    median, p5, p95: over `n` measurements, in `unit`
    floor: name of the row this one is held against; ratio: median of the ratios to it
    target: what the ratio (or, without a floor, the median) was promised to reach, as ">= 0.85"
    """

    name: str
    unit: str
    median: float
    p5: float
    p95: float
    n: int
    floor: str = ""
    ratio: float | None = None
    target: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The rows of one part with what they were measured on; one file in benchmarks/results."""

    part: str
    command: str
    when: str
    machine: Mapping[str, Any]
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "Result":
        raw = json.loads(path.read_text())
        raw["rows"] = tuple(Row(**row) for row in raw["rows"])
        raw["notes"] = tuple(raw["notes"])
        return cls(**raw)


def result(
    part: str, config: BenchConfig, rows: Iterable[Row], notes: Sequence[str] = ()
) -> Result:
    """Join rows with this machine and the command that measures them again."""
    return Result(
        part=part,
        command=f"alexprep bench {part}{_options(config)}",
        when=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        config={**asdict(config), "data": config.data and config.data.name},
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _options(config: BenchConfig) -> str:
    """What was not left at its default, as it is typed."""
    words = [
        f" --{field.name} {value.name if isinstance(value, Path) else value}"
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default
    ]
    return "".join(words)


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Work per second of each case in each round; a case returns the work it did (images, say).

    Every case runs once before, uncounted, and each round begins with another one.
    """
    for case in cases.values():
        case()
    rates: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            began = time.perf_counter()
            work = cases[name]()
            rates[name].append(work / (time.perf_counter() - began))
    return rates


def row(name: str, values: Sequence[float], unit: str, target: str = "") -> Row:
    """A row for measurements that are held against nothing."""
    low, high = spread(values)
    middle = statistics.median(values)
    return Row(name=name, unit=unit, median=middle, p5=low, p95=high, n=len(values), target=target)


def rows(
    rates: Mapping[str, Sequence[float]],
    *,
    floor: str,
    unit: str = "images/s",
    targets: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows for what `interleaved` gave: the floor first, the others with their ratio to it."""
    found = [row(floor, rates[floor], unit)]
    for name, values in rates.items():
        if name == floor:
            continue
        ratio = statistics.median(
            rate / base for rate, base in zip(values, rates[floor], strict=True)
        )
        plain = row(name, values, unit, (targets or {}).get(name, ""))
        found.append(replace(plain, floor=floor, ratio=ratio))
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """5th and 95th percentile, between the two values nearest to each."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(0.05), at(0.95)


def table(found: Iterable[Row]) -> str:
    """The rows as a Markdown table, which also reads well on a terminal."""
    lines = [("what", "median", "p5-p95", "n", "unit", "ratio", "target")]
    for one in found:
        ratio = f"{one.ratio:.2f} of {one.floor}" if one.ratio is not None else ""
        between = f"{number(one.p5)}-{number(one.p95)}"
        cells = (one.name, number(one.median), between, str(one.n), one.unit, ratio, one.target)
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in (lines[0], rule, *lines[1:])
    )


def number(value: float) -> str:
    """Three significant digits for small values, whole numbers with separators for large ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(found: Result, folder: Path) -> Path:
    """Write `found` as <part>-<processor>.json, over what was measured on such a machine before."""
    host = found.machine
    kind = host["gpus"][0].split(",")[0] if host["gpus"] else f"{host['cpu']} {host['cores']}"
    slug = "-".join("".join(c if c.isalnum() else " " for c in kind).lower().split())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found.part}-{slug}.json"
    write_whole(path, found.to_json().encode())
    return path
