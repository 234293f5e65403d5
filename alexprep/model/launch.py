"""A run in several processes, started here by the launcher that torchrun itself uses.

The launcher starts a worker for each column of each replica, gives it torchrun's variables, ends
all when one fails, and passes signals on. Workers send their result or their error back; this
process says it, once.
"""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexnet.errors import LostConnection, RunError
from alexnet.training.signals import SIGNALS, hangup_ignored
from alexprep.errors import PrepareError, quiet_loggers
from alexprep.machine import cores
from alexprep.model.placement import Launch, process_device
from alexprep.workers import start_tracker
from pipelines.errors import DataError

Result = TypeVar("Result")
THREADS = "OMP_NUM_THREADS"
EXPECTED = (DataError, PrepareError, RunError, ValueError, OSError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report(Generic[Result]):
    """What a worker sends back before it ends: a result, or the error that ended it."""

    rank: int
    result: Result | None = None
    error: Exception | None = None


def run_in_processes(
    work: Callable[[], Result],
    launch: Launch,
    columns: int,
    devices: tuple[str, ...],
    exit_code: Callable[[Result], int],
) -> tuple[Result, bool]:
    """Run `work` in a process for each column of each replica.

    Returns the result of the first process here, or of one that a signal stopped; and whether the
    first process of all machines is here.

    Args:
        work: a function that can be pickled; it finds torchrun's variables in the environment.
        launch: how many processes, and where.
        columns: of the network.
        devices: of one replica, without "auto".
        exit_code: of a worker with this result; not 0 where a signal stopped it.

    Raises:
        RunError, DataError, ValueError, OSError: a worker's own, the first that is not only the
            loss of another worker; RunError too for a worker that was killed.
    """
    processes = launch.processes(columns)
    _check_gpus(process_device(devices, columns), processes)
    start_tracker()
    # Of workers that fail the launcher passes on no more than an exit code.
    reports = get_context("spawn").SimpleQueue()
    config = LaunchConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=processes,
        run_id="alexprep",
        rdzv_backend="c10d",
        rdzv_endpoint=launch.coordinator or "localhost:0",
        # A run resumes from its checkpoint when the command is run again.
        max_restarts=0,
        start_method="spawn",
    )
    # torch's own list has no SIGUSR1, as Slurm sends it: it would end this process alone.
    stops = [number.name for number in SIGNALS if number != signal.SIGHUP or not hangup_ignored()]
    config.signals_to_handle = ",".join([*stops, "SIGQUIT"])
    failure: Exception | None = None
    with quiet_loggers("torch.distributed.elastic", "torch.multiprocessing"), _threads(processes):
        try:
            elastic_launch(config, _worker)(work, exit_code, reports)
        except (ChildFailedError, SignalException) as error:
            failure = error
        except RendezvousError as error:
            raise RunError(
                f"The machines could not connect at {launch.coordinator}: {error}."
            ) from None
    return _conclude(_received(reports), failure, exit_code)


def _worker(work: Callable[[], Any], exit_code: Callable[[Any], int], reports: Any) -> None:
    # Ctrl-C reaches the whole group of the terminal, and the launcher passes it on as well: without
    # a group of its own a worker would take the second for "at once", and save nothing.
    os.setpgid(0, 0)
    rank = int(os.environ["RANK"])
    try:
        result = work()
    except EXPECTED as error:
        reports.put(Report(rank=rank, error=_portable(error)))
        raise SystemExit(1) from None
    reports.put(Report(rank=rank, result=result))
    # A worker that returns waits for all others to return.
    if exit_code(result):
        raise SystemExit(exit_code(result))


def _portable(error: Exception) -> Exception:
    """An error of the same kind and text that another process can read."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename)
    kind = next(kind for kind in (LostConnection, *EXPECTED) if isinstance(error, kind))
    return kind(str(error))


def _received(reports: Any) -> list[Report[Any]]:
    received: list[Report[Any]] = []
    while not reports.empty():
        received.append(reports.get())
    return received


def _conclude(
    reports: list[Report[Any]], failure: Exception | None, exit_code: Callable[[Any], int]
) -> tuple[Any, bool]:
    errors = [report.error for report in reports if report.error is not None]
    # A worker that only lost another one says nothing of the cause.
    errors.sort(key=lambda error: isinstance(error, LostConnection))
    if errors and not isinstance(errors[0], LostConnection):
        raise errors[0]
    if isinstance(failure, ChildFailedError):
        rank, first = failure.get_first_failure()
        if first.exitcode < 0:
            raise RunError(
                f"The process of rank {rank} was killed by {first.signal_name()}. Run the "
                "command again to resume from the last checkpoint."
            )
    if errors:
        raise errors[0]
    results = sorted((r for r in reports if r.result is not None), key=lambda report: report.rank)
    # Where a signal reached one worker alone, that one knows of it.
    results.sort(key=lambda report: not exit_code(report.result))
    if results:
        return results[0].result, any(report.rank == 0 for report in reports)
    if isinstance(failure, SignalException):
        raise RunError(f"Stopped by {failure.sigval.name} before the first step.") from None
    raise failure or RunError("No worker of this machine has returned a result.")


def _check_gpus(kind: str, processes: int) -> None:
    count = torch.cuda.device_count()
    if kind == "cuda" and count < processes:
        raise RunError(
            f"{processes} processes need a GPU each; torch {torch.__version__} sees {count}. "
            "Use fewer --replicas, or --devices cpu."
        )


@contextmanager
def _threads(processes: int) -> Generator[None]:
    """Share the cores out: each worker's torch would start a thread for every core."""
    if THREADS in os.environ:
        yield
        return
    os.environ[THREADS] = str(max(1, cores() // processes))
    try:
        yield
    finally:
        del os.environ[THREADS]
