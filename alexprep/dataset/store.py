"""Where a data set is written: a folder, or an fsspec URL. Only complete files are visible there.

In a folder a file is written under STATE, synced, and renamed to its name; the folders are synced
before the manifest is written, and after. A sync takes as long as encoding several images, so there
is only one per file: a name lost in a power cut is missed and rebuilt by the next run. For other
storage a file is first written to a local temporary folder; an object store shows an object when
its upload is complete, on anything else it is uploaded under another name and renamed.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from alexprep.errors import PrepareError
from alexprep.lock import hold_lock, lease_path, temporary_folder
from pipelines.atomic import make_folder, sync_folder

STATE = ".alexprep"
RECORDS = f"{STATE}/records"
# An object is seen when its upload is complete; asked for a folder, some would make the bucket.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oss", "oci"})


class Store(Protocol):
    """What the writers need of storage; names are paths under its root."""

    url: str

    def locked(self) -> Any:
        """Hold the store for one run at a time."""
        ...

    def holder(self) -> str:
        """Who holds the store, in the words of its lock; "" for a store that has none."""
        ...

    def staging(self) -> Any:
        """Enter a local folder for incomplete files; it is emptied on leaving."""
        ...

    def publish(self, staged: Path, name: str) -> None:
        """Make a finished file visible under its name."""
        ...

    def settle(self) -> None:
        """Make sure that all names published so far outlive a power cut."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content, or None where there is no such file."""
        ...

    def size(self, name: str) -> int | None: ...

    def sha256(self, name: str) -> str | None:
        """The hash of the content; None where reading it all back would cost a download."""
        ...

    def listing(self, folder: str = "") -> list[str]:
        """Names directly in a folder; empty where there is none."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there."""
        ...


def open_store(url: str) -> Store:
    """A folder for a path or file:// URL, else what fsspec has for the URL.

    PrepareError for the Hugging Face Hub, where each file would be a commit of its own: ILSVRC's
    thousand shards would take a day, and the Hub refuses after some hundred.
    """
    if url.startswith("hf://"):
        repository = url.removeprefix("hf://").removeprefix("datasets/").strip("/")
        raise PrepareError(
            f"Cannot shard to {url}: the Hub takes few commits an hour, and each shard would be "
            "several. Shard to a folder, then upload it: "
            f"hf upload-large-folder {repository} FOLDER --repo-type dataset"
        )
    return LocalStore(local_path(url)) if is_local(url) else RemoteStore(url)


def is_local(url: str) -> bool:
    """Whether it is a path or file:// URL."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The folder of a path or file:// URL; a ~ in quotes, which no shell expands, is the home."""
    path = Path(url.removeprefix("file://"))
    return path.expanduser() if url.startswith("~/") else path


def write_bytes(store: Store, name: str, data: bytes) -> None:
    """Publish a small file."""
    try:
        with store.staging() as folder:
            staged = folder / Path(name).name
            staged.write_bytes(data)
            store.publish(staged, name)
    except OSError as error:
        raise PrepareError(
            f"Cannot write {name} to {store.url}: {error.strerror or error}. Finished shards are "
            "kept: free some space there and run the same command again."
        ) from error


class LocalStore:
    """A folder of this machine, or one that all machines of a cluster mount."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Refuse a second run, one of `stats` and `planes` too; leaves no trace of itself."""
        state = self.root / STATE
        self._make(state)
        try:
            with hold_lock(state / "lock", self.root, PrepareError, remove=True):
                self._sweep()
                try:
                    yield
                finally:
                    self._sweep()
        finally:
            with suppress(OSError):  # not empty, or the next run is there
                state.rmdir()

    def holder(self) -> str:
        lock = self.root / STATE / "lock"
        texts = (path.read_text() for path in (lease_path(lock), lock) if path.is_file())
        return next(texts, "nobody")

    def _sweep(self) -> None:
        """Remove the incomplete files of processes that were killed."""
        for leftover in (self.root / STATE).glob("partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def staging(self) -> Generator[Path]:
        parent = self.root / STATE
        self._make(parent)
        folder = Path(tempfile.mkdtemp(prefix="partial-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, name: str) -> None:
        path = self.root / name
        self._make(path.parent)
        if not name.startswith(RECORDS):  # a record lost in a power cut costs one shard
            with staged.open("rb") as file:
                os.fsync(file.fileno())
        staged.replace(path)

    def settle(self) -> None:
        for folder in (path for path in self.root.iterdir() if path.is_dir()):
            sync_folder(folder)
        sync_folder(self.root)

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def sha256(self, name: str) -> str | None:
        with (self.root / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def listing(self, folder: str = "") -> list[str]:
        path = self.root / folder
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        try:
            make_folder(folder)
        except (FileExistsError, NotADirectoryError):
            raise PrepareError(
                f"Cannot make the folder {folder}: a file of that name is in the way. "
                "Remove it or give another output folder."
            ) from None
        except OSError as error:
            raise PrepareError(
                f"Cannot make the folder {folder}: {error.strerror}. Name another output folder."
            ) from None


class RemoteStore:
    """An fsspec URL, such as s3://bucket/folder or memory://folder."""

    def __init__(self, url: str) -> None:
        # It takes a fifth of the start of a worker, for which most have no use.
        import fsspec  # pyright: ignore[reportMissingTypeStubs] # noqa: PLC0415

        self.url = url.rstrip("/")
        try:
            opened: Any = fsspec.core.url_to_fs(self.url)  # pyright: ignore
            self.fs, self.root = opened[0], str(opened[1])
        except (ImportError, ValueError) as error:
            raise PrepareError(f"Cannot write to {url}: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        """What a storage says, which may repeat the password without the URL around it."""
        userinfo = urlsplit(self.url).netloc.rpartition("@")[0]
        return str(error).replace(userinfo, "***") if userinfo else str(error)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Make sure of the storage; nothing is locked.

        Object stores have no lock that ends with its holder. Two runs of the same plan write the
        same bytes, and another plan is refused.
        """
        try:
            self.fs.exists(self.root)
        except Exception as error:  # every storage has its own exceptions for no access
            raise PrepareError(
                f"Cannot reach {self.url}: {self._reason(error)}. Check its address and "
                "credentials."
            ) from error
        yield

    def holder(self) -> str:
        return ""

    @contextmanager
    def staging(self) -> Generator[Path]:
        with temporary_folder("alexprep-upload-") as folder:
            yield folder

    def publish(self, staged: Path, name: str) -> None:
        path = self._path(name)
        try:
            if self.fs.protocol[0] in OBJECT_STORES:
                self.fs.put_file(str(staged), path)
            else:
                self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(staged), f"{path}.partial")
                self.fs.mv(f"{path}.partial", path)
        except OSError as error:
            raise PrepareError(
                f"Cannot write {self.url}/{name}: {self._reason(error)}. Finished shards are kept: "
                "run the same command again."
            ) from error

    def settle(self) -> None:
        """Nothing to do: remote storage is durable on its own."""

    def read(self, name: str) -> bytes | None:
        try:
            return self.fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        self.fs.invalidate_cache()
        try:
            return int(self.fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        return None

    def listing(self, folder: str = "") -> list[str]:
        self.fs.invalidate_cache()
        try:
            paths = self.fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in paths)

    def remove(self, name: str) -> None:
        if self.fs.exists(self._path(name)):
            self.fs.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")
