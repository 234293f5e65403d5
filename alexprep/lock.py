"""One process writes in a folder at a time: a lock of the system, or a lease where it has none.

The system releases a lock however its holder ends. Some file systems (Lustre without flock, NFS
without its lock daemon) refuse to lock; there a second file, the lease, keeps others out for as
long as its owner renews its time. Both files say who holds the folder.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec

from alexprep import schema
from alexprep.errors import warn
from alexprep.machine import started_at

ENOTSUPP = 524  # the kernel's own, which has no name in user space; NFS answers with it
WITHOUT_FLOCK = frozenset(
    {
        *(errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL),
        ENOTSUPP,
    }
)
RENEW_SECONDS = 30.0
ABANDONED_SECONDS = 600.0
CLOCK_SECONDS = 5.0  # that the start of a process and the time in a lock may be apart


class Owner(msgspec.Struct):
    """What the files of a lock and a lease hold: the process that writes in the folder."""

    host: str
    pid: int
    since: str


@contextmanager
def hold_lock(
    path: Path, folder: Path, error: type[Exception], *, remove: bool = False
) -> Generator[None]:
    """Hold the lock file at `path`, whose name ends in "lock", on behalf of `folder`.

    `error` says who else holds it. `remove`: leave no file behind.
    """
    try:
        file = path.open("a+")
    except FileNotFoundError:  # the last holder has just removed the folder of the lock
        raise _in_use(folder, path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder, path, error) from None
        except OSError as reason:
            if reason.errno not in WITHOUT_FLOCK:
                raise
            if remove:
                path.unlink(missing_ok=True)
            with hold_lease(lease_path(path), folder, error):
                yield
            return
        # The last holder may have removed the file after it was opened here. This is then the lock
        # of a file that nobody else will find.
        if not _is_at(file, path):
            raise _in_use(folder, path, error)
        file.truncate(0)
        file.write(_owner())
        file.flush()
        with suppress(OSError):
            os.fsync(file.fileno())  # on NFS other machines see it only then
        try:
            yield
        finally:
            if remove and _is_at(file, path):
                path.unlink()


@contextmanager
def temporary_folder(prefix: str) -> Generator[Path]:
    """A folder of that name and some digits; removes those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    # Killed before it made the folder, a process leaves a lock alone.
    for leftover in {path.with_suffix("") for path in parent.glob(f"{prefix}*")}:
        with suppress(OSError, BlockingIOError), _hold_folder(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    with _hold_folder(folder):  # before it exists, so that no other call takes it for a leftover
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _hold_folder(folder: Path) -> AbstractContextManager[None]:
    return hold_lock(folder.with_name(f"{folder.name}.lock"), folder, BlockingIOError, remove=True)


def lease_path(lock: Path) -> Path:
    """Where the lease is that stands in for a lock."""
    return lock.with_name(f"{lock.name.removesuffix('lock')}lease")


@contextmanager
def hold_lease(path: Path, folder: Path, error: type[Exception]) -> Generator[None]:
    """Hold the lease at `path`: a file that is there while its owner renews its time."""
    text = _owner()
    with suppress(FileNotFoundError):
        if _is_abandoned(path):
            _remove_abandoned(path)
    try:
        # Exclusive creation is atomic where locks are not to be had, on NFS too (from version 3).
        with path.open("x") as file:
            file.write(text)
    except (FileExistsError, FileNotFoundError):
        raise _in_use(folder, path, error) from None
    warn(f"{folder} cannot be locked; {path.name} keeps other runs out.")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(OSError):
                # A server that is away for a while does not end the run; the lease is ours until it
                # is old.
                os.utime(path)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # After a pause of this process it may be the lease of another one.
        with suppress(OSError):
            if path.read_text() == text:
                path.unlink()


def _remove_abandoned(path: Path) -> None:
    """Remove a lease, in one process at a time: another one may just have replaced it by its own.

    Whoever comes second finds the new lease, or is told that the folder is in use.
    """
    guard = path.with_name(f"{path.name}.removal")
    try:
        guard.open("x").close()
    except FileExistsError:
        if time.time() - guard.stat().st_mtime > ABANDONED_SECONDS:  # of a killed process
            guard.unlink(missing_ok=True)
        return
    try:
        if _is_abandoned(path):
            path.unlink()
    finally:
        guard.unlink(missing_ok=True)


def lock_owner(path: Path) -> Owner | None:
    """The process that holds the lock at `path`, or its lease; None if that has ended.

    Nothing is locked, so that nobody is kept out. A process on another host is believed to live
    as long as its files are there.
    """
    for file in (lease_path(path), path):
        owner = _read_owner(file)
        if owner is not None and (owner.host != socket.gethostname() or _lives(owner)):
            return owner
    return None


def _lives(owner: Owner) -> bool:
    """Whether the process is there and has been since; its number may be another's by now."""
    try:
        began = started_at(owner.pid)
    except (OSError, IndexError):
        return False
    return began < datetime.fromisoformat(owner.since).timestamp() + CLOCK_SECONDS


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since})


def _read_owner(path: Path) -> Owner | None:
    """None where its process has not written it yet, or was killed while doing so."""
    with suppress(OSError, ValueError):
        return schema.read(path, Owner, ValueError)
    return None


def _in_use(folder: Path, path: Path, error: type[Exception]) -> Exception:
    owner = _read_owner(path)
    name = "another process"
    if owner is not None:
        name = f"process {owner.pid} on {owner.host}, since {owner.since}"
    return error(f"{folder} is in use by {name}. Wait for it, or stop it.")


def _is_abandoned(path: Path) -> bool:
    """Whether the owner of a lease has ended, or has not renewed it for long."""
    age = time.time() - path.stat().st_mtime
    owner = _read_owner(path)
    if owner is None or owner.host != socket.gethostname():
        return age > ABANDONED_SECONDS
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # lives, and is another user's
        return False
    return False
