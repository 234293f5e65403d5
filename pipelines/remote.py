"""Shards that can only be streamed: http(s), s3 and other fsspec URLs, and the output of a command.

    open_loader("https://host/imagenet", "train", LoaderConfig(order="shards"))
    open_loader("s3://bucket/imagenet", "train", LoaderConfig(order="shards"))
    open_loader("pipe:ssh host cat /data/imagenet/{}", ...)    {} is the path under the root

The tars are split into samples by the webdataset library, in the order of
`BatchSchedule.row_ranges`: one shard after the other, each in one go, with the next ones opened
while one is read. Every shard is counted and hashed as it passes; one that is not the manifest's is
an error at its end. A connection that breaks is tried again from the sample it broke at; a server
that stays silent is an error.
"""

import shlex
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.errors import DataError, hide_secrets
from pipelines.format import (
    MANIFEST,
    MAX_JSON,
    Manifest,
    ShardIndex,
    decode_object,
    most_index_bytes,
)
from pipelines.imagestats import ImageStats, stats_paths
from pipelines.order import BatchPlan, BatchSchedule, RowRange
from pipelines.shards import Image, first_indices, locate
from pipelines.streams import ShardStream, fetch


def url_of(root: str, name: str) -> str:
    """The URL of a file under the root; in a command the name is quoted for the shell."""
    name = shlex.quote(name) if root.startswith("pipe:") else name
    return root.replace("{}", name) if "{}" in root else f"{root.rstrip('/')}/{name}"


def manifest_of(root: str, timeout: float) -> Manifest:
    """The manifest behind a URL; DataError if there is none or it cannot be read."""
    url = url_of(root, MANIFEST)
    data, where = fetch(url, timeout, MAX_JSON), hide_secrets(url)
    raw = decode_object(data, where, "Is it the root of a data set?")
    return Manifest.from_json(raw, where)


def stats_of(root: str, manifest: Manifest, timeout: float) -> ImageStats:
    """The statistics of the train split behind a URL."""
    with TemporaryDirectory() as folder:
        paths = stats_paths(Path(folder), "train")
        # stats.npz is a mean image of float64 and a few small arrays with their headers.
        limits = {paths.json: MAX_JSON, paths.npz: manifest.size**2 * 3 * 8 + (1 << 16)}
        for path, limit in limits.items():
            path.write_bytes(fetch(url_of(root, path.name), timeout, limit))
        return ImageStats.load(Path(folder), manifest)


class RemoteReader:
    """One split read sequentially; `read` takes the indices in the order of the schedule.

    Args:
        root: URL or command, see the module; a folder too.
        manifest: of the data set.
        split: name of the split.
        streams: shards that are open at the same time.
        timeout: seconds without a byte after which a server counts as dead.
    """

    concurrent = False
    means = "webdataset + "

    def __init__(
        self, root: str, manifest: Manifest, split: str, *, streams: int, timeout: float
    ) -> None:
        self.root = root
        self.manifest = manifest
        self.split = manifest.split(split, hide_secrets(root))
        self.lengths = [shard.samples for shard in self.split.shards]
        self._first_indices: list[int] = first_indices(self.lengths).tolist()
        self._streams = streams
        self._timeout = timeout
        self._ranges: Iterator[RowRange] = iter(())
        self._open: deque[ShardStream] = deque()
        self._lock = threading.Lock()

    def batches(self, schedule: BatchSchedule, epoch: int, step: int) -> Iterator[BatchPlan]:
        """Plans of the schedule, from a step on; `read` opens their shards ahead."""
        self.close()
        self._ranges = schedule.row_ranges(epoch, step)
        return schedule.batches(epoch, step)

    def read(self, index: int) -> Image:
        """The next sample, which must be the one at `index`."""
        with self._lock:
            while self._open and self._open[0].at_end:
                self._open.popleft().close()
            for rows in islice(self._ranges, self._streams - len(self._open)):
                self._open.append(self._start(rows))
            stream = self._open[0]
        number, row = locate(self._first_indices, index)
        if (stream.number, stream.row) != (number, row):
            raise RuntimeError(f"{self.where(index)} was requested out of turn")
        return stream.next()

    def where(self, index: int) -> str:
        """Shard, key and byte offset of a sample, for messages; fetches the index."""
        return self._where(*locate(self._first_indices, index))

    def keys(self) -> list[str]:
        """Keys of the whole split in its own order; fetches every index."""
        indexes = (self._index(number) for number in range(len(self.lengths)))
        return [index.key(row) for index in indexes for row in range(len(index.keys))]

    def close(self) -> None:
        """End all streams; `batches` opens new ones."""
        with self._lock:
            self._ranges = iter(())
            for stream in self._open:
                stream.cancel()
            while self._open:
                self._open.popleft().close()

    def _start(self, rows: RowRange) -> ShardStream:
        shard = self.split.shards[rows.number]
        stream = ShardStream(
            url_of(self.root, shard.name), shard, rows, self._timeout, self.manifest
        )
        stream.where = lambda row: self._where(rows.number, row)
        stream.start()
        return stream

    def _where(self, number: int, row: int) -> str:
        url = hide_secrets(url_of(self.root, self.split.shards[number].name))
        try:
            index = self._index(number)
        except DataError:
            return f"{url}, sample {row}"
        return f"{url}, key {index.key(row)}, offset {index.offsets[row]}"

    def _index(self, number: int) -> ShardIndex:
        shard = self.split.shards[number]
        url = url_of(self.root, shard.index)
        data = fetch(url, self._timeout, most_index_bytes(shard.samples))
        return ShardIndex.parse(data, shard, hide_secrets(url))
