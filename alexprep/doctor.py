"""`alexprep doctor`: what is installed, what this machine has, and how to fix each fault.

A check gets the facts as arguments and judges them, so that every judgement can be tested without
the machine it is about.
"""

import importlib.metadata
import io
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from alexprep.errors import counted
from alexprep.machine import computes_bfloat16, cores, free_bytes, machine

PYTHONS = ((3, 11), (3, 14))
ILSVRC_IMAGES = 1_281_167 + 50_000
# The mean over 500 ILSVRC images at 256 pixels, quality 95.
SAMPLE_BYTES = 32_700
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"),
)
# What Pillow may be compiled without.
OPTIONAL_IN_PILLOW = ("webp", "libtiff")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check. "note" is worth knowing; "fault" keeps something from working."""

    name: str
    state: Literal["ok", "note", "fault"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n{'':18} {self.fix}" if self.fix else ""
        return f"{self.state:5} {self.name:12} {self.text}{fix}"


def examine(folder: Path, images: int | None = None) -> list[Finding]:
    """Check Python, packages, GPUs, cores and the disk that `folder` is on.

    `images`: of the set to be sharded there; None: ILSVRC, which nobody may want to shard here.
    """
    installed = _installed()
    host = machine()
    gpus = host["gpus"]
    assert isinstance(gpus, list)
    driver = _driver_cuda() if gpus else 0
    findings = [
        check_python(sys.version_info[:2]),
        *check_packages(installed, gpu=bool(gpus)),
        check_pillow(installed, _run_pillow),
        *check_dalis(dalis(installed), driver),
        check_dali(_run_dali) if dalis(installed) else no_dali(driver),
        check_torch(*_torch(installed), gpus, driver),
        check_peers(_peers(installed)),
        Finding("cores", "ok", f"{cores()} of {host['cpu']}"),
        None if gpus else check_bfloat16(str(host["isa"]), fast=computes_bfloat16()),
        *check_threads(os.environ, cores()),
        check_disk(folder, free_bytes(folder) / 1e9, images),
    ]
    return [finding for finding in findings if finding is not None]


def format_findings(findings: Sequence[Finding]) -> str:
    """A line for each, its fix indented below."""
    faults = sum(finding.state == "fault" for finding in findings)
    return "\n".join([*map(str, findings), counted(faults, "fault")])


def check_python(version: tuple[int, ...]) -> Finding:
    """3.11 to 3.13 are tested."""
    first, beyond = PYTHONS
    inside = first <= version < beyond
    text = f"{platform.python_version()} at {sys.executable}"
    if inside:
        return Finding("python", "ok", text)
    fix = "Make the environment with Python 3.11, 3.12 or 3.13."
    return Finding("python", "fault", text, fix)


def check_packages(installed: Mapping[str, str], *, gpu: bool) -> list[Finding]:
    """The packages that everything needs; DALI and Pillow have checks of their own."""
    needed = ["torch", "numpy", "numba", "webdataset", "simplejpeg", "imagecodecs"]
    # Triton compiles our kernels for a GPU; PyTorch for CPUs comes without it.
    needed += ["triton"] if gpu else []
    return [
        Finding(name, "ok", installed[name])
        if name in installed
        else Finding(name, "fault", "is not installed", f"pip install {name}")
        for name in needed
    ]


def check_pillow(installed: Mapping[str, str], run: Callable[[], tuple[str, list[str]]]) -> Finding:
    """`run` opens an image; the version of PIL, and which optional parts it was compiled without.

    Pillow and pillow-simd are one package under two names: the one installed last overwrites the
    other, which is no fault while they are not mixed.
    """
    names = sorted({"pillow", "pillow-simd"} & installed.keys())
    if not names:
        return Finding("PIL", "fault", "is not installed", "pip install pillow")
    try:
        version, lacking = run()
    except (ImportError, OSError, RuntimeError) as error:
        text = f"{' and '.join(names)} installed, but does not run ({_first_line(error)})"
        fix = "pip uninstall -y pillow pillow-simd && pip install pillow"
        return Finding("PIL", "fault", text, fix)
    name = "pillow-simd" if ".post" in version else "pillow"
    text = f"{name} {version}"
    if len(names) == 2:
        text += ", which has overwritten " + ("pillow" if name == "pillow-simd" else "pillow-simd")
    if lacking:
        text += f"; compiled without {' and '.join(lacking)}: imagecodecs reads these"
    return Finding("PIL", "ok", text)


def dalis(installed: Mapping[str, str]) -> list[str]:
    """The installed distributions of DALI: nvidia-dali-cuda130, nvidia-dali-cuda120 ..."""
    return sorted(name for name in installed if name.startswith("nvidia-dali-cuda"))


def check_dalis(names: Sequence[str], driver: int) -> list[Finding]:
    """`driver`: the newest CUDA version that the GPU driver supports; 0 without a GPU."""
    if len(names) > 1:
        text = f"{' and '.join(names)} are both installed, in the same folder"
        fix = f"pip uninstall -y {' '.join(names)} && {_install_dali(driver)}"
        return [Finding("DALI", "fault", text, fix)]
    built = [int(name.removeprefix("nvidia-dali-cuda")) // 10 for name in names]
    if built and 0 < driver < built[0]:
        text = f"{names[0]} is for CUDA {built[0]}, the driver supports {driver} at most"
        fix = f"pip uninstall -y {names[0]} && {_install_dali(driver)}"
        return [Finding("DALI", "fault", text, fix)]
    return []


def _install_dali(driver: int) -> str:
    """The command, for the extra that fits the driver; any of them works on a CPU."""
    return f"pip install 'alexprep[cuda{12 if driver == 12 else 13}]'"


def no_dali(driver: int) -> Finding:
    """Without DALI the loader uses torch."""
    text = "is not installed: the loader decodes with Pillow, at half the speed"
    return Finding("DALI", "note", text, _install_dali(driver) if sys.platform == "linux" else "")


def check_dali(run: Callable[[], str]) -> Finding:
    """`run` decodes a JPEG with DALI's CPU backend and returns the version."""
    try:
        return Finding("DALI", "ok", f"{run()}, its CPU backend decodes")
    except (ImportError, OSError, RuntimeError) as error:
        fix = (
            "Reinstall it: pip install --force-reinstall --no-deps, with the name and version "
            "that `pip list` shows."
        )
        return Finding("DALI", "fault", f"does not run ({_first_line(error)})", fix)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def check_torch(built: str, usable: int, gpus: Sequence[str], driver: int = 0) -> Finding:
    """`built`: CUDA version torch was built for; `usable`: GPUs it sees; `gpus`: the driver's."""
    names = "; ".join(gpus)
    if not gpus:
        return Finding("GPUs", "note", "none: everything runs on the CPU")
    if not built:
        text = f"{names}, but torch is built for the CPU"
        return Finding("GPUs", "fault", text, _install_torch("cu126" if driver == 12 else "cu130"))
    if 0 < driver < int(built.partition(".")[0]):
        text = f"{names}, but torch is for CUDA {built}, the driver supports {driver} at most"
        fix = f"Update the driver, or install torch for CUDA 12: {_install_torch('cu126')}"
        return Finding("GPUs", "fault", text, fix)
    if usable < len(gpus):
        text = f"{names}, but torch (CUDA {built}) can use {usable}"
        fix = "Update the driver for that CUDA version, or unset CUDA_VISIBLE_DEVICES."
        return Finding("GPUs", "fault", text, fix)
    return Finding("GPUs", "ok", names)


def _install_torch(build: str) -> str:
    index = f"https://download.pytorch.org/whl/{build}"
    return f"pip install --force-reinstall torch --index-url {index}"


def check_peers(pairs: Sequence[tuple[int, int, bool]]) -> Finding | None:
    """(device, device, whether they reach each other's memory); None with fewer than two."""
    if not pairs:
        return None
    apart = [f"{first}-{second}" for first, second, reach in pairs if not reach]
    if not apart:
        return Finding("peer access", "ok", "between all GPUs")
    text = f"none between {', '.join(apart)}: columns exchange through the host's memory"
    return Finding("peer access", "note", text)


def check_bfloat16(isa: str, *, fast: bool) -> Finding:
    """`isa`: as machine() has it; `fast`: as computes_bfloat16() says."""
    if fast:
        return Finding("bfloat16", "ok", "the processor computes in it")
    text = (
        f"no instructions for it ({isa}): `train` takes float32, which is several times faster, "
        "unless --set train.precision=bfloat16 asks for it"
    )
    return Finding("bfloat16", "note", text)


def check_threads(environment: Mapping[str, str], count: int) -> list[Finding]:
    """Variables that start more threads than the `count` cores this process may use."""
    values = {name: environment.get(name, "") for name in THREAD_VARIABLES}
    reason = f"on {count} cores: threads wait for each other"
    return [
        Finding("threads", "note", f"{name}={value} {reason}", f"unset {name}")
        for name, value in values.items()
        # OpenMP takes a list, a number for each level of nesting.
        if value.partition(",")[0].isdigit() and int(value.partition(",")[0]) > count
    ]


def check_disk(folder: Path, gigabytes: float, images: int | None = None) -> Finding:
    """Whether a data set of `images`, or else ILSVRC, has room; `gigabytes` are free."""
    needed = (images or ILSVRC_IMAGES) * SAMPLE_BYTES / 1e9
    text = f"{gigabytes:,.0f} GB free at {folder.absolute()}"
    if gigabytes >= needed:
        return Finding("disk", "ok", text)
    if images is None:
        return Finding("disk", "note", f"{text}; ILSVRC at 256 pixels takes {needed:,.0f}")
    text += f"; {images:,} images at 256 pixels take {needed:,.0f}"
    return Finding("disk", "fault", text, "Name a folder on a larger disk with --out.")


def _installed() -> dict[str, str]:
    """Distributions by lower-case name."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions[name.lower().replace("_", "-")] = distribution.version
    return versions


def _driver_cuda() -> int:
    """The newest CUDA that the driver supports, as nvidia-smi prints it; 0 if it does not."""
    done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=20)
    version = re.search(r"CUDA Version: (\d+)", done.stdout)
    return int(version[1]) if version else 0


def _torch(installed: Mapping[str, str]) -> tuple[str, int]:
    if "torch" not in installed:
        return "", 0
    import torch  # noqa: PLC0415 - a doctor must run where torch is missing

    return torch.version.cuda or "", torch.cuda.device_count()


def _peers(installed: Mapping[str, str]) -> list[tuple[int, int, bool]]:
    if "torch" not in installed:
        return []
    from torch import cuda  # noqa: PLC0415 - as above

    pairs = combinations(range(cuda.device_count()), 2)
    return [(*pair, cuda.can_device_access_peer(*pair)) for pair in pairs]


def _run_pillow() -> tuple[str, list[str]]:
    """Save and open an image; the version of PIL and what it was compiled without."""
    import PIL  # noqa: PLC0415 - a doctor must run where it is missing
    from PIL import Image, features  # noqa: PLC0415 - as above

    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    Image.open(png).load()
    return PIL.__version__, [name for name in OPTIONAL_IN_PILLOW if not features.check(name)]


def _run_dali() -> str:
    """Decode a JPEG drawn here with DALI's CPU backend; its version."""
    import numpy as np  # noqa: PLC0415 - a doctor must run where these are missing
    import nvidia.dali as dali  # noqa: PLC0415 - as above
    from PIL import Image  # noqa: PLC0415 - as above

    jpg = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 100, 50)).save(jpg, "JPEG")
    library: Any = dali
    pipeline: Any = library.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        data = np.frombuffer(jpg.getvalue(), np.uint8)
        encoded = library.fn.external_source(lambda: [data])
        pipeline.set_outputs(library.fn.decoders.image(encoded, device="cpu"))
    pipeline.build()
    (images,) = pipeline.run()
    shape = images.at(0).shape
    if tuple(shape) != (32, 32, 3):
        raise RuntimeError(f"decoded a 32x32 JPEG to {shape}")
    return library.__version__
