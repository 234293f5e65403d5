"""Files that appear whole or not at all."""

import tempfile
from errno import EISDIR
from pathlib import Path


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that a file cannot be written.

    OSError with the path: its folder is missing or may not be written to, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "Is a folder; name a file", str(path))
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it there: a reader finds the old file or the new."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
