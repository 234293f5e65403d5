"""Measured figures: timing in turns, rows with their ratio to a baseline, tables, result files."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alexprep.machine import describe, machine
from pipelines.atomic import write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured figure.

    median, p5, p95: over `n` measurements, in `unit`
    baseline: name of the row it is compared with; ratio: median of the ratios to it
    target: what the ratio (or, without a baseline, the median) should reach, as ">= 0.85"
    """

    name: str
    unit: str
    median: float
    p5: float
    p95: float
    n: int
    baseline: str = ""
    ratio: float | None = None
    target: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Rows with the command and the machine that measured them: one file in benchmarks/results."""

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
        raw: dict[str, Any] = json.loads(path.read_text())
        # Files of 2026-11 call the baseline a floor.
        rows = [{"baseline": row.pop("floor", ""), **row} for row in raw["rows"]]
        raw |= {"rows": tuple(Row(**row) for row in rows), "notes": tuple(raw["notes"])}
        return cls(**raw)


def result(
    part: str,
    command: str,
    rows: Iterable[Row],
    config: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> Result:
    """Rows measured now, on this machine."""
    return Result(
        part=part,
        command=command,
        when=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        config=config,
        rows=tuple(rows),
        notes=tuple(notes),
    )


def timed(case: Callable[[], float]) -> float:
    """Work per second of a case that returns the work it did."""
    start = time.perf_counter()
    work = case()
    return work / (time.perf_counter() - start)


def interleaved(
    cases: Mapping[str, Callable[[], float]],
    rounds: int,
    rate: Callable[[Callable[[], float]], float] = timed,
) -> dict[str, list[float]]:
    """The rate of every case in every round.

    All cases run in turn, so that a machine that slows down slows all of them. Each runs once
    before, uncounted, and each round begins with another one.

    Args:
        cases: each returns the work it did (images, say).
        rounds: measurements of each case.
        rate: work per second of a case; replace it where a case has a clock of its own.
    """
    for case in cases.values():
        rate(case)
    rates: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(rate(cases[name]))
    return rates


def row(name: str, values: Sequence[float], unit: str, target: str = "") -> Row:
    """A row for measurements without a baseline."""
    low, high = spread(values)
    median = statistics.median(values)
    return Row(name=name, unit=unit, median=median, p5=low, p95=high, n=len(values), target=target)


def compared(
    rates: Mapping[str, Sequence[float]],
    *,
    baseline: str,
    unit: str = "images/s",
    targets: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows for what `interleaved` returns: the baseline first, the others with their ratio to it.

    A ratio is the median over the rounds of the ratio within a round.
    """
    rows = [row(baseline, rates[baseline], unit)]
    for name, values in rates.items():
        if name == baseline:
            continue
        pairs = zip(values, rates[baseline], strict=True)
        ratio = statistics.median(rate / base for rate, base in pairs)
        plain = row(name, values, unit, (targets or {}).get(name, ""))
        rows.append(replace(plain, baseline=baseline, ratio=ratio))
    return rows


def spread(values: Sequence[float]) -> tuple[float, float]:
    """5th and 95th percentile, interpolated linearly."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return cuts[0], cuts[-1]


def conditions(measured: Result) -> str:
    """What was measured when, on what."""
    commit = measured.machine["commit"] or "unknown"
    return f"{describe(measured.machine)}; {measured.when}, commit {commit}"


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, which also reads well on a terminal."""
    lines = [("what", "median", "p5-p95", "n", "unit", "ratio", "target")]
    for figure in rows:
        ratio = f"{figure.ratio:.2f} of {figure.baseline}" if figure.ratio is not None else ""
        between = f"{number(figure.p5)}-{number(figure.p95)}"
        numbers = (number(figure.median), between, str(figure.n))
        lines.append((figure.name, *numbers, figure.unit, ratio, figure.target))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = tuple("-" * width for width in widths)
    padded = (
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        for line in (lines[0], rule, *lines[1:])
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def number(value: float) -> str:
    """Three significant digits for small values, whole numbers with separators for large ones."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(measured: Result, folder: Path) -> Path:
    """Write <part>-<processor>.json; it replaces an earlier result of such a machine.

    Results with fewer instruction sets than the processor has are named after those.
    """
    host = measured.machine
    kind = host["gpus"][0].split(",")[0] if host["gpus"] else f"{host['cpu']} {host['cores']}"
    limits = {word.partition("=")[2].lower() for word in host.get("isa", "").split(", ")} - {""}
    kind = " ".join([kind, *sorted(limits)])
    slug = "-".join("".join(c if c.isalnum() else " " for c in kind).lower().split())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{measured.part}-{slug}.json"
    write_whole(path, measured.to_json().encode())
    return path
