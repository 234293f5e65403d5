"""Results computed ahead by threads: in order, and without losing an error."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def prefetch(
    items: Iterable[T], function: Callable[[T], U], workers: int, depth: int
) -> Generator[U]:
    """`function(item)` of each item in order, made by `workers` threads, up to `depth` early.

    `items` is iterated in the consumer's thread. An error of `items` or `function` is raised at its
    turn, after all results before it. Closing the generator waits for the calls that are running
    and ends the threads: a call that blocks must be woken first.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="alexprep-prefetch")
    pending: deque[Future[U]] = deque()
    try:
        for future in _started(items, function, pool):
            pending.append(future)
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _started(
    items: Iterable[T], function: Callable[[T], U], pool: ThreadPoolExecutor
) -> Generator[Future[U]]:
    """A future for each item; an error of `items` becomes the last one."""
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:  # noqa: BLE001 - raised again in the consumer, at its turn
        failed: Future[U] = Future()
        failed.set_exception(error)
        yield failed
