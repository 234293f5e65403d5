"""RUN/config.json says what a run is: calls on one run must agree on it, and each is recorded.

RUN/config.json     recipe, data set, and of each call: devices, versions, hardware, commit
RUN/metrics.jsonl   RUN/checkpoints/    see alexnet.training
RUN/events.*        see alexprep.model.display
RUN/.lock           held while a process trains, with its host, process id and start

All values here are plain JSON; the file is written before training begins.
"""

import json
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from alexnet.errors import RunError
from alexprep import schema
from alexprep.lock import hold_lock
from pipelines.atomic import make_folder, write_whole

CONFIG = "config.json"
LOCK, LEASE = ".lock", ".lease"
# What a call leaves that was killed before there was a config.
EMPTY = (LOCK, LEASE, f"{LEASE}.removal", f"{CONFIG}.partial")
# May differ between the calls that make up one run: they do not change what is computed, but for
# roundings on a GPU.
FREE = (
    *("train.log_steps", "train.checkpoint_minutes", "train.keep", "train.cuda_graph"),
    "train.fuse_conv1",
    *("loader.backend", "loader.decode", "loader.device", "loader.threads", "loader.readers"),
    *("loader.hw_decoder_load", "loader.peers"),
    *("loader.prefetch", "loader.pin_memory", "loader.check", "loader.rank", "loader.world"),
)
# Fields that earlier releases did not record, and what they did.
ADDED: dict[str, Any] = {
    "augment.ratio": [3 / 4, 4 / 3],
    "augment.interpolation": "bilinear",
    "augment.square": False,
}
# Follow from the number of epochs, which may grow.
GROWING = ("train.epochs", "augment.lighting_epochs")


class RunConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What config.json holds; the first release wrote no CRC."""

    recipe: dict[str, Any]
    data: dict[str, Any]
    calls: list[dict[str, Any]]
    crc32: int | None = None

    def to_bytes(self) -> bytes:
        fields = msgspec.structs.asdict(self) | {"crc32": self.crc()}
        return f"{json.dumps(fields, indent=1)}\n".encode()

    def crc(self) -> int:
        """CRC-32 of the other fields, however they are laid out."""
        fields = [self.recipe, self.data, self.calls]
        return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def run_identity(recipe: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that all calls on one run must agree on, as JSON gives it back."""
    return json.loads(json.dumps({"recipe": recipe, "data": data}))


@contextmanager
def open_run(run: Path, identity: Mapping[str, Any], call: Mapping[str, Any]) -> Generator[None]:
    """Write RUN/config.json or check it, and hold the folder: one process trains in it at a time.

    RunError names the fields that differ, says who holds the folder, or why `run` cannot become the
    folder of a run; such a folder is left as it is.
    """
    _check_config(run, identity)
    make_folder(run)
    with hold_lock(run / LOCK, run, RunError):
        # Once more, now that the folder is held: another process may have begun a run meanwhile.
        create_or_check_config(run, identity, call)
        yield


def create_or_check_config(run: Path, identity: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    """Write RUN/config.json, or check that it has this identity, and add the call.

    The number of epochs may grow.
    """
    calls = _check_config(run, identity)
    config = RunConfig(**run_identity(**identity), calls=[*calls, dict(call)])
    write_whole(run / CONFIG, config.to_bytes())


def _check_config(run: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls so far."""
    if (run / CONFIG).exists():
        config = read_config(run)
        _check_identity(run, config, identity)
        return config.calls
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file. Name a folder with --run.")
    if run.is_dir() and any(path.name not in EMPTY for path in run.iterdir()):
        raise RunError(f"{run} is not empty and holds no run. Name another folder with --run.")
    return []


def read_config(
    run: Path,
    error: type[Exception] = RunError,
    advice: str = "Name another folder with --run.",
) -> RunConfig:
    """RUN/config.json; `error` if it is damaged, or not as it was written."""
    path = run / CONFIG
    config = schema.read(path, RunConfig, error, advice=advice)
    if config.crc32 not in (None, config.crc()):
        raise error(
            f"{path} has changed since `alexprep train` wrote it. Restore it from a copy; if it "
            'was changed on purpose, remove its line "crc32".'
        )
    return config


def _check_identity(run: Path, config: RunConfig, identity: Mapping[str, Any]) -> None:
    differences = [
        *_differences(ADDED | flatten(config.recipe), ADDED | flatten(identity["recipe"])),
        *_differences(flatten({"data": config.data}), flatten({"data": identity["data"]})),
    ]
    if differences:
        raise RunError(
            f"{run} is a run of another recipe or data set: {'; '.join(differences[:5])}. "
            "Resume it with the options it was started with, or name another folder with --run."
        )


def _differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    epochs = (recorded.get("train.epochs", 0), current.get("train.epochs", 0))
    grown = all(isinstance(count, int) for count in epochs) and epochs[1] >= epochs[0]
    for name in sorted({*recorded, *current}):
        if name in FREE or (grown and name in GROWING):
            continue
        if recorded.get(name) != current.get(name):
            yield f"{name} was {recorded.get(name)} and is {current.get(name)}"


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """JSON as one level of dotted names; objects in a list go by their "name" or their index."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        pairs = list(cast(dict[str, Any], value).items())
    elif isinstance(value, list):
        entries = cast(list[Any], value)
        if all(isinstance(entry, dict) for entry in entries):
            pairs = [(str(entry.get("name", n)), entry) for n, entry in enumerate(entries)]
    if not pairs:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        flat |= flatten(inner, f"{name}.{key}" if name else key)
    return flat
