"""Read batches before they are asked for, in order, without losing an error."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.format import Manifest, Split
from pipelines.plan import Plan, Task
from pipelines.shards import Image

T = TypeVar("T")
U = TypeVar("U")


class Reader(Protocol):
    """Samples by their place in the split's own order, read as the plan wants them.

    concurrent: whether several threads may read, in any order.
    means: how it reads, for `Loader.backend`; nothing if by index.
    """

    concurrent: bool
    means: str
    manifest: Manifest
    split: Split
    lengths: list[int]

    def tasks(self, plan: Plan, epoch: int, step: int) -> Iterator[Task]: ...
    def keys(self) -> list[str]: ...
    def read(self, place: int) -> Image: ...
    def where(self, place: int) -> str: ...
    def close(self) -> None: ...


class RawBatch(NamedTuple):
    """The stored bytes of one batch and how they are to be augmented."""

    task: Task
    jpgs: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]  # (N,)


def read_batch(reader: Reader, task: Task) -> RawBatch:
    """The bytes and labels that a task names."""
    images = [reader.read(place) for place in task.places.tolist()]
    labels = np.fromiter((image.label for image in images), np.int64, len(images))
    return RawBatch(task, [image.jpg for image in images], labels)


def read_ahead(
    reader: Reader, tasks: Iterator[Task], *, threads: int, depth: int
) -> Generator[RawBatch]:
    """Batches in the order of `tasks`, up to `depth` of them read early by `threads` threads.

    An error is raised when its batch is due, after all batches before it. Closing the generator
    ends the threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="alexprep-read")
    try:
        for batch in look_ahead(tasks, lambda task: pool.submit(read_batch, reader, task), depth):
            yield batch.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def look_ahead(items: Iterator[T], start: Callable[[T], U], depth: int) -> Generator[U]:
    """What `start` makes of each item, `depth` of them started before they are asked for.

    An error of `items` is raised after everything before it was given out.
    """
    waiting: deque[U] = deque()
    try:
        for item in items:
            waiting.append(start(item))
            if len(waiting) > depth:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting
