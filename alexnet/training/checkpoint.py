"""Checkpoints: a safetensors file of tensors and JSON, written atomically and without pickle.

    RUN/checkpoints/step-00001234.safetensors    the latest few, to resume from
    RUN/checkpoints/best.safetensors             the one with the lowest validation error

Tensors are named PART/NAME: model/conv1.weight, velocity/conv1.weight, stats/mean. The metadata
entry "alexprep" is JSON: a version, a CRC-32 of each part, one of the file's header (in which this
JSON and the table of the tensors lie; its own eight digits count as zeros), and what the trainer
and its caller put in. The first alexprep wrote none of its header; such files are read as well.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
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

LENGTH_BYTES = 8  # a safetensors file: length of its header, header (JSON), tensors
MAX_HEADER = 100_000_000  # more is refused by safetensors itself
HEADER = "header"
NO_DIGITS = "0" * 8
# JSON within a JSON string: its quotes are escaped.
_DIGITS = re.compile(rb'\\"header\\": \\"([0-9a-f]{8})\\"')


class DamagedError(RunError):
    """A checkpoint cannot be read, or holds what no run writes; an earlier one may be good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The contents of a file: JSON, and the tensors of the requested parts, on the CPU."""

    path: Path
    meta: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]


class _Checks(msgspec.Struct):
    """The fields of the JSON that `save` adds."""

    version: int
    crc32: dict[str, int | str]


def save(path: Path, meta: Mapping[str, Any], parts: Mapping[str, Tensors]) -> None:
    """Write a checkpoint as `replace_file` does."""
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in parts.items()
        for name, tensor in named.items()
    }
    sums = {group: _crc(tensors, group) for group in parts}
    checks = {"version": VERSION, "crc32": {**sums, HEADER: NO_DIGITS}}
    text = json.dumps({**meta, **checks}, allow_nan=False)
    # The header holds a CRC of itself, which is known only when the header is.
    header, data = _split(to_bytes(tensors, {"alexprep": text}))
    replace_file(path, _with_own_crc(header), data)


def replace_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file under another name, bring it to the disk, and rename it.

    Readers and a power cut find the old file or the new. OSError, with nothing left behind.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


def _split(data: bytes) -> tuple[bytes, memoryview]:
    """The length and header of a safetensors file, and its tensors."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    return data[:end], memoryview(data)[end:]


def _with_own_crc(header: bytes) -> bytes:
    begin, end = _own_digits(header)
    return header[:begin] + b"%08x" % zlib.crc32(header) + header[end:]


def _own_digits(header: bytes) -> tuple[int, int]:
    """Where the header has the digits of its own CRC; ValueError where it has none."""
    # The last ones: what the caller put in comes first.
    matches = list(_DIGITS.finditer(header))
    if not matches:
        raise ValueError("the CRC of its header is missing")
    return matches[-1].span(1)


def load(path: Path, parts: Iterable[str] = ("model",)) -> Checkpoint:
    """Read the JSON and some parts.

    Raises:
        DamagedError: the file is damaged or no checkpoint; of the tensors, `parts` are checked.
        RunError: the file is missing or of another version.
    """
    if not path.is_file():
        raise RunError(f"{path} is not a file. Name a checkpoint, or a run folder that has one.")
    parts = tuple(parts)
    with damage_named(path):
        header = _read_header(path)
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
            names: list[str] = list(file.keys())
            prefixes = tuple(f"{group}/" for group in parts)
            tensors: dict[str, Tensor] = {
                name: file.get_tensor(name) for name in names if name.startswith(prefixes)
            }
    text = metadata.get("alexprep")
    if text is None:
        raise DamagedError(f"{path} is a safetensors file, but no checkpoint of alexprep.")
    with damage_named(path):
        meta = msgspec.json.decode(text, type=dict[str, Any])
        checks = msgspec.convert(meta, _Checks)
        # Another version may have other checks: it is refused below, not called damaged.
        if checks.version == VERSION:
            _check_header(header, checks.crc32, {name.partition("/")[0] for name in names})
            for group in parts:
                if _crc(tensors, group) != checks.crc32.get(group, 0):
                    raise ValueError(f"part {group!r} has changed")
    if checks.version != VERSION:
        raise RunError(
            f"{path} has version {checks.version}; this alexprep reads {VERSION}. "
            "Use the alexprep that wrote it."
        )
    return Checkpoint(
        path=path,
        meta=meta,
        parts={group: _part(tensors, group) for group in parts},
    )


@contextmanager
def damage_named(path: Path) -> Generator[None]:
    """Turn whatever unexpected contents of a checkpoint lead to into one line that names it."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"{error}" if not isinstance(error, LookupError) else f"no {error}"
        raise DamagedError(
            f"{path} is damaged or no checkpoint ({reason}). Use another one."
        ) from error
    except RecursionError as error:
        raise DamagedError(
            f"{path} is damaged (its JSON is nested too deeply). Use another one."
        ) from error
    except OSError as error:
        if error.filename is not None:  # may not be read, or has just been removed
            raise
        raise DamagedError(f"{path} cannot be read ({error.strerror}). Use another one.") from error


def _read_header(path: Path) -> bytes:
    with path.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        size = int.from_bytes(length, "little")
        if size > min(MAX_HEADER, path.stat().st_size - LENGTH_BYTES):
            raise ValueError(f"a header of {size:,} bytes, more than the file has")
        return length + file.read(size)


def _check_header(header: bytes, sums: Mapping[str, int | str], parts: set[str]) -> None:
    """ValueError unless each part has a sum, and the header the one it was written with."""
    if missing := parts - set(sums):
        raise ValueError(f"part {min(missing)!r} is unknown")
    for group, value in sums.items():
        # A part without tensors has 0. So the name of a sum cannot change unnoticed, this one's
        # least of all, without which the header would not be checked.
        if group != HEADER and group not in parts and value != 0:
            raise ValueError(f"part {group!r} is missing")
    if HEADER in sums:
        begin, end = _own_digits(header)
        own = zlib.crc32(header[:begin] + NO_DIGITS.encode() + header[end:])
        if sums[HEADER] != f"{own:08x}":
            raise ValueError("its header has changed")


def _part(tensors: Tensors, group: str) -> dict[str, Tensor]:
    prefix = f"{group}/"
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _crc(tensors: Tensors, group: str) -> int:
    crc = 0
    for _, tensor in sorted(_part(tensors, group).items()):
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder, without which a rename may be lost."""
    descriptor = os.open(path, os.O_RDONLY)
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
        sync(partial)
    partial.replace(run / FOLDER / BEST)
    sync(run / FOLDER)


def prune(run: Path, keep: int) -> None:
    """Remove all but the latest `keep` checkpoints, and what a killed run left half-written."""
    for old in [*steps(run)[:-keep], *(run / FOLDER).glob("*.partial")]:
        old.unlink(missing_ok=True)


@contextmanager
def naming_last_good(run: Path) -> Generator[None]:
    """Turn a fault of storage into a RunError that names the checkpoint to resume from."""
    try:
        yield
    except OSError as error:
        path = error.filename or run
        raise RunError(f"{path}: {error.strerror or error}. {last_good(run)}") from error


def last_good(run: Path) -> str:
    """A sentence that names the checkpoint from which a run would resume."""
    paths = steps(run)
    if not paths:
        return "No checkpoint had been written."
    return f"Last good checkpoint: {paths[-1]}"
