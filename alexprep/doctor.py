"""`alexprep doctor`: what is installed, what this machine has, and the line that mends each fault.

A check is given what was found and judges it, so that every judgement can be tried without the
machine it is about.
"""

import importlib.metadata
import io
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alexprep.machine import PACKAGES, cores, machine

PYTHONS = ((3, 11), (3, 14))
# 1,281,167 + 50,000 samples of 32.7 KB: the mean over 500 ILSVRC images at 256 pixels, quality 95.
ILSVRC_GIGABYTES = 44
OURS = "pip install --force-reinstall --no-deps pillow-simd"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing looked at. "note" is worth knowing; "fault" keeps something from working."""

    name: str
    state: Literal["ok", "note", "fault"]
    text: str
    mend: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at Python, packages, GPUs, cores and the disk that `folder` is on."""
    installed = _installed()
    host = machine()
    gpus = host["gpus"]
    assert isinstance(gpus, list)
    found = [
        check_python(sys.version_info[:2]),
        *check_packages(installed),
        check_pillow(installed, str(host["libjpeg_turbo"])),
        check_dali(_run_dali) if "nvidia-dali-cuda130" in installed else no_dali(),
        check_torch(*_torch(installed), gpus),
        check_peers(_peers(installed)),
        Finding(name="cores", state="ok", text=f"{cores()} of {host['cpu']}"),
        check_disk(folder, shutil.disk_usage(folder).free / 1e9),
    ]
    return [finding for finding in found if finding is not None]


def format_findings(found: Sequence[Finding]) -> str:
    """A line each, the mend indented below it."""
    lines: list[str] = []
    for one in found:
        lines.append(f"{one.state:5} {one.name:12} {one.text}")
        if one.mend:
            lines.append(f"{'':18} {one.mend}")
    faults = sum(one.state == "fault" for one in found)
    lines.append(f"{faults} fault{'s' * (faults != 1)}" if faults else "Nothing is missing.")
    return "\n".join(lines)


def check_python(version: tuple[int, ...]) -> Finding:
    """3.11 to 3.13 are those that are tested."""
    first, beyond = PYTHONS
    inside = first <= version < beyond
    return Finding(
        name="python",
        state="ok" if inside else "fault",
        text=f"{platform.python_version()} at {sys.executable}",
        mend="" if inside else "Make the environment with Python 3.11, 3.12 or 3.13.",
    )


def check_packages(installed: Mapping[str, str]) -> list[Finding]:
    """The packages that everything needs; DALI and Pillow are judged apart."""
    needed = [name for name in PACKAGES if name not in ("alexprep", "dask", "nvidia-dali-cuda130")]
    return [
        Finding(name=name, state="ok", text=installed[name])
        if name in installed
        else Finding(name=name, state="fault", text="is not installed", mend=f"pip install {name}")
        for name in (*needed, "simplejpeg")
        if name != "pillow-simd"
    ]


def check_pillow(installed: Mapping[str, str], turbo: str) -> Finding:
    """Pillow and pillow-simd install into the same folder: the last one wins."""
    both = {"pillow", "pillow-simd"} & installed.keys()
    if both == {"pillow", "pillow-simd"}:
        return Finding(
            name="PIL",
            state="fault",
            text="Pillow and pillow-simd are both installed, in the same folder",
            mend=f"pip uninstall -y pillow && {OURS}",
        )
    if not both:
        return Finding(name="PIL", state="fault", text="is not installed", mend=OURS)
    (which,) = both
    plain = which == "pillow"
    return Finding(
        name="PIL",
        state="note" if plain else "ok",
        text=f"{which} {installed[which]}, libjpeg-turbo {turbo}"
        + (": works, but resizes several times slower than pillow-simd" if plain else ""),
        mend=f"pip uninstall -y pillow && {OURS}" if plain else "",
    )


def no_dali() -> Finding:
    """Without DALI the loader falls back to torch."""
    linux = sys.platform == "linux"
    return Finding(
        name="DALI",
        state="fault" if linux else "note",
        text="is not installed: loading falls back to torch on the CPU",
        mend="pip install nvidia-dali-cuda130" if linux else "",
    )


def check_dali(run: Any) -> Finding:
    """`run` decodes a JPEG with DALI's CPU backend and returns the version."""
    try:
        return Finding(name="DALI", state="ok", text=f"{run()}, its CPU backend decodes")
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(
            name="DALI",
            state="fault",
            text=f"does not run ({str(error).splitlines()[0][:120]})",
            mend="pip install --force-reinstall --no-deps nvidia-dali-cuda130",
        )


def check_torch(built: str, usable: int, gpus: Sequence[str]) -> Finding:
    """`built`: CUDA version torch was built for; `usable`: GPUs it sees; `gpus`: the driver's."""
    seen = "; ".join(gpus) or "none"
    if gpus and not built:
        return Finding(
            name="GPUs",
            state="fault",
            text=f"{seen}, but torch is built for the CPU",
            mend="pip install --force-reinstall torch --index-url "
            "https://download.pytorch.org/whl/cu130",
        )
    if gpus and usable < len(gpus):
        return Finding(
            name="GPUs",
            state="fault",
            text=f"{seen}, but torch (CUDA {built}) can use {usable}",
            mend="Update the driver for that CUDA version, or unset CUDA_VISIBLE_DEVICES.",
        )
    note = "" if gpus else ": everything runs on the CPU"
    return Finding(name="GPUs", state="ok" if gpus else "note", text=f"{seen}{note}")


def check_peers(pairs: Sequence[tuple[int, int, bool]]) -> Finding | None:
    """(device, device, whether they reach each other's memory); None with fewer than two."""
    if not pairs:
        return None
    apart = [f"{one}-{other}" for one, other, reach in pairs if not reach]
    return Finding(
        name="peer access",
        state="note" if apart else "ok",
        text=f"none between {', '.join(apart)}: columns exchange through the host's memory"
        if apart
        else "between all GPUs",
    )


def check_disk(folder: Path, gigabytes: float) -> Finding:
    """Whether all of ILSVRC as shards would fit."""
    enough = gigabytes >= ILSVRC_GIGABYTES
    return Finding(
        name="disk",
        state="ok" if enough else "note",
        text=f"{gigabytes:,.0f} GB free at {folder.absolute()}"
        + ("" if enough else f"; ILSVRC at 256 pixels takes {ILSVRC_GIGABYTES}"),
    )


def _installed() -> dict[str, str]:
    """Distributions by lower-case name."""
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = one.version
    return found


def _torch(installed: Mapping[str, str]) -> tuple[str, int]:
    if "torch" not in installed:
        return "", 0
    import torch  # noqa: PLC0415 - a doctor must run where torch is missing

    return torch.version.cuda or "", torch.cuda.device_count()


def _peers(installed: Mapping[str, str]) -> list[tuple[int, int, bool]]:
    if "torch" not in installed:
        return []
    import torch  # noqa: PLC0415 - as above

    count = torch.cuda.device_count()
    return [
        (one, other, torch.cuda.can_device_access_peer(one, other))
        for one in range(count)
        for other in range(one + 1, count)
    ]


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
