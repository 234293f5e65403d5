"""A scheduler and workers of Dask as processes of their own, spoken to over TCP."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class DaskProcesses:
    """Starts them, each in a session of its own; their working folder is `folder`."""

    def __init__(self, folder: Path, workers: int = 2, options=("--no-nanny",), **environment):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        self.workers = []
        self.scheduler = self._start(
            *("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        )
        for _ in range(workers):
            self.add_worker(options, **environment)

    def add_worker(self, options=("--no-nanny",), **environment):
        """One more; a process with one thread unless `options` say something else."""
        threads = () if "--nthreads" in options else ("--nthreads", "1")
        worker = self._start(
            *("worker", self.address, "--nworkers", "1", "--no-dashboard", *threads, *options),
            *("--local-directory", str(self.folder)),
            **environment,
        )
        self.workers.append(worker)
        return worker

    def _start(self, kind, *words, **environment):
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": python_path(), **environment},
                start_new_session=True,
            )

    def close(self):
        for process in (*self.workers, self.scheduler):
            kill_group(process)


def kill_group(process):
    """End a process and those it has started, such as the worker of a nanny."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def python_path(*first):
    """Where processes find this code and the functions of the tests."""
    tests = Path(__file__).parent
    return os.pathsep.join(map(str, (*first, tests.parent, tests)))
