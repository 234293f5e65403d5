"""What a loader reads with: samples by their place, and batches of stored bytes."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.format import Manifest, Split
from pipelines.plan import Plan, Task
from pipelines.shards import Image


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
