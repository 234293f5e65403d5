"""What a measurement was taken on: hardware, versions and the commit."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = (
    *("alexprep", "torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("pillow-simd", "pillow", "numpy", "numba", "webdataset", "dask"),
)
SPEED_MATTERS = (
    *("python", "torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("pillow-simd", "pillow", "libjpeg_turbo"),
)
# Flags of /proc/cpuinfo.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
}
# Variables by which torch, oneDNN and numba use fewer of them than the processor has.
ISA_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "NUMBA_CPU_NAME")


def machine() -> dict[str, str | int | list[str]]:
    """Processor, cores this process may use, memory, GPUs, versions and the commit of the code."""
    return {
        "cpu": _cpu(),
        "isa": instruction_sets(),
        "cores": cores(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libjpeg_turbo": _libjpeg_turbo(),
        **{name: _version(name) for name in PACKAGES},
        "commit": commit(),
    }


def describe(host: Mapping[str, Any]) -> str:
    """What `machine` returns, in a line: hardware, then the versions that matter for speed."""
    # Records of 2026-11-21 do not have the instruction sets.
    isa = f" ({host['isa']})" if host.get("isa") else ""
    versions = [f"{name} {host[name]}" for name in SPEED_MATTERS if host.get(name, "no") != "no"]
    hardware = [f"{host['cpu']}{isa}", f"{host['cores']} cores", *host["gpus"]]
    return f"{', '.join(hardware)}; {', '.join(versions)}"


def instruction_sets() -> str:
    """Those that speed depends on, and the variables that forbid some: "AVX2, AVX-512"."""
    flags = _cpuinfo("flags").split()
    names = [name for flag, name in INSTRUCTION_SETS.items() if flag in flags]
    limits = [f"{name}={os.environ[name]}" for name in ISA_LIMITS if name in os.environ]
    return ", ".join([*names, *limits])


def computes_bfloat16() -> bool:
    """Whether oneDNN has instructions of the processor for it; without them it is emulated."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    allowed = limit == "DEFAULT" or "BF16" in limit or "AMX" in limit or "FP16" in limit
    return allowed and any("BF16" in name for name in instruction_sets().split(", "))


def has_pillow_simd() -> bool:
    """Whether it is pillow-simd that was installed last; Pillow's releases have no such ending."""
    import PIL  # noqa: PLC0415 - `alexprep doctor` must run where it is missing

    return ".post" in PIL.__version__


def cores() -> int:
    """Cores this process may run on, which a container may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(folder: Path) -> int:
    """On the disk of a folder, which need not exist yet."""
    path = folder.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def peak_megabytes(process: int | str = "self", name: str = "VmHWM:") -> float:
    """The most memory a process ever held, in 10**6 bytes; Linux only.

    ru_maxrss would count what the parent held when it started this process. OSError or IndexError
    for a process that has ended.
    """
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split(name)[1].split()[0]) * 1024 / 1e6


def memory_megabytes(process: int | str = "self") -> float:
    """The memory that a process holds now; unit and errors as `peak_megabytes` has them."""
    return peak_megabytes(process, "VmRSS:")


def gpu_megabytes(process: int) -> float:
    """The memory that a process holds on all GPUs, in 10**6 bytes; 0 where no driver says so."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    rows = (line.split(",") for line in _output(query).splitlines())
    # In a container the driver may say "[N/A]".
    used = (row[1].strip() for row in rows if len(row) == 2 and row[0].strip() == str(process))
    return sum(int(mebibytes) * 2**20 / 1e6 for mebibytes in used if mebibytes.isdigit())


def started_at(process: int) -> float:
    """When a process was started, in seconds since 1970 to a second; OSError if there is none."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/stat").read_text().split("btime ")[1].split()[0]
    return int(boot) + int(ticks) / os.sysconf("SC_CLK_TCK")


def commit() -> str:
    """Commit of the folder the code runs from, with -dirty for changed files.

    A copy without .git takes it from the environment, ALEXPREP_COMMIT; else it is "".
    """
    git = ["git", "-C", str(Path(__file__).parent), "describe"]
    git += ["--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return _output(git) or os.environ.get("ALEXPREP_COMMIT", "")


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """A value that Linux gives for the first processor; nothing elsewhere."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _libjpeg_turbo() -> str:
    """The version that PIL decodes with."""
    try:
        from PIL import features  # noqa: PLC0415 - `alexprep doctor` must run where PIL is missing
    except ImportError:
        return "no"
    return features.version("libjpeg_turbo") or "no"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _gpus() -> list[str]:
    # Asked once: a host takes up to a second, and measurements save a result after each figure.
    query = "--query-gpu=name,driver_version,memory.total"
    return _output(["nvidia-smi", query, "--format=csv,noheader"]).splitlines()


def _version(package: str) -> str:
    # .03 s to import, which `shard` needs not
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version(package)
    except PackageNotFoundError:
        return "no"


def _output(command: list[str]) -> str:
    """What the command prints, or nothing where it is not installed or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
