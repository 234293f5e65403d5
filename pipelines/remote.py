"""Shards that can only be streamed: http(s), s3 and other fsspec URLs, and the output of a command.

    open_loader("https://host/imagenet", "train", LoaderConfig(order="shards"))
    open_loader("s3://bucket/imagenet", "train", LoaderConfig(order="shards"))
    open_loader("pipe:ssh host cat /data/imagenet/{}", ...)    {} is the path under the root

The tars are taken apart by the webdataset library, in the order of `Plan.runs`: one shard after the
other, each in one go, with the next ones opened while one is read. Every shard is counted and
hashed as it passes; one that is not the manifest's is an error at its end. A connection that breaks
is tried again from the sample it broke at; a server that stays silent is an error.
"""

import shlex
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.errors import DataError
from pipelines.format import MANIFEST, Manifest, decode_object
from pipelines.imagestats import ImageStats, stats_paths
from pipelines.index import ShardIndex, parse_arrays
from pipelines.plan import Plan, Run, Task
from pipelines.shards import Image
from pipelines.streams import ShardStream, fetch


def url_of(root: str, name: str) -> str:
    """The URL of a file under the root; in a command the name is quoted for the shell."""
    name = shlex.quote(name) if root.startswith("pipe:") else name
    return root.replace("{}", name) if "{}" in root else f"{root.rstrip('/')}/{name}"


def manifest_of(root: str, timeout: float) -> Manifest:
    """The manifest behind a URL; DataError if there is none or it cannot be read."""
    url = url_of(root, MANIFEST)
    raw = decode_object(fetch(url, timeout), url, "Is it the root of a data set?")
    return Manifest.from_json(raw, Path(root))


def stats_of(root: str, manifest: Manifest, timeout: float) -> ImageStats:
    """The statistics of the train split behind a URL."""
    with TemporaryDirectory() as folder:
        paths = stats_paths(Path(folder), "train")
        for path in (paths.json, paths.npz):
            path.write_bytes(fetch(url_of(root, path.name), timeout))
        return ImageStats.load(Path(folder), manifest)


class RemoteReader:
    """One split read from begin to end; `read` takes the places in the order of the plan.

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
        self.split = manifest.split(split, Path(root))
        self.lengths = [shard.samples for shard in self.split.shards]
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._streams = streams
        self._timeout = timeout
        self._runs: Iterator[Run] = iter(())
        self._open: deque[ShardStream] = deque()
        self._lock = threading.Lock()

    def tasks(self, plan: Plan, epoch: int, step: int) -> Iterator[Task]:
        """The plan's tasks from here on; their shards begin to be read."""
        self.close()
        self._runs = plan.runs(epoch, step)
        return plan.tasks(epoch, step)

    def read(self, place: int) -> Image:
        """The next sample, which must be the one at `place`."""
        with self._lock:
            while self._open and self._open[0].at_end:
                self._open.popleft().close()
            for run in islice(self._runs, self._streams - len(self._open)):
                self._open.append(self._start(run))
            stream = self._open[0]
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        row = place - int(self._starts[number])
        if (stream.number, stream.row) != (number, row):
            raise RuntimeError(f"{self.where(place)} was asked for out of its turn")
        return stream.next()

    def where(self, place: int) -> str:
        """Shard, key and byte offset of a sample, for messages; the index is asked for them."""
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._where(number, place - int(self._starts[number]))

    def keys(self) -> list[str]:
        """Keys of the whole split in its own order; fetches every index."""
        indexes = (self._index(number) for number in range(len(self.lengths)))
        return [index.key(row) for index in indexes for row in range(len(index.keys))]

    def close(self) -> None:
        """End all streams; `tasks` begins anew."""
        with self._lock:
            self._runs = iter(())
            for stream in self._open:
                stream.cancel()
            while self._open:
                self._open.popleft().close()

    def _start(self, run: Run) -> ShardStream:
        shard = self.split.shards[run.number]
        stream = ShardStream(
            url_of(self.root, shard.name), shard, run, self._timeout, self.manifest
        )
        stream.where = lambda row: self._where(run.number, row)
        stream.start()
        return stream

    def _where(self, number: int, row: int) -> str:
        url = url_of(self.root, self.split.shards[number].name)
        try:
            index = self._index(number)
        except DataError:
            return f"{url}, sample {row}"
        return f"{url}, key {index.key(row)}, offset {index.offsets[row]}"

    def _index(self, number: int) -> ShardIndex:
        shard = self.split.shards[number]
        url = url_of(self.root, shard.index)
        return parse_arrays(fetch(url, self._timeout), shard, url)
