"""Read batches before they are asked for, in order, without losing an error."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.plan import Task
from pipelines.shards import Image


class Reader(Protocol):
    """Samples by their place in the split's own order."""

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
    waiting: deque[Future[RawBatch]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(read_batch, reader, task))
            if len(waiting) > depth:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
