"""Run tests as if on other processors: each instruction set and number of threads in turn.

    python benchmarks/instruction_sets.py                      bytes that are pinned, and numbers
    python benchmarks/instruction_sets.py tests                the whole suite, hours
    python benchmarks/instruction_sets.py tests/test_mesh.py -k gather

Shards, statistics, orders and uint8 pixels must be identical under all of them: the tests compare
them with hashes. Prints a line for each; the exit code is 1 if tests failed under any.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What torch, oneDNN, numba and OpenMP read when they are loaded.
ENVIRONMENTS = (
    {},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"NUMBA_CPU_NAME": "generic"},
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
    # A processor of 2008, and one of 2013.
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "NUMBA_CPU_NAME": "generic"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "NUMBA_CPU_NAME": "haswell"},
)
NAMES = sorted({name for environment in ENVIRONMENTS for name in environment})
PINNED = tuple(
    f"tests/test_{name}.py"
    for name in (
        *("compatibility", "codec", "order", "moments", "stats", "shard", "weights", "planes"),
        *("augment", "dali", "grouped", "columns", "lrn", "dropout", "spatial", "averaging"),
        *("mesh", "placement", "train", "training"),
    )
)


def run_tests(environment: dict[str, str], arguments: list[str]) -> bool:
    """Run pytest with these variables alone; print its last line and say whether all passed."""
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    # Compiled loops are kept for one processor: a cache of their own for each.
    cache = ROOT / ".pytest_cache" / "numba" / environment.get("NUMBA_CPU_NAME", "host")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "--tb=short", *arguments],
        cwd=ROOT,
        env={**inherited, **environment, "NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    name = " ".join(f"{key}={value}" for key, value in environment.items()) or "this processor"
    seconds = time.perf_counter() - started
    sys.stdout.write(f"{lines[-1] if lines else 'no output'} ({seconds:.0f} s)  {name}\n")
    if done.returncode:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        sys.stdout.write("\n".join([*failed, ""]))
    sys.stdout.flush()
    return done.returncode == 0


def main() -> None:
    """Every environment in turn."""
    arguments = sys.argv[1:] or list(PINNED)
    passed = [run_tests(environment, arguments) for environment in ENVIRONMENTS]
    raise SystemExit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
