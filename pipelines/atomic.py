"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import BinaryIO


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that a file cannot be written.

    OSError with the path: its folder is missing or may not be written to, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "Is a folder; name a file", str(path))
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # without a name, where the system can
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """A file to write that replaces `path` when the block ends, and is removed if it raises.

    Readers and a power cut find the old file or the new. OSError names the path, where the system's
    own names none.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the new name may outlive a power cut, its bytes not
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` as `whole_file` does."""
    with whole_file(path) as file:
        file.write(data)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, whose names outlive a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
