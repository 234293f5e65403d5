"""Training steps of this checkout next to those of another, interleaved.

    python benchmarks/steps_of_checkouts.py ../alexprep-edc7d49

Each checkout has a process, which imports the packages of that folder with this Python; both train
on the same random images. A ratio above 1 says that this checkout is faster. Besides the clock the
processors' time of a step is compared, on which other work of the machine has less influence. With
the defaults it takes about two minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alexprep.bench.measurement import Row, compared, table

HERE = Path(__file__).resolve().parents[1]
# Name, whether at the smoke size, images of a step, and whether in bfloat16.
CASES = (
    ("full size, float32", False, 32, False),
    ("full size, bf16", False, 32, True),
    ("smoke size, float32", True, 128, False),
)
# What a process does: one step of a case for each line that it reads. At edc7d49 the module had
# another name, and a case said otherwise that it is in bfloat16.
SERVER = """
import json, sys, time
from alexnet.NETWORKS import code2012, smoke
from alexprep.bench.STEP import Case, training_step
steps = {}
for line in sys.stdin:
    name, small, batch, bf16 = json.loads(line)
    if name not in steps:
        network = smoke(code2012(), classes=100) if small else code2012()
        precision = {"bf16": bf16} if "STEP" == "step" else {
            "precision": "bfloat16" if bf16 else "float32"}
        steps[name] = training_step(Case(network=network, batch=batch, **precision))
    start, processors = time.perf_counter(), time.process_time()
    steps[name]()
    print(json.dumps([time.perf_counter() - start, time.process_time() - processors]), flush=True)
"""


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    options = parser.parse_args(words)
    cases = [case for case in CASES if options.only in case[0]]
    sys.stdout.write(f"{table(compare(HERE, options.other.resolve(), cases, options.rounds))}\n")


def compare(ours: Path, other: Path, cases: Sequence[Any], rounds: int) -> list[Row]:
    """Rows for each case by the clock and by processors' time; its first step is not counted."""
    with ExitStack() as stack:
        servers = [stack.enter_context(server(folder)) for folder in (other, ours)]
        rows: list[Row] = []
        for case in cases:
            seconds: list[list[list[float]]] = [[], []]
            for number in range(rounds + 1):
                order = (0, 1) if number % 2 else (1, 0)
                for which in order:
                    seconds[which].append(step(servers[which], case))
            for kind, unit in enumerate(("images/s", "images/s of a core")):
                rates = {
                    f"{case[0]}, {name}": [case[2] / pair[kind] for pair in own[1:]]
                    for name, own in zip(("other checkout", "this checkout"), seconds, strict=True)
                }
                rows += compared(rates, baseline=f"{case[0]}, other checkout", unit=unit)
        return rows


def server(folder: Path) -> subprocess.Popen[str]:
    """A process that steps with the packages of a checkout; leaving its block ends it."""
    renamed = (folder / "alexprep/bench/step_bench.py").exists()
    script = SERVER.replace("STEP", "step_bench" if renamed else "step")
    script = script.replace("NETWORKS", "model.networks" if renamed else "networks")
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def step(process: subprocess.Popen[str], case: Any) -> list[float]:
    """Seconds of a step by the clock and of processors."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{json.dumps(case)}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


if __name__ == "__main__":
    main()
