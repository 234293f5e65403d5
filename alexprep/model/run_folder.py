"""RUN/config.json says what a run is: calls on one run must agree on it, and each is recorded.

RUN/config.json     recipe, data set, and of each call: devices, versions, hardware, commit
RUN/metrics.jsonl   RUN/checkpoints/    see alexnet.training
RUN/events.*        see alexprep.model.display
RUN/.lock           held while a process trains, with its host, process id and start

All values here are plain JSON; the file is written before training begins.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec

from alexnet.errors import RunError
from alexprep import schema
from pipelines.atomic import write_whole

CONFIG = "config.json"
LOCK, LEASE = ".lock", ".lease"
WITHOUT_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
RENEW_SECONDS = 30.0
ABANDONED_SECONDS = 600.0
# May differ between the calls that make up one run: they do not change what is computed.
FREE = (
    *("train.log_steps", "train.checkpoint_minutes", "train.keep"),
    *("loader.backend", "loader.decode", "loader.device", "loader.threads", "loader.readers"),
    *("loader.prefetch", "loader.pin_memory", "loader.check", "loader.rank", "loader.world"),
)
# Follow from the number of epochs, which may grow.
GROWING = ("train.epochs", "augment.lighting_epochs")


class Owner(msgspec.Struct):
    """What .lock and .lease hold: who trains in the folder."""

    host: str
    pid: int
    since: str


class RunConfig(msgspec.Struct):
    """What config.json holds."""

    recipe: dict[str, Any]
    data: dict[str, Any]
    calls: list[dict[str, Any]]


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
    run.mkdir(parents=True, exist_ok=True)
    with _lock(run):
        create_or_check_config(run, identity, call)
        yield


def create_or_check_config(run: Path, identity: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    """Write RUN/config.json, or check that it has this identity, and add the call.

    The number of epochs may grow.
    """
    calls = _check_config(run, identity)
    text = json.dumps({**identity, "calls": [*calls, call]}, indent=1)
    write_whole(run / CONFIG, f"{text}\n".encode())


def _check_config(run: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls so far."""
    if (run / CONFIG).exists():
        config = read_config(run)
        _check_identity(run, config, identity)
        return config.calls
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file. Name a folder with --run.")
    if run.is_dir() and any(path.name not in (LOCK, LEASE) for path in run.iterdir()):
        raise RunError(f"{run} is not empty and holds no run. Name another folder with --run.")
    return []


@contextmanager
def _lock(run: Path) -> Generator[None]:
    """Hold RUN/.lock, which the system releases however the process ends."""
    # Never unlinked: another process may have it open and would then lock a file without a name.
    with (run / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(run, run / LOCK) from None
        except OSError as error:
            if error.errno not in WITHOUT_FLOCK:
                raise
            with hold_lease(run):
                yield
            return
        file.truncate(0)
        file.write(_owner())
        file.flush()
        yield


@contextmanager
def hold_lease(run: Path) -> Generator[None]:
    """Hold RUN/.lease, for file systems without locks: a file whose time its owner renews."""
    path = run / LEASE
    if path.exists() and _is_abandoned(path):
        path.unlink(missing_ok=True)
    try:
        with path.open("x") as file:
            file.write(_owner())
    except FileExistsError:
        raise _in_use(run, path) from None
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _owner() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})


def _read_owner(path: Path) -> Owner | None:
    """None where its process has not written it yet, or was killed while doing so."""
    with suppress(OSError, RunError):
        return schema.read(path, Owner, RunError)
    return None


def _in_use(run: Path, path: Path) -> RunError:
    owner = _read_owner(path)
    name = "another process"
    if owner is not None:
        name = f"process {owner.pid} on {owner.host}, since {owner.since}"
    return RunError(f"{run} is in use by {name}. Wait for it, or stop it.")


def _is_abandoned(path: Path) -> bool:
    """Whether the owner of a lease has ended, or has not renewed it for long."""
    owner = _read_owner(path)
    if owner is not None and owner.host == socket.gethostname():
        try:
            os.kill(owner.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # lives, and is another user's
            return False
        return False
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def read_config(run: Path) -> RunConfig:
    """RUN/config.json; RunError if it is damaged."""
    path = run / CONFIG
    return schema.read(path, RunConfig, RunError, advice="Name another folder with --run.")


def _check_identity(run: Path, config: RunConfig, identity: Mapping[str, Any]) -> None:
    differences = [
        *_differences(flatten(config.recipe), flatten(identity["recipe"])),
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
