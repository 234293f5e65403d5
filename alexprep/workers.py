"""Run independent tasks on the cores of this machine, or on those of a Dask cluster.

Both are executors of `concurrent.futures`, driven by one loop that keeps few tasks in flight. Local
processes are forked from a server that has imported the module of the tasks, once for all of them:
they hold nothing of the work that the parent has done since. Each run has a server of its own, so
that they have today's environment and limits. A command forks the server from itself before its
work begins; in any other program it is an interpreter of its own.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from itertools import islice
from multiprocessing import forkserver, parent_process, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from alexprep.errors import PrepareError

T = TypeVar("T")
R = TypeVar("R")
POLL_SECONDS = 1.0
EXIT_SECONDS = 3.0
# A terminal and Slurm send these to all processes; the parent decides what to do about them.
PARENTS = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPS = (*PARENTS, signal.SIGTERM)


def run_tasks(
    function: Callable[[T], R],
    tasks: Iterable[T],
    *,
    workers: int,
    scheduler: str | None = None,
) -> Generator[tuple[int, R], None, None]:
    """Yield (index of the task, result) as tasks finish, in whatever order they do.

    One worker is this very process. More are started, at most one per task; `function` and the
    tasks must pickle. With `scheduler` (tcp://host:8786) a Dask cluster does the tasks and
    `workers` is ignored; there, a task whose worker dies is done by another one.

    An exception in a task is raised here, with the worker's traceback as its cause. PrepareError if
    a local worker dies, or the cluster has no scheduler or no worker. However the iterator ends,
    the workers are gone: wrap it in `contextlib.closing` where the caller's own code may raise
    between two results.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if scheduler is not None:
        from alexprep.cluster import Cluster  # noqa: PLC0415 - Dask is an extra

        return _run(Cluster(scheduler), function, tasks)
    if workers == 1:
        return ((index, function(task)) for index, task in enumerate(tasks))
    return _run(_Processes(workers, function.__module__), function, tasks)


def start_server(*modules: str) -> None:
    """Start the server of the next local workers, with `modules` imported.

    `run_tasks` starts it where it does not run. A command that will have several workers does it
    first: while this process has one thread, the server is forked from it, with all that it has
    imported.
    """
    if _has_one_thread():
        for module in modules:
            import_module(module)
    _server.start(modules, fork=_has_one_thread())


def _has_one_thread() -> bool:
    """Whether the kernel knows of no other thread, which might hold a lock at the time of a fork.

    Only Linux tells; elsewhere, nothing is forked.
    """
    threads = Path("/proc/self/task")
    return threads.is_dir() and len(list(threads.iterdir())) == 1


@contextmanager
def _forking() -> Generator[None]:
    """Let multiprocessing fork its helpers here, where it would start an interpreter for each.

    Those import what this process has imported anyway, .25 s of a processor for `shard`.
    """
    spawn = util.spawnv_passfds
    util.spawnv_passfds = _fork_helper
    try:
        yield
    finally:
        util.spawnv_passfds = spawn


def _fork_helper(_path: str, command: Sequence[str], descriptors: Sequence[int]) -> int:
    """As `util.spawnv_passfds`: a child with these open files, that runs `python ... -c CODE`."""
    util._flush_std_streams()  # pyright: ignore - else a child prints what is in them once more
    child = os.fork()
    if child:
        return child
    try:
        for number in STOPS:
            # Of the command line, which raise exceptions there. SIGINT is blocked, then ignored.
            if number != signal.SIGINT and callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        # Above all the writing end of the pipe whose end of file tells it to end.
        keep = {0, 1, 2, *descriptors}
        for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if number not in keep:
                with suppress(OSError):  # that of the listing itself
                    os.close(number)
        exec(command[-1], {})
    except Exception as error:  # noqa: BLE001 - this child must not return to the caller
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def start_tracker() -> None:
    """Start multiprocessing's tracker of semaphores so that only the end of its users ends it.

    It ignores SIGINT and SIGTERM. Ended by another signal of the terminal, a second one would
    print tracebacks about what the first knew.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Crew(Protocol):
    """An executor, entered to start it and left without a task running."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def capacity(self) -> int:
        """Tasks in flight that keep all workers busy; PrepareError if there is no worker left."""
        ...

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]: ...

    def result(self, future: Future[R]) -> R:
        """What a finished task returned or raised; PrepareError if its worker is gone."""
        ...


def _run(
    crew: _Crew, function: Callable[[T], R], tasks: Iterable[T]
) -> Generator[tuple[int, R], None, None]:
    pending = enumerate(tasks)
    in_flight: dict[Future[R], int] = {}
    with crew:
        while True:
            for index, task in islice(pending, max(0, crew.capacity() - len(in_flight))):
                in_flight[crew.submit(function, task)] = index
            if not in_flight:
                return
            # The timeout gives `capacity` a chance to see that the workers are gone.
            done, _ = wait(in_flight, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield in_flight.pop(future), crew.result(future)


class _Server:
    """The process that workers are forked from, for as long as a pool of them lives.

    It and its workers do not see Ctrl-C, which goes to every process of the terminal, nor the
    others of PARENTS. The parent decides what to do about it; a child that has not yet come to
    ignoring the signal must not print a traceback, so it starts with the signal blocked.
    """

    def __init__(self) -> None:
        self._running = False
        self._pools = 0

    def start(self, modules: Sequence[str], *, fork: bool = False) -> None:
        """Start it with these imported; one that runs stays, for workers can import too."""
        if self._running:
            return
        with _forking() if fork else nullcontext():
            start_tracker()  # which, started with the first child, would lift the block
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
            try:
                self._start(modules)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._running = True

    def _start(self, modules: Sequence[str]) -> None:
        environment = dict(os.environ)
        # Before Python 3.13 it would look for modules in the current folder first, whatever is
        # there, and not where this process finds them.
        path = [folder or str(Path.cwd()) for folder in sys.path]
        os.environ.update({"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)})
        # `bin/alexprep` imports the command line in every process.
        command_line = [name for name in ("alexprep.cli",) if name in sys.modules]
        try:
            forkserver.set_forkserver_preload([*modules, *command_line])
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(environment)

    def acquire(self, module: str) -> None:
        """For a pool, whose tasks' functions are in `module`."""
        self.start([module])
        self._pools += 1

    def release(self) -> None:
        """When its workers are gone; the last pool ends the server."""
        self._pools -= 1
        if not self._pools:
            self._running = False
            forkserver._forkserver._stop()  # pyright: ignore


_server = _Server()


class _Worker(ForkServerProcess):
    """A process whose start no signal's exception interrupts: half-started it would fail aloud."""

    def start(self) -> None:
        with _delayed_signals():
            super().start()


@contextmanager
def _delayed_signals() -> Generator[None]:
    """Call Python's handlers of signals that arrive meanwhile at the end."""
    handlers = {number: signal.getsignal(number) for number in STOPS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    arrived: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            handlers[signal.Signals(number)](number, None)


class _Context(ForkServerContext):
    """Where the pool gets its processes and its pipe from; keeps both at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[_Worker] = []
        self.results: Any = None

    def Process(self, *args: Any, **options: Any) -> _Worker:  # pyright: ignore # noqa: N802
        self.workers.append(_Worker(*args, **options, daemon=True))
        return self.workers[-1]

    def SimpleQueue(self) -> Any:  # noqa: N802
        self.results = super().SimpleQueue()
        return self.results


class _Processes:
    """A pool of local processes that names the signal that ended one of them."""

    def __init__(self, count: int, module: str) -> None:
        self._count = count
        self._module = module

    def __enter__(self) -> Self:
        _server.acquire(self._module)
        self._context = _Context()
        self._pool = ProcessPoolExecutor(
            self._count, self._context, _start_worker, (dict(os.environ),)
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._kill()
        self._pool.shutdown(cancel_futures=True)
        _server.release()

    def capacity(self) -> int:
        # The pool does not look at a process that it started while it was waiting for others.
        if self._ended():
            raise self._death()
        return self._count + 1

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        try:
            return self._pool.submit(function, task)
        except BrokenProcessPool:
            raise self._death() from None

    def result(self, future: Future[R]) -> R:
        try:
            return future.result()
        except BrokenProcessPool as error:
            if error.__cause__ is not None:  # a result that cannot be unpickled is our defect
                raise
            raise self._death() from None

    def _death(self) -> PrepareError:
        """Say which worker died: of those that have ended, the one that the pool did not stop."""
        if not self._ended():
            for worker in self._context.workers:
                worker.join(EXIT_SECONDS)
        worker = min(self._ended(), key=lambda ended: ended.exitcode == -signal.SIGTERM)
        code = worker.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return PrepareError(
            f"Worker process {worker.pid} ended with {how} before its task was done. Run the same "
            "command again: finished work is kept. If it ran out of memory, use fewer --workers."
        )

    def _ended(self) -> list[ForkServerProcess]:
        return [worker for worker in self._context.workers if worker.exitcode]

    def _kill(self) -> None:
        for stop in (ForkServerProcess.terminate, ForkServerProcess.kill):
            for worker in self._context.workers:
                if worker.is_alive():
                    stop(worker)
            for worker in self._context.workers:
                if worker.pid is not None:  # one that could not be started cannot be joined
                    worker.join(EXIT_SECONDS)
        # A worker may have died in the middle of a result. The thread of the pool that reads it
        # would wait for the other half for ever, because this process could still write it.
        self._context.results._writer.close()


def _start_worker(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number in PARENTS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this process when its parent is gone, however it went (SIGKILL reaches no handler)."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
