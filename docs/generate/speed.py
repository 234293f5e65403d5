"""Speed with all instructions of a processor and with AVX2 alone, from benchmarks/avx2.py.

For README.md and docs/notes/results.md.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alexprep.bench.measurement import Result, Row, number
from docs.generate.tables import table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
# Figure -> its name in the results; {} is the number of processes.
SHORT = {
    "`shard`, photographs": "alexprep shard, {} processes",
    "loader, crops of 227, float32, 2 threads": "alexprep dali",
    "training step, full size, batch 64, float32": "float32",
}
FULL = {
    "loader, planes": "alexprep planes",
    **SHORT,
    "training step, full size, batch 64, bfloat16": "bf16",
    "training step, smoke size, batch 128, float32": "smoke size, float32",
    "training step, smoke size, batch 128, bfloat16": "smoke size, bf16",
}
NOT_MEASURED = "Not measured yet: `benchmarks/avx2.py`.\n"


def compared(figures: dict[str, str] = FULL, results: Path = RESULTS) -> str:
    """Two rows for each figure: of the processor as it is, and limited to AVX2."""
    measured = [Result.load(path) for path in sorted(results.glob("avx2-*.json"))]
    if not measured:
        return NOT_MEASURED
    rows = [row for name, key in figures.items() for row in _rows(name, key, measured)]
    return table(("images/s", "instruction sets", "measured", "compared with"), rows) + (
        "".join(sorted({f"\n{_machine(result)}.\n" for result in measured}))
    )


def _rows(name: str, key: str, measured: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for result in sorted(measured, key=_is_limited):
        row = _find(result, key.format(result.machine["cores"]))
        if row is not None:
            baseline = _find(result, row.baseline)
            base = f"{row.baseline} {number(baseline.median)}" if baseline else ""
            yield name, _sets(result), number(row.median), f"{base} ({row.ratio:.2f} times)"


def _find(result: Result, name: str) -> Row | None:
    return next((row for row in result.rows if row.name == name), None)


def _is_limited(result: Result) -> bool:
    return "=" in result.machine["isa"]


def _sets(result: Result) -> str:
    return "AVX2 alone" if _is_limited(result) else result.machine["isa"]


def _machine(result: Result) -> str:
    host = result.machine
    return (
        f"{host['cpu']}, {host['cores']} cores, {result.when}; medians of {result.rows[0].n} rounds"
    )
