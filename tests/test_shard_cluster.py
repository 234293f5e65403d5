"""The same tasks on a Dask cluster: a real scheduler and two workers, spoken to over TCP."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from archives import contents
from drawing import draw_classes

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.workers import run_tasks

CONFIG = ShardConfig(size=96, shards={"train": 12, "validation": 6})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def dask(folder, *words):
    with (folder / f"{words[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )


def start_worker(folder, address):
    return dask(
        folder,
        *("worker", address, "--nthreads", "1", "--nworkers", "1", "--no-nanny", "--no-dashboard"),
        *("--local-directory", str(folder)),
    )


@pytest.fixture
def cluster(tmp_path):
    """(address of a scheduler, its two worker processes, its own process)."""
    port = free_port()
    folder = tmp_path / "dask"
    folder.mkdir()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = dask(
        folder, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
    )
    crew = [start_worker(folder, address) for _ in range(2)]
    yield address, crew, scheduler
    for process in (*crew, scheduler):
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    source = draw_classes(folder / "zoo", np.random.default_rng(3), each=60)
    shard(source, folder / "whole", CONFIG, RunOptions(workers=1))
    return source, contents(folder / "whole")


def test_a_cluster_writes_the_bytes_of_one_process(zoo, cluster, tmp_path):
    source, whole = zoo
    address, _, _ = cluster
    shard(source, tmp_path / "made", CONFIG, RunOptions(scheduler=address))
    assert contents(tmp_path / "made") == whole


def test_the_tasks_of_a_worker_that_dies_half_way_are_done_by_the_other(zoo, cluster, tmp_path):
    source, whole = zoo
    address, crew, _ = cluster
    out, killed_at = tmp_path / "made", []

    def kill_half_way():
        while len(list(out.glob("*/*.tar"))) < 5:
            time.sleep(0.002)
        crew[0].send_signal(signal.SIGKILL)
        killed_at.append(len(list(out.glob("*/*.tar"))))

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    shard(source, out, CONFIG, RunOptions(scheduler=address))
    killer.join()
    assert killed_at[0] < 18
    assert contents(out) == whole


def stop_this_worker(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def complain(number):
    raise PrepareError(f"task {number} cannot be done")


def test_what_a_task_raises_on_the_cluster_is_raised_here(cluster):
    address, _, _ = cluster
    with pytest.raises(PrepareError, match=r"task \d cannot be done"):
        list(run_tasks(complain, range(3), workers=1, scheduler=address))


def test_a_cluster_that_loses_all_its_workers_is_an_error_and_not_a_wait(cluster, monkeypatch):
    monkeypatch.setattr("alexprep.workers.SECONDS_WITHOUT_WORKERS", 2)
    address, _, _ = cluster
    with pytest.raises(PrepareError, match="has had no worker for 2 seconds"):
        list(run_tasks(stop_this_worker, range(9), workers=1, scheduler=address))


def sleep_in_the_task(number):
    time.sleep(20 * bool(number))
    return number


def test_a_scheduler_that_is_killed_is_an_error_and_not_a_wait(cluster):
    address, _, scheduler = cluster
    with closing(run_tasks(sleep_in_the_task, range(9), workers=1, scheduler=address)) as results:
        assert next(results) == (0, 0)
        scheduler.kill()
        with pytest.raises(PrepareError, match=f"scheduler at {address} stopped answering"):
            next(results)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("alexprep.workers.CONNECT_SECONDS", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(PrepareError, match=f"No Dask scheduler answers at {address}"):
        run_tasks(complain, [1], workers=1, scheduler=address).send(None)


def test_a_sequential_run_is_for_one_machine(zoo, tmp_path):
    source, _ = zoo
    options = RunOptions(scheduler="tcp://127.0.0.1:1", sequential=True)
    with pytest.raises(PrepareError, match="leave out --scheduler"):
        shard(source, tmp_path / "made", CONFIG, options)
