"""The batch after this one is made in a thread while this one trains."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Self

from alexnet.training.meter import Batch
from alexnet.training.run import Loader


class Ahead:
    """A loader whose next batch is already being made; enter it, so that the thread ends.

    Its state counts what was given out, not the batch that waits: a run that stops here goes on
    with that one.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._state = loader.state_dict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alexnet-ahead")
        self._coming: Future[tuple[Batch, dict[str, Any]] | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, once it has made what it is making."""
        if self._coming is not None:
            wait([self._coming])
        self._thread.shutdown()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch."""
        batches = iter(self._loader)
        self._coming = self._thread.submit(self._make, batches)
        while made := self._coming.result():
            batch, self._state = made
            self._coming = self._thread.submit(self._make, batches)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The loader's, as of the last batch given out."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loader.load_state_dict(state)
        self._state = self._loader.state_dict()

    def _make(self, batches: Iterator[Batch]) -> tuple[Batch, dict[str, Any]] | None:
        batch = next(batches, None)
        return None if batch is None else (batch, self._loader.state_dict())
