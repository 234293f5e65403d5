"""Checkpoints: a safetensors file of tensors and JSON, written atomically and without pickle.

    RUN/checkpoints/step-00001234.safetensors    the latest few, to resume from
    RUN/checkpoints/best.safetensors             the one with the lowest validation error

Tensors are named PART/NAME: model/conv1.weight, velocity/conv1.weight, stats/mean. The metadata
entry "alexprep" is JSON: a version, a CRC-32 of each part, and what the trainer and its caller
put in.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from alexnet.errors import RunError

VERSION = 1
FOLDER = "checkpoints"
BEST = "best.safetensors"
Tensors = Mapping[str, Tensor]
Comparison = tuple[list[str], list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The contents of a file: JSON, and the tensors of the requested parts, on the CPU."""

    path: Path
    meta: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]


def save(path: Path, meta: Mapping[str, Any], parts: Mapping[str, Tensors]) -> None:
    """Write a checkpoint under another name, flush it to the disk, and rename it.

    OSError, with nothing left behind, if the disk is full or the folder is not writable.
    """
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    checks = {"version": VERSION, "crc32": {part: _crc(tensors, part) for part in parts}}
    data = to_bytes(tensors, {"alexprep": json.dumps({**meta, **checks})})
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _flush_folder(path.parent)


def load(path: Path, parts: Iterable[str] = ("model",)) -> Checkpoint:
    """Read the JSON and some parts; RunError if the file is missing, damaged or no checkpoint."""
    if not path.is_file():
        raise RunError(f"{path} is not a file. Name a checkpoint, or a run folder that has one.")
    path.open("rb").close()  # safetensors calls a file that may not be read missing
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            names: list[str] = list(file.keys())
            prefixes = tuple(f"{part}/" for part in parts)
            tensors: dict[str, Tensor] = {
                name: file.get_tensor(name) for name in names if name.startswith(prefixes)
            }
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged or no checkpoint ({error}). Use another one.") from error
    text = metadata.get("alexprep")
    if text is None:
        raise RunError(f"{path} is a safetensors file, but no checkpoint of alexprep.")
    meta: dict[str, Any] = json.loads(text)
    if meta["version"] != VERSION:
        raise RunError(
            f"{path} has version {meta['version']}; this alexprep reads {VERSION}. "
            "Use the alexprep that wrote it."
        )
    for part in parts:
        if part in meta["crc32"] and _crc(tensors, part) != meta["crc32"][part]:
            raise RunError(f"{path} is damaged: part {part!r} has changed. Use another checkpoint.")
    return Checkpoint(
        path=path,
        meta=meta,
        parts={part: _part(tensors, part) for part in parts},
    )


def _part(tensors: Tensors, part: str) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _crc(tensors: Tensors, part: str) -> int:
    crc = 0
    for _, tensor in sorted(_part(tensors, part).items()):
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _flush_folder(folder: Path) -> None:
    """A rename survives a power cut only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compare_shapes(shapes: Mapping[str, tuple[int, ...]], saved: Tensors) -> Comparison:
    """Names that fit by name and shape, and the other differences in words."""
    fitting = [name for name in shapes if name in saved and saved[name].shape == shapes[name]]
    missing = [
        f"{name} is {tuple(saved[name].shape)}, not {shapes[name]}"
        if name in saved
        else f"{name} is missing"
        for name in shapes
        if name not in fitting
    ]
    return fitting, missing + [f"{name} is unknown" for name in saved if name not in shapes]


def step_path(run: Path, step: int) -> Path:
    """The path of the checkpoint after `step` steps."""
    return run / FOLDER / f"step-{step:08d}.safetensors"


def steps(run: Path) -> list[Path]:
    """The checkpoints to resume from, oldest first."""
    return sorted((run / FOLDER).glob("step-*.safetensors"))


def best(run: Path) -> Path | None:
    """The checkpoint with the lowest validation error, once an epoch has ended."""
    path = run / FOLDER / BEST
    return path if path.is_file() else None


def resolve(path: Path) -> Path:
    """The file of a checkpoint or of a run folder: its best, else its latest checkpoint."""
    if not path.exists():
        raise RunError(f"{path} does not exist. Name a checkpoint or the folder of a run.")
    if path.is_file():
        return path
    newest = best(path) or next(reversed(steps(path)), None)
    if newest is None:
        raise RunError(f"{path} is a folder without checkpoints. Name the folder of a run.")
    return newest


def mark_best(run: Path, path: Path) -> None:
    """Make `path` the best as well, by a hard link where the file system has them."""
    partial = run / FOLDER / f"{BEST}.partial"
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, partial)
    partial.replace(run / FOLDER / BEST)


def prune(run: Path, keep: int) -> None:
    """Remove all but the latest `keep` checkpoints, and what a killed run left half-written."""
    for old in [*steps(run)[:-keep], *(run / FOLDER).glob("*.partial")]:
        old.unlink(missing_ok=True)
