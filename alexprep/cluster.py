# pyright: basic
"""The same tasks on a Dask cluster (extra `cluster`)."""

import time
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, TypeVar, cast

from alexprep.errors import PrepareError

try:
    from distributed import Client, Future, TimeoutError, wait
    from distributed.scheduler import KilledWorker
except ImportError as error:
    raise PrepareError(
        "--scheduler needs Dask, which is not installed. Install it with "
        "`pip install 'alexprep[cluster]'`."
    ) from error

T = TypeVar("T")
R = TypeVar("R")
SECONDS_TO_CONNECT = 15
SECONDS_TO_WAIT = 1
SECONDS_WITHOUT_WORKERS = 20
TASKS_AHEAD = 2


def completed_on_cluster(
    function: Callable[[T], R], tasks: Iterable[T], scheduler: str
) -> Generator[tuple[int, R], None, None]:
    """Yield (index of the task, result) as the workers of `scheduler` finish them.

    A task whose worker dies is done by another one. PrepareError when the scheduler does not
    answer, no worker is left for 20 s, or one task has killed several workers. Source and target
    must be reachable from every worker under the same path.
    """
    try:
        client = Client(scheduler, timeout=SECONDS_TO_CONNECT)
    except (OSError, TimeoutError, ValueError) as error:
        raise PrepareError(
            f"No Dask scheduler answers at {scheduler} ({error or 'timed out'}). Start one with "
            "`dask scheduler`, workers with `dask worker ADDRESS`, and give its address."
        ) from error
    running: dict[Future, int] = {}
    waiting = enumerate(tasks)
    last_seen = time.monotonic()
    with client:
        try:
            while True:
                threads = sum(cast(dict[str, int], client.nthreads()).values())
                if threads:
                    last_seen = time.monotonic()
                _refuse_to_wait(last_seen)
                for index, task in islice(
                    waiting, max(0, max(1, threads) * TASKS_AHEAD - len(running))
                ):
                    running[client.submit(function, task, pure=False)] = index
                if not running:
                    return
                for future, result in _results(running):
                    yield running.pop(future), result
        finally:
            client.cancel(list(running))


def _refuse_to_wait(last_seen: float) -> None:
    if time.monotonic() - last_seen > SECONDS_WITHOUT_WORKERS:
        raise PrepareError(
            f"The Dask cluster has had no worker for {SECONDS_WITHOUT_WORKERS} seconds. Start "
            "workers and run the same command again: finished work is kept."
        )


def _results(running: dict[Future, int]) -> list[tuple[Future, Any]]:
    """What is done within a second, if anything."""
    try:
        ready: Any = wait(list(running), timeout=SECONDS_TO_WAIT, return_when="FIRST_COMPLETED")
        # A result that died with its worker is computed again: its future is done, and is not.
        return [(future, future.result(timeout=SECONDS_TO_WAIT)) for future in ready.done]
    except TimeoutError:
        return []
    except KilledWorker as error:
        raise PrepareError(
            f"Several Dask workers died over one task ({error}). See the workers' logs; if memory "
            "ran out, start them with fewer threads."
        ) from error
