"""Speed on this processor, and with the instructions of one of 2013 alone: AVX2, no AVX-512 or AMX.

    python benchmarks/avx2.py DATA256 PHOTOGRAPHS --out benchmarks/results
    python benchmarks/make_readme.py       # benchmarks/README.md
    make docs                              # the tables of README.md and docs/notes/results.md

DATA256 is a data set of 256 pixels with statistics, PHOTOGRAPHS a folder of class folders. torch,
oneDNN and numba are kept from newer instructions by their own variables. simplejpeg and DALI decode
with AVX2 at most on every processor. Under four minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from alexnet.model.networks import code2012, smoke
from alexprep.bench import load_bench, step_bench
from alexprep.bench.measurement import Result, Row, compared, interleaved, result, save, table
from alexprep.bench.step_bench import Case
from alexprep.lock import temporary_folder
from alexprep.machine import computes_bfloat16

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "NUMBA_CPU_NAME": "haswell"},
)
CHILD = "ALEXPREP_AVX2_CHILD"
LOADERS = (load_bench.BASELINE, "alexprep dali", "alexprep planes")
BATCHES = 8
COPIES = 4  # of each photograph, so that the start of the workers does not count for most


def measure(data: Path, photographs: Path, rounds: int) -> list[Row]:
    """Sharding, loading and training under the variables of this process."""
    rows = step_rows("", Case(network=code2012(), batch=step_bench.BATCH), rounds)
    small = Case(network=smoke(code2012(), classes=100), batch=step_bench.SMOKE_BATCH)
    rows += step_rows("smoke size, ", small, rounds)
    return rows + load_rows(data, rounds) + shard_rows(photographs, rounds)


def shard_rows(photographs: Path, rounds: int) -> list[Row]:
    """Sharding by the command itself: its workers do not import what this script has imported."""
    images = COPIES * sum(1 for _ in photographs.glob("*/*"))
    words = ["bench", "shard", "--data", str(photographs), "--images", str(images)]
    with temporary_folder("alexprep-avx2-") as folder:
        words += ["--rounds", str(rounds), "--out", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "alexprep", *words], check=True, stdout=subprocess.DEVNULL
        )
        return list(Result.load(next(folder.glob("*.json"))).rows)


def step_rows(prefix: str, case: Case, rounds: int) -> list[Row]:
    """The trainer's step, in bfloat16 too where the processor has instructions for it."""
    baseline = f"{prefix}{step_bench.BASELINE}"
    cases = {baseline: replace(case, plain=True), f"{prefix}float32": case}
    if computes_bfloat16():
        cases[f"{prefix}bf16"] = replace(case, precision="bfloat16")
    return compared(step_bench.step_rates(cases, rounds), baseline=baseline)


def load_rows(data: Path, rounds: int) -> list[Row]:
    """DALI alone, our loader with DALI, and the one of planes where the data set has them."""
    with ExitStack() as stack:
        batches = load_bench.open_cases(data, "cpu", stack)
        cases = {
            name: partial(load_bench.images_per_second, batches[name], BATCHES, "cpu")
            for name in LOADERS
            if name in batches
        }
        rates = interleaved(cases, rounds, rate=lambda case: case())
    return compared(rates, baseline=load_bench.BASELINE)


def main() -> None:
    """A process for each environment, for the variables are read when a library is loaded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args()
    if CHILD in os.environ:
        rows = measure(options.data, options.photographs, options.rounds)
        settings = {"rounds": options.rounds}
        command = "python benchmarks/avx2.py DATA256 PHOTOGRAPHS"
        if options.out:
            save(result("avx2", command, rows, settings), options.out)
        sys.stdout.write(f"{table(rows)}\n")
        return
    for environment in ENVIRONMENTS:
        sys.stdout.write(" ".join(f"{k}={v}" for k, v in environment.items()) or "this processor")
        sys.stdout.write("\n")
        sys.stdout.flush()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        variables = {**os.environ, **environment, CHILD: "1", "PYTHONPATH": path}
        subprocess.run([sys.executable, *sys.argv], env=variables, check=True)


if __name__ == "__main__":
    main()
