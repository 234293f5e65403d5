"""Independent tasks on the cores of this machine, or on those of a Dask cluster.

Processes are spawned, not forked: they inherit today's environment and limits, hold nothing of the
parent's memory and import only what the task's module imports. A worker takes a task, answers, and
waits for the next one; so a worker that dies is seen at once by its closed pipe.
"""

import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar, cast

from alexprep.errors import PrepareError

T = TypeVar("T")
R = TypeVar("R")
SECONDS_TO_LEAVE = 3.0


def available_cores() -> int:
    """Cores that this process may use; what `workers` is when nobody says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def completed(
    function: Callable[[T], R],
    tasks: Iterable[T],
    *,
    workers: int,
    scheduler: str | None = None,
) -> Generator[tuple[int, R], None, None]:
    """Yield (index of the task, result) as tasks finish, in whatever order they do.

    One worker is this very process. More are spawned, at most one a task; `function` and the tasks
    must pickle. With `scheduler` (tcp://host:8786) a Dask cluster does the tasks and `workers` is
    not looked at. An exception in a task is raised here; a worker that dies raises PrepareError.
    However the iterator ends, the workers are gone: wrap it in `contextlib.closing` where the
    caller's own code may raise between two results.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if scheduler is not None:
        # dask is an extra, and importing it takes longer than many a run
        from alexprep.cluster import completed_on_cluster  # noqa: PLC0415

        return completed_on_cluster(function, tasks, scheduler)
    if workers == 1:
        return ((index, function(task)) for index, task in enumerate(tasks))
    return _in_processes(function, tasks, workers)


class _Answer(NamedTuple):
    """What a worker sends back: a result, or the exception and where it came from."""

    result: Any
    error: Exception | None
    trace: str


@dataclass(slots=True)
class _Worker(Generic[T, R]):
    """A spawned process, its pipe, and the task it is at."""

    process: SpawnProcess
    pipe: Connection
    task: int | None = None

    def give(self, index: int, task: T) -> None:
        self.task = index
        try:
            self.pipe.send(task)
        except BrokenPipeError:
            raise self._death() from None

    def answer(self) -> tuple[int, R]:
        """The task it has done and its result; raises what the task raised."""
        index, self.task = cast(int, self.task), None
        try:
            answer: _Answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._death() from None
        if answer.error is not None:
            answer.error.add_note(f"In a worker process:\n{answer.trace}")
            raise answer.error
        return index, cast(R, answer.result)

    def _death(self) -> PrepareError:
        self.process.join(SECONDS_TO_LEAVE)
        code = self.process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name}"
        return PrepareError(
            f"Worker process {self.process.pid} ended with {how} before its task was done. Run the "
            "same command again: finished work is kept. If memory ran out, give it fewer --workers."
        )

    def leave(self) -> None:
        """End the process: at once if it is busy, else as soon as it sees the closed pipe."""
        if self.task is not None:
            self.process.terminate()
        self.pipe.close()
        self.process.join(SECONDS_TO_LEAVE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _in_processes(
    function: Callable[[T], R], tasks: Iterable[T], workers: int
) -> Generator[tuple[int, R], None, None]:
    waiting = enumerate(tasks)
    crew: dict[Connection, _Worker[T, R]] = {}
    try:
        for index, task in islice(waiting, workers):
            worker = _spawn(function)
            crew[worker.pipe] = worker
            worker.give(index, task)
        busy = set(crew)
        while busy:
            for pipe in cast(list[Connection], wait(list(busy))):
                done = crew[pipe].answer()
                following = next(waiting, None)
                if following is None:
                    busy.remove(pipe)
                else:
                    crew[pipe].give(*following)
                yield done
    finally:
        for worker in crew.values():
            if worker.task is not None:
                worker.process.terminate()
        for worker in crew.values():
            worker.leave()


def _spawn(function: Callable[[Any], Any]) -> _Worker[Any, Any]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function), daemon=True)
    # Ctrl-C goes to every process of the terminal. The parent decides; a child that has not come
    # to ignoring it must not print a traceback, so it starts with the signal blocked. The tracker
    # that multiprocessing starts with the first child lifts that block: have it started before.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
    return _Worker(process, ours)


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The life of a worker: answer tasks until the pipe closes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            answer = _Answer(function(task), None, "")
        except Exception as error:  # noqa: BLE001 - it is raised again in the parent
            answer = _Answer(None, error, traceback.format_exc())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - a result or exception that does not pickle
            pipe.send(_Answer(None, TypeError(f"{error} (result of {function})"), answer.trace))


def _leave_with_parent() -> None:
    """End this process when its parent is gone, however it went (SIGKILL tells nobody)."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
