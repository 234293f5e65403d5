import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path
from pickle import PicklingError

import pytest

from alexprep.errors import PrepareError
from alexprep.machine import cores
from alexprep.progress import ProgressBar, clock
from alexprep.workers import run_tasks


def square(number):
    return number * number


def fail_at_three(number):
    if number == 3:
        raise PrepareError("three is unreadable")
    return number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


# Seconds that a busy machine may take to end a process, and far more that nobody waits for.
PATIENCE, FOREVER = 60, 250


def slowly(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(FOREVER)


def slowly_but_for_the_first(task):
    number, folder = task
    if number:
        slowly(folder)


def die_or_sleep(number):
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(FOREVER)


def die_when_sending(_number, frame):
    if frame.f_code.co_name == "_send":  # multiprocessing.connection, between two writes
        os.kill(os.getpid(), signal.SIGKILL)


def send_until_death(_number):
    signal.signal(signal.SIGALRM, die_when_sending)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    return bytes(100_000_000)


IMPORTED_IN = os.getpid()


def where_imported(_number):
    time.sleep(0.05)
    return IMPORTED_IN, os.getpid(), os.environ.get("OF_TODAY"), os.environ.get("PYTHONPATH")


def unpicklable(_number):
    return lambda: None


def alive(pid):
    """Whether a process runs (one that ended and waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_task_is_done_once_and_named_by_its_place(workers):
    assert dict(run_tasks(square, range(9), workers=workers)) == {n: n * n for n in range(9)}


def test_tasks_are_taken_one_at_a_time_and_not_listed_beforehand():
    taken = []
    results = run_tasks(square, (taken.append(n) or n for n in range(100)), workers=2)
    with closing(results):
        next(results)
    assert len(taken) <= 4


def test_no_tasks_is_no_work():
    assert list(run_tasks(square, [], workers=4)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_is_raised_here(workers):
    with pytest.raises(PrepareError, match="three is unreadable") as caught:
        list(run_tasks(fail_at_three, range(9), workers=workers))
    assert "in fail_at_three" in "".join(traceback.format_exception(caught.value))


def test_a_worker_that_dies_is_an_error_within_seconds_and_not_a_wait():
    began, pids = time.monotonic(), set()
    with pytest.raises(PrepareError, match="ended with signal SIGKILL"):
        pids.update(pid for _, pid in run_tasks(die_at_three, range(9), workers=2))
    assert time.monotonic() - began < PATIENCE
    assert not any(alive(pid) for pid in pids)


def test_a_worker_that_dies_is_noticed_while_the_others_are_at_work():
    began = time.monotonic()
    with pytest.raises(PrepareError, match="ended with signal SIGKILL"):
        list(run_tasks(die_or_sleep, range(2), workers=2))
    assert time.monotonic() - began < PATIENCE


def test_a_worker_that_dies_while_it_sends_a_large_result_is_an_error_and_not_a_wait():
    began = time.monotonic()
    with pytest.raises(PrepareError, match="ended with signal SIGKILL"):
        list(run_tasks(send_until_death, range(2), workers=2))
    assert time.monotonic() - began < PATIENCE


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises((AttributeError, PicklingError), match="unpicklable"):
        list(run_tasks(unpicklable, range(3), workers=2))


def test_workers_import_a_module_once_and_have_the_environment_of_today(monkeypatch):
    for value in ("first", "second"):
        monkeypatch.setenv("OF_TODAY", value)
        results = [result for _, result in run_tasks(where_imported, range(8), workers=2)]
        (imported,), workers, *environment = (set(values) for values in zip(*results, strict=True))
        assert len(workers) == 2
        assert not {imported, os.getpid()} & workers
        assert environment == [{value}, {os.environ.get("PYTHONPATH")}]


def test_files_of_the_current_folder_are_not_imported(tmp_path):
    for name in ("numpy", "selectors", "alexprep"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from here')")
    code = (
        "import sys\n"
        f"sys.path[:] = {sys.path!r}\n"
        "import test_workers\n"
        "from alexprep.workers import run_tasks\n"
        "print(sorted(run_tasks(test_workers.square, range(3), workers=2)))"
    )
    command = [sys.executable, "-P", "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("[(0, 0), (1, 1), (2, 4)]\n", "")


def test_workers_are_gone_when_the_caller_stops_early(tmp_path):
    tasks = [(number, tmp_path) for number in range(9)]
    with closing(run_tasks(slowly_but_for_the_first, tasks, workers=2)) as results:
        assert next(results) == (0, None)
        wait_until(lambda: list(tmp_path.iterdir()))
    assert not any(alive(int(path.name)) for path in tmp_path.iterdir())


FORK = "start_server('test_workers'); "
PROCESS_OF_IMPORT = """
import os, test_workers
from alexprep.workers import run_tasks, start_server
start_server("test_workers")
print("printed once", end=" ")
for _ in range(2):
    results = run_tasks(test_workers.where_imported, range(8), workers=2)
    imported, *others = zip(*(result for _, result in results), strict=True)
    print({os.getpid()} == set(imported), len(set(others[0])), end=" ")
"""


def test_a_process_of_one_thread_forks_workers_that_import_nothing_again():
    command = [sys.executable, "-c", PROCESS_OF_IMPORT]
    run = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    # The second pool has a server of its own, as in any other program.
    assert (run.stdout, run.stderr) == ("printed once True 2 False 2 ", "")


@pytest.mark.parametrize("start", ["", FORK])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_workers_do_not_outlive_their_parent(tmp_path, blow, start):
    code = (
        "import pathlib, test_workers\n"
        "from alexprep.workers import run_tasks, start_server\n"
        f"{start}folder = pathlib.Path({str(tmp_path)!r})\n"
        "list(run_tasks(test_workers.slowly, [folder] * 2, workers=2))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.send_signal(blow)
    _, said = parent.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(alive(int(path.name)) for path in tmp_path.iterdir()))
    assert said.count("Traceback") == (blow == signal.SIGINT)


def test_a_pool_of_nobody_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run_tasks(square, [1], workers=0)


def test_there_is_a_core_to_work_on():
    assert 1 <= cores() <= os.cpu_count()


def test_progress_says_rates_time_left_and_errors_in_plain_lines(capsys):
    with ProgressBar("shard", 200) as progress:
        progress.advance(50, bytes=5_000_000, errors=1)
        time.sleep(0.01)
        said = progress.text()
    assert said.startswith("50/200 images, ")
    assert all(word in said for word in (" images/s", " MB/s", " left", "1 error"))
    assert capsys.readouterr().err.startswith("shard: 50/200 images, ")
    assert progress.rate == pytest.approx(50 / progress.seconds)
    assert progress.seconds >= 0.01


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.2, "1:05"), (7384, "2:03:04")])
def test_durations_read_as_on_a_clock(seconds, text):
    assert clock(seconds) == text
