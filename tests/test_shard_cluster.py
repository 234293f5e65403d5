"""The same tasks on a Dask cluster: what it writes, and what is said of whatever goes wrong."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import contents
from dask_cluster import DaskProcesses, free_port, python_path
from drawing import draw_classes

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.shard_writer import write_shard
from alexprep.dataset.splits import plan_source
from alexprep.dataset.store import LocalStore
from alexprep.errors import PrepareError
from alexprep.workers import run_tasks

CONFIG = ShardConfig(size=96, shards={"train": 12, "validation": 6})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers, none of which a test may end."""
    processes = DaskProcesses(tmp_path_factory.mktemp("dask"))
    yield processes
    processes.close()


@pytest.fixture
def doomed(tmp_path):
    """A scheduler and two workers for one test."""
    processes = DaskProcesses(tmp_path / "dask")
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    source = draw_classes(folder / "zoo", np.random.default_rng(3), each=60)
    shard(source, folder / "whole", CONFIG, RunOptions(workers=1))
    return source, contents(folder / "whole")


def failure(function, tasks, address):
    """The message of the PrepareError that ends the tasks on a cluster."""
    with pytest.raises(PrepareError) as caught:
        list(run_tasks(function, tasks, workers=1, scheduler=address))
    return str(caught.value)


def test_a_cluster_writes_the_bytes_of_one_process(zoo, cluster, tmp_path, monkeypatch):
    source, whole = zoo
    monkeypatch.chdir(source.parent)  # not the current folder of the workers
    out = os.path.relpath(tmp_path / "made")
    shard("zoo", out, CONFIG, RunOptions(scheduler=cluster.address))
    assert contents(tmp_path / "made") == whole


def test_the_tasks_of_a_worker_that_dies_half_way_are_done_by_the_other(zoo, doomed, tmp_path):
    source, whole = zoo
    out, killed_at = tmp_path / "made", []

    def kill_half_way():
        while len(list(out.glob("*/*.tar"))) < 5:
            time.sleep(0.002)
        doomed.workers[0].send_signal(signal.SIGKILL)
        killed_at.append(len(list(out.glob("*/*.tar"))))

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    shard(source, out, CONFIG, RunOptions(scheduler=doomed.address))
    killer.join()
    assert killed_at[0] < 18
    assert contents(out) == whole


def stop_this_worker(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def complain(number):
    raise PrepareError(f"task {number} cannot be done")


def fill_memory(_number):
    raise MemoryError


def open_nothing(_number):
    Path("/nowhere/at/all").read_bytes()


def divide(number):
    return 1 / number


def test_what_a_task_raises_on_the_cluster_is_raised_here_with_its_worker(cluster):
    worker = r"Dask worker tcp://127.0.0.1:\d+ on \S+"
    for function, expected in (
        (complain, rf"{worker}: task \d cannot be done"),
        (fill_memory, rf"{worker} ran out of memory over one task. Start workers with fewer"),
        (open_nothing, rf"{worker}: /nowhere/at/all: No such file .* under the same paths"),
    ):
        with pytest.raises(PrepareError, match=expected):
            list(run_tasks(function, range(3), workers=1, scheduler=cluster.address))
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(divide, [0], workers=1, scheduler=cluster.address))


def test_a_cluster_that_loses_all_its_workers_is_an_error_and_not_a_wait(doomed, monkeypatch):
    monkeypatch.setattr("alexprep.cluster.SECONDS_WITHOUT_WORKERS", 2)
    message = failure(stop_this_worker, range(9), doomed.address)
    assert f"cluster at {doomed.address} has had no worker for 2 seconds. Start" in message


def sleep_in_the_task(number):
    time.sleep(20 * bool(number))
    return number


def test_a_scheduler_that_is_killed_is_an_error_and_not_a_wait(doomed):
    tasks = run_tasks(sleep_in_the_task, range(9), workers=1, scheduler=doomed.address)
    with closing(tasks) as results:
        assert next(results) == (0, 0)
        doomed.scheduler.kill()
        with pytest.raises(PrepareError, match=f"scheduler at {doomed.address} stopped answering"):
            next(results)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("alexprep.cluster.CONNECT_SECONDS", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(PrepareError, match=f"No Dask scheduler answers at {address}"):
        run_tasks(complain, [1], workers=1, scheduler=address).send(None)


def test_a_sequential_run_and_one_in_memory_are_for_one_machine(zoo, tmp_path):
    source, _ = zoo
    scheduler = "tcp://127.0.0.1:1"
    options = RunOptions(scheduler=scheduler, sequential=True)
    with pytest.raises(PrepareError, match="leave out --scheduler"):
        shard(source, tmp_path / "made", CONFIG, options)
    with pytest.raises(PrepareError, match="memory of one process: leave out --scheduler"):
        shard(source, "memory://made", CONFIG, RunOptions(scheduler=scheduler))


def square(number):
    return number * number


def test_a_worker_with_another_alexprep_or_none_is_named(tmp_path):
    processes = DaskProcesses(tmp_path / "dask", workers=0)
    try:
        for code, expected in (
            ("__version__ = '0.0.1'", "has alexprep 0.0.1, not 0.1.0. Install the same on all"),
            ("raise ImportError('no libjpeg')", "cannot import alexprep (no libjpeg). Install"),
        ):
            (tmp_path / "alexprep.py").write_text(code)
            worker = processes.add_worker(PYTHONPATH=python_path(tmp_path))
            assert expected in failure(square, range(3), processes.address)
            worker.kill()
            worker.wait()
    finally:
        processes.close()


@pytest.fixture
def task(source, tmp_path):
    """A task for a cluster, of a run that holds its folder."""
    store = LocalStore(tmp_path / "made")
    with store.locked():
        plan = plan_source(source, ShardConfig(size=48), skip=True)
        yield next(plan.tasks(store.url, {}, skip=True, holder=store.holder()))


def test_a_worker_that_sees_another_folder_or_is_of_a_run_that_has_ended_writes_nothing(
    task, tmp_path
):
    elsewhere = replace(task, out=str(tmp_path / "unmounted"))
    with pytest.raises(PrepareError, match="unmounted is not the folder that the run writes to"):
        write_shard(elsewhere)
    with pytest.raises(PrepareError, match="or that run has ended"):
        write_shard(replace(task, holder=task.holder.replace("20", "19", 1)))
    assert not (tmp_path / "unmounted").exists()
    assert not list((tmp_path / "made").glob("train/*"))
    assert write_shard(task).shard is not None


def test_a_worker_with_another_pillow_writes_nothing(task, tmp_path):
    other = {**task.codec, "resize": "pillow 9.5.0.post2 bilinear"}
    expected = "the codec is resize pillow .*, not pillow 9.5.0.post2 bilinear: .* other bytes"
    with pytest.raises(PrepareError, match=expected):
        write_shard(replace(task, codec=other))
    assert not list((tmp_path / "made").glob("train/*"))


def test_a_file_that_one_worker_cannot_read_is_not_left_out(task, tmp_path):
    path = Path(task.samples.items.path(0))
    path.unlink()
    path.mkdir()
    expected = rf"{path.name} cannot be read \(Is a directory\). Give the workers' user the right"
    with pytest.raises(PrepareError, match=expected):
        write_shard(task)
    assert not list((tmp_path / "made").glob("train/*"))
    assert write_shard(replace(task, holder="")).faults[0].path == str(path)


def command(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "alexprep", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": python_path()},
    )


def call(source, out, address):
    words = ("--size", 96, "--shards", 30, "--scheduler", address)
    return command("shard", source, out, *words)


def wait_for_shards(out, process, count=8):
    """Until some are there; the run must still be at work then."""
    while len(list(out.glob("train/*.tar"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def thirty(zoo, tmp_path_factory):
    """What `call` writes when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("thirty") / "made"
    shard(zoo[0], folder, ShardConfig(size=96, shards=30), RunOptions(workers=1))
    return contents(folder)


def error_of(process):
    """The one line that follows the progress of a command that fails."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    *progress, line = said.splitlines()
    assert all(entry.startswith(("shard: ", "stats train: ")) for entry in progress), said
    return line


@pytest.mark.slow
def test_a_killed_scheduler_is_one_line_and_the_next_call_finishes(zoo, thirty, doomed, tmp_path):
    out = tmp_path / "made"
    process = call(zoo[0], out, doomed.address)
    wait_for_shards(out, process)
    doomed.scheduler.kill()
    assert error_of(process).startswith(f"Error: The Dask scheduler at {doomed.address} stopped")
    again = DaskProcesses(tmp_path / "again", workers=1, options=("--no-nanny", "--nthreads", "4"))
    try:
        process = call(zoo[0], out, again.address)
        process.communicate()
    finally:
        again.close()
    assert process.returncode == 0
    assert contents(out) == thirty


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_call_after_a_killed_client_finishes(zoo, thirty, cluster, tmp_path, blow):
    out = tmp_path / "made"
    process = call(zoo[0], out, cluster.address)
    wait_for_shards(out, process)
    process.send_signal(blow)
    process.communicate()
    process = call(zoo[0], out, cluster.address)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert contents(out) == thirty


@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_are_one_line(tmp_path):
    processes = DaskProcesses(tmp_path / "dask", workers=1, options=("--nanny",))
    try:
        message = failure(stop_this_worker, [5], processes.address)
    finally:
        processes.close()
    assert "4 Dask workers ended over one task, the last at tcp://127.0.0.1:" in message
    assert "fewer --nthreads or a higher --memory-limit. Then run the same command" in message


@pytest.mark.slow
def test_workers_without_memory_to_begin_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("alexprep.cluster.SECONDS_WITHOUT_WORKERS", 3)
    options = ("--no-nanny", "--memory-limit", "60MB")  # less than Python and Dask hold
    processes = DaskProcesses(tmp_path / "dask", workers=1, options=options)
    try:
        message = failure(square, range(9), processes.address)
    finally:
        processes.close()
    assert "no worker for 3 seconds that takes tasks: 1 worker paused" in message
