"""Runs the benchmarks of the parts and keeps what they found."""

import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from alexprep.bench.frame import PARTS, BenchConfig, Result, Row, result, save, table

HEAD = """\
# Measured speed

Generated from `results/*.json` by `python benchmarks/make_readme.py`; do not edit. Measure again
with `alexprep bench shard|stats|load|step|train|all --out benchmarks/results`. A ratio is the
median over the rounds of the ratio to the floor named, both measured in turns. The JSON beside this
file has the versions, the commit and the configuration of every run; add a result by putting
another there.
"""


def run_bench(what: str, config: BenchConfig, out: Path | None = None) -> Iterator[Result]:
    """Measure one part, or "all"; with `out` each result is written there as JSON as it comes.

    ValueError for a part there is none of.
    """
    if what not in (*PARTS, "all"):
        raise ValueError(f"bench knows {', '.join(PARTS)} and all, not {what!r}.")
    for part in PARTS if what == "all" else (what,):
        # A part is imported when it is measured: step needs torch, load needs DALI.
        run: Callable[[BenchConfig, Path], list[Row]] = import_module(f"alexprep.bench.{part}").run
        with tempfile.TemporaryDirectory(prefix=f"alexprep-bench-{part}-") as folder:
            found = result(part, config, run(config, Path(folder)))
        if out is not None:
            save(found, out)
        yield found


def readme(results: Path) -> str:
    """The text of benchmarks/README.md for the results in a folder, the newest run first."""
    found = [Result.load(path) for path in sorted(results.glob("*.json"))]
    order = {part: place for place, part in enumerate(PARTS)}
    found.sort(key=lambda one: (order.get(one.part, len(order)), one.part))
    return "\n".join([HEAD, *(_section(one) for one in found)])


def _section(found: Result) -> str:
    host = found.machine
    place = ", ".join([f"{host['cpu']}, {host['cores']} cores", *host["gpus"]])
    versions = ", ".join(
        f"{name} {host[name]}"
        for name in ("python", "torch", "nvidia-dali-cuda130", "pillow-simd", "libjpeg_turbo")
    )
    notes = "".join(f"\n{note}\n" for note in found.notes)
    return (
        f"## {found.part}\n\n`{found.command}` on {place}; {versions}; {found.when}, "
        f"commit {found.machine['commit'] or 'unknown'}.\n\n{table(found.rows)}\n{notes}"
    )
