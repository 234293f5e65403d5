"""One remote shard as a stream of samples, read ahead by a thread."""

import base64
import hashlib
import os
import queue
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import fsspec  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from webdataset.gopen import Pipe
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipelines.errors import DataError, hide_secrets
from pipelines.format import Manifest, Shard
from pipelines.jpeg import check_jpeg
from pipelines.order import RowRange
from pipelines.shards import Image, parse_label

WAITING = 256  # samples of one shard read ahead: 9 MB of 256-pixel JPEGs
RETRY_AFTER = (0.5, 2.0)  # seconds
CHUNK = 1 << 20


class Stream(Protocol):
    """A binary file that is read sequentially."""

    def read(self, size: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


def open_stream(url: str, timeout: float) -> Stream:
    """Open a URL, a command (pipe:...) or a file for reading."""
    if url.startswith("pipe:"):
        # As webdataset opens it, but in a process group of its own that can be ended as a whole.
        command = url.removeprefix("pipe:")
        return Pipe(command, mode="rb", shell=True, ignore_status=[141], start_new_session=True)
    if url.startswith(("http://", "https://")):
        return cast(Stream, urllib.request.urlopen(_http_request(url), timeout=timeout))
    if "://" in url:
        return cast(Stream, fsspec.open(url, "rb").open())  # pyright: ignore
    return Path(url).open("rb")


def _http_request(url: str) -> urllib.request.Request:
    """A GET; user and password go into a header, for urllib would take them for a host name."""
    address = urlsplit(url)
    userinfo, _, host = address.netloc.rpartition("@")
    request = urllib.request.Request(address._replace(netloc=host).geturl())
    if userinfo:
        token = base64.b64encode(unquote(userinfo).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def close_stream(stream: Stream) -> None:
    """Close it wherever it stands; a command that is still writing is ended."""
    if isinstance(stream, Pipe):
        with suppress(ProcessLookupError):
            os.killpg(stream.proc.pid, signal.SIGKILL)  # pyright: ignore[reportUnknownMemberType]
    with suppress(OSError):  # a Pipe raises its command's status; what was read is checked
        stream.close()


def fetch(url: str, timeout: float, limit: int) -> bytes:
    """The whole of a small file of at most `limit` bytes; DataError if it cannot be read."""
    data = bytearray()
    try:
        stream = open_stream(url, timeout)
        try:
            while len(data) <= limit and (chunk := stream.read(CHUNK)):
                data += chunk
            if len(data) <= limit:
                stream.close()  # a command that failed reports it here
        finally:
            close_stream(stream)
    except Exception as error:
        raise DataError(
            f"{hide_secrets(url)} cannot be read ({brief(error)}). Is it in a data set, and is the "
            "server up?"
        ) from error
    if len(data) > limit:
        raise DataError(
            f"{hide_secrets(url)} has more than {limit} bytes, the most that is read of such a "
            "file. Is it the root of a data set?"
        )
    return bytes(data)


def brief(error: BaseException) -> str:
    """What went wrong; webdataset appends its stream and URL to the arguments."""
    return hide_secrets(f"{type(error).__name__}: {error.args[0] if error.args else error}")


class Counted:
    """A stream that counts and hashes the bytes read; OverflowError after more than `limit`."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self.stream.read(size)
        self.bytes += len(data)
        self.sha256.update(data)
        if self.bytes > self.limit:
            raise OverflowError(f"more than {self.limit} bytes")
        return data


class ShardStream(threading.Thread):
    """A range of rows of a shard, in order; errors come out of `next`, at their turn."""

    def __init__(
        self, url: str, shard: Shard, rows: RowRange, timeout: float, manifest: Manifest
    ) -> None:
        super().__init__(name=f"alexprep-stream-{rows.number}", daemon=True)
        self.url = hide_secrets(url)
        self.shard = shard
        self.number = rows.number
        self.row = rows.start  # of the sample that `next` gives
        self.where: Callable[[int], str] = lambda row: f"{self.url}, sample {row}"
        self._secret_url = url
        self._fetched = rows.start  # row that the thread reads next
        self._stop_row = rows.stop
        self._timeout = timeout
        self._manifest = manifest
        self._queue: queue.Queue[Image | BaseException] = queue.Queue(WAITING)
        self._cancelled = threading.Event()
        self._stream: Stream | None = None

    @property
    def at_end(self) -> bool:
        return self.row == self._stop_row

    def next(self) -> Image:
        """The sample of row `row`; DataError if the shard is not what it should be, or silent."""
        try:
            item = self._queue.get(timeout=self._timeout)
        except queue.Empty:
            raise DataError(
                f"{self.url}: nothing has arrived for {self._timeout:g} seconds, after sample "
                f"{self.row} of {self.shard.samples}. Is the server up? Resume from the saved "
                "state when it is, or set a longer LoaderConfig.timeout."
            ) from None
        if isinstance(item, BaseException):
            raise item
        self.row += 1
        return item

    def cancel(self) -> None:
        """Let the thread end, and wake who waits in `next`."""
        self._cancelled.set()
        with suppress(queue.Full):
            self._queue.put_nowait(DataError(f"{self.url}: the loader was closed."))
        if isinstance(self._stream, Pipe):
            close_stream(self._stream)

    def close(self) -> None:
        """Cancel and wait; a read that a silent server blocks ends by its own timeout."""
        self.cancel()
        self.join(timeout=2)

    def run(self) -> None:
        try:
            for image in self._samples():
                if not self._put(image):
                    return
        except Exception as error:  # noqa: BLE001 - it is raised in the consumer, by `next`
            self._put(error)

    def _put(self, item: Image | Exception) -> bool:
        while not self._cancelled.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def _samples(self) -> Iterator[Image]:
        """All samples; a connection that breaks is opened again where it broke."""
        for delay in (*RETRY_AFTER, None):
            try:
                yield from self._once()
                return
            except DataError:
                raise
            except Exception as error:
                if delay is None or self._cancelled.wait(delay):
                    raise DataError(
                        f"{self.where(self._fetched)}: the shard cannot be read "
                        f"({brief(error)}). Is it whole, and is the server up?"
                    ) from error

    def _once(self) -> Iterator[Image]:
        counted = Counted(open_stream(self._secret_url, self._timeout), self.shard.bytes)
        self._stream = counted.stream
        try:
            samples = group_by_keys(tar_file_expander([{"url": self.url, "stream": counted}]))
            for row, sample in enumerate(islice(samples, self._stop_row)):
                if row >= self._fetched:
                    image = self._checked(row, sample)
                    if row + 1 == self.shard.samples:
                        self._check_whole(counted)
                    yield image
                    self._fetched = row + 1
            if self._fetched < self._stop_row:
                raise EOFError(
                    f"it ends after {self._fetched} of {self.shard.samples} samples, at "
                    f"{counted.bytes} of {self.shard.bytes} bytes"
                )
        except OverflowError as error:
            # Not an error of the connection, which would be tried again.
            raise DataError(
                f"{self.url} continues after the {self.shard.bytes} bytes that the manifest gives: "
                "it was changed. Copy or make the shard again."
            ) from error
        finally:
            self._stream = None
            close_stream(counted.stream)

    def _checked(self, row: int, sample: Mapping[str, Any]) -> Image:
        try:
            jpg, digits = sample["jpg"], sample["cls"]
            manifest = self._manifest
            check_jpeg(jpg, manifest.size, keep_aspect=manifest.keep_aspect)
            label = parse_label(digits, len(manifest.classes))
            return Image(np.frombuffer(jpg, np.uint8), label)
        except KeyError as error:
            raise DataError(f"{self.where(row)}: the sample has no {error} member.") from error
        except ValueError as error:
            raise DataError(f"{self.where(row)}: {error}. Make the shard again.") from error

    def _check_whole(self, counted: Counted) -> None:
        while counted.read(CHUNK):
            pass
        if counted.sha256.hexdigest() != self.shard.sha256:
            raise DataError(
                f"{self.url}: the {counted.bytes} bytes that were read have sha256 "
                f"{counted.sha256.hexdigest()}, the manifest says {self.shard.bytes} bytes and "
                f"{self.shard.sha256}: the shard was changed. Copy or make it again."
            )
