"""Write README.md here from results/*.json: `python benchmarks/make_readme.py`."""

from pathlib import Path

from alexprep.bench.measurement import Result, conditions, table
from alexprep.bench.suite import PARTS

HERE = Path(__file__).parent
HEAD = """\
# Measured speed

Generated from `results/*.json` by `python benchmarks/make_readme.py`; do not edit. Measure again
with `alexprep bench shard|stats|load|step|train|all --out benchmarks/results` or the script named
above a table. Cases run interleaved; a ratio is the median over the rounds of the ratio to the
baseline within a round. The JSON files have the versions, the commit and the configuration of
every run; add a result by putting its file there.
"""


def readme(results: Path) -> str:
    """The text for the results in a folder: the parts of `alexprep bench` first, in its order."""
    measured = [Result.load(path) for path in sorted(results.glob("*.json"))]
    order = {part: number for number, part in enumerate(PARTS)}
    measured.sort(key=lambda result: (order.get(result.part, len(order)), result.part))
    return "\n".join([HEAD, *(_section(result) for result in measured)])


def _section(result: Result) -> str:
    notes = "".join(f"\n{note}\n" for note in result.notes)
    return (
        f"## {result.part}\n\n`{result.command}` on {conditions(result)}.\n\n"
        f"{table(result.rows)}\n{notes}"
    )


if __name__ == "__main__":
    (HERE / "README.md").write_text(readme(HERE / "results"))
