"""A Dask cluster as an executor: its workers see source and output under the same paths.

Each worker may be another machine, with other programs and another user. What a task needs of them
is checked with every task, since workers come and go. Errors name the worker.
"""

import pickle
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Self, TypeVar, cast

from alexprep import __version__
from alexprep.errors import PrepareError, counted, quiet_loggers
from pipelines.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
CONNECT_SECONDS = 15
SECONDS_WITHOUT_WORKERS = 20
LOGGERS = ("distributed", "tornado", "asyncio")
PATHS = "Workers need source and output under the same paths and with the same rights as here."
RESUME = "run the same command again: finished work is kept"


class Cluster:
    """The executor of `alexprep.workers` that a scheduler at `address` is."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._names: dict[Future[Any], str] = {}
        # dask is an extra, and importing it takes longer than many a run
        try:
            self._dask: Any = import_module("distributed")
        except ImportError as error:
            raise PrepareError(
                "--scheduler needs Dask, which is not installed. Install it with "
                "`pip install 'alexprep[cluster]'`."
            ) from error

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Dask logs the tracebacks of lost connections.
            stack.enter_context(quiet_loggers(*LOGGERS))
            try:
                self._client = self._dask.Client(self._address, timeout=CONNECT_SECONDS)
            except (OSError, TimeoutError, ValueError) as error:
                raise PrepareError(
                    f"No Dask scheduler answers at {self._address} ({error or 'timed out'}). Start "
                    "one with `dask scheduler`, workers with `dask worker ADDRESS`, and give its "
                    "address."
                ) from error
            stack.callback(self._client.close)
            self._pool = self._client.get_executor(pure=False)
            self._exits = stack.pop_all()
        self._last_seen = time.monotonic()
        self._call = _portable_call()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=False)
        self._exits.close()

    def capacity(self) -> int:
        """Tasks in flight that keep all workers busy; PrepareError if none has worked for long."""
        with self._lost_scheduler():
            threads, busy, workers = self._client.run_on_scheduler(_portable_count())
        if threads or busy:
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > SECONDS_WITHOUT_WORKERS:
            raise self._no_worker(workers)
        return 2 * max(1, threads)

    def _no_worker(self, paused: int) -> PrepareError:
        if paused:
            return PrepareError(
                f"The Dask cluster at {self._address} has had no worker for "
                f"{SECONDS_WITHOUT_WORKERS} seconds that takes tasks: {counted(paused, 'worker')} "
                "paused, as they do with little memory left. Start workers with fewer --nthreads "
                f"or a higher --memory-limit and {RESUME}."
            )
        return PrepareError(
            f"The Dask cluster at {self._address} has had no worker for {SECONDS_WITHOUT_WORKERS} "
            f"seconds. Start workers with `dask worker {self._address}` and {RESUME}."
        )

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        # By name a worker would import them before it could say that it has another version.
        payload = pickle.dumps((function, task))
        with self._lost_scheduler():
            future: Future[R] = self._pool.submit(self._call, payload, __version__)
        self._names[future] = str(getattr(task, "name", "one task"))
        return future

    def result(self, future: Future[R]) -> R:
        """What the task returned or raised; PrepareError if the cluster could not do it."""
        name = self._names.pop(future)
        if future.cancelled():
            raise self._lost()
        error = future.exception()
        if isinstance(error, self._dask.scheduler.KilledWorker):
            raise self._killed(name, error) from error
        if not hasattr(error, "worker") and isinstance(error, (OSError, CancelledError)):
            raise self._lost() from error
        self._last_seen = time.monotonic()
        if error is not None:
            raise self._named(name, error) from error
        fault, result = cast(tuple[str, R], future.result())
        if fault:
            raise PrepareError(
                f"{fault}. Install the same on all workers, or stop that one, and {RESUME}."
            )
        return result

    def _named(self, name: str, error: BaseException) -> BaseException:
        """An expected error of a task, with the worker that it happened on, or the error itself."""
        worker: str = getattr(error, "worker", "A Dask worker")
        if isinstance(error, MemoryError):
            return PrepareError(
                f"{worker} ran out of memory over {name}. Start workers with fewer --nthreads or "
                f"on machines with more memory, and {RESUME}."
            )
        if isinstance(error, OSError):
            return PrepareError(
                f"{worker}: {error.filename or name}: {error.strerror or error}. {PATHS}"
            )
        if isinstance(error, (PrepareError, DataError)):
            first, *lines = error.args
            advice = f" {PATHS}" if getattr(error, "of_storage", False) else ""
            return type(error)(f"{worker}: {first}{advice}", *lines)
        return error

    def _killed(self, name: str, error: Any) -> PrepareError:
        last = getattr(error.last_worker, "address", "unknown")
        return PrepareError(
            f"{counted(error.allowed_failures + 1, 'Dask worker')} ended over {name}, the last at "
            f"{last}. See the workers' logs; if memory ran out, start them with fewer --nthreads "
            f"or a higher --memory-limit. Then {RESUME}."
        )

    @contextmanager
    def _lost_scheduler(self) -> Generator[None]:
        try:
            yield
        except (
            OSError,
            TimeoutError,
            CancelledError,
            self._dask.client.ClosedClientError,
        ) as error:
            raise self._lost() from error

    def _lost(self) -> PrepareError:
        return PrepareError(
            f"The Dask scheduler at {self._address} stopped answering. Start it again and {RESUME}."
        )


def _portable_call() -> Callable[[bytes, str], tuple[str, Any]]:
    """A function that does a pickled task on a worker: what the worker lacks, or the result.

    Being local it is sent as code, and runs where another alexprep is installed, or none.
    """

    def call(payload: bytes, version: str) -> tuple[str, Any]:
        import pickle  # noqa: PLC0415 - nothing of this module is there
        import socket  # noqa: PLC0415

        from distributed import get_worker  # noqa: PLC0415 # pyright: ignore

        worker = f"Dask worker {get_worker().address} on {socket.gethostname()}"  # pyright: ignore
        try:
            import alexprep  # noqa: PLC0415
        except ImportError as error:
            return f"{worker} cannot import alexprep ({error})", None
        if alexprep.__version__ != version:
            return f"{worker} has alexprep {alexprep.__version__}, not {version}", None
        try:
            function, task = pickle.loads(payload)
            return "", function(task)
        except Exception as error:
            # These travel with it, unlike its context.
            error.worker = worker  # pyright: ignore
            error.of_storage = isinstance(error.__context__, OSError)  # pyright: ignore
            raise

    return call


def _portable_count() -> Callable[..., tuple[int, bool, int]]:
    """A function for the scheduler: threads that take tasks, whether any works, all workers."""

    def count(dask_scheduler: Any) -> tuple[int, bool, int]:
        workers = dask_scheduler.workers.values()
        threads = sum(worker.nthreads for worker in dask_scheduler.running)
        return threads, any(worker.executing for worker in workers), len(workers)

    return count
