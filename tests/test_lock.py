"""A folder is held by one process, with the system's locks or without, and by no killed one."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from archives import contents

from alexprep.errors import PrepareError
from alexprep.lock import ABANDONED_SECONDS, ENOTSUPP, hold_lease, hold_lock

# Found before alexprep on PYTHONPATH, and imported when the interpreter starts.
WITHOUT_LOCKS = """
import fcntl, os
def flock(file, operation):
    raise OSError(int(os.environ["FLOCK_ERROR"]), "no locks here")
fcntl.flock = flock
"""
HOLD = """
import sys
from pathlib import Path
from alexprep.errors import PrepareError
from alexprep.lock import hold_lock
folder = Path(sys.argv[1])
with hold_lock(folder / "lock", folder, PrepareError, remove=True):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def without_locks(tmp_path_factory):
    """The environment of a process in which flock raises ENOLCK, or what FLOCK_ERROR says."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_LOCKS)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", os.getcwd())])  # noqa: PTH109
    return os.environ | {"PYTHONPATH": path, "FLOCK_ERROR": str(errno.ENOLCK)}


def holder(folder, environment=None):
    """A process that holds the folder until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "held\n"
    return process


def hold(folder):
    return hold_lock(folder / "lock", folder, PrepareError, remove=True)


def assert_in_use(folder, pid):
    expected = rf"in use by process {pid} on .*, since 20.*\. Wait for it"
    with pytest.raises(PrepareError, match=expected), hold(folder):
        pass


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    process = holder(tmp_path)
    assert_in_use(tmp_path, process.pid)
    process.communicate()
    with hold(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_does_not_keep_the_folder(tmp_path):
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with hold(tmp_path):
        pass


def test_without_locks_a_second_process_is_refused_as_well(tmp_path, without_locks):
    process = holder(tmp_path, without_locks)
    second = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        capture_output=True,
        text=True,
        env=without_locks,
        check=False,
    )
    assert f"in use by process {process.pid} on" in second.stderr
    process.communicate()
    assert list(tmp_path.iterdir()) == []
    killed = holder(tmp_path, without_locks)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    holder(tmp_path, without_locks).communicate()
    assert list(tmp_path.iterdir()) == []


CODES = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, ENOTSUPP)


@pytest.mark.parametrize("code", CODES)
def test_a_data_set_is_written_where_nothing_can_be_locked(
    source, made, tmp_path, without_locks, code
):
    command = [sys.executable, "-m", "alexprep", "shard", str(source), str(tmp_path / "out")]
    options = ["--size", "48", "--workers", "1"]
    run = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        env=without_locks | {"FLOCK_ERROR": str(code)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert "out cannot be locked; lease keeps other runs out" in run.stderr
    assert not (tmp_path / "out/.alexprep").exists()
    assert sorted(contents(tmp_path / "out")) == sorted(contents_of_plain_run(source, tmp_path))


def contents_of_plain_run(source, tmp_path):
    from alexprep.dataset.shard import RunOptions, ShardConfig, shard  # noqa: PLC0415

    shard(source, tmp_path / "plain", ShardConfig(size=48), RunOptions(workers=1))
    return contents(tmp_path / "plain")


def lease(folder, pid, host):
    owner = {"host": host, "pid": pid, "since": "2026-11-01T00:00:00+00:00"}
    (folder / "lease").write_text(json.dumps(owner))
    return hold_lease(folder / "lease", folder, PrepareError)


def test_one_process_at_a_time_removes_an_abandoned_lease(tmp_path):
    abandoned = {"host": socket.gethostname(), "pid": 2**22 + 1, "since": "2026-11-01T00:00:00"}
    (tmp_path / "lease").write_text(json.dumps(abandoned))
    (tmp_path / "lease.removal").touch()  # another process is about to replace it by its own
    expected = rf"in use by process {2**22 + 1}"
    with pytest.raises(PrepareError, match=expected), hold_lease(*named(tmp_path)):
        pass
    os.utime(tmp_path / "lease.removal", (1, 1))  # that process was killed
    with pytest.raises(PrepareError, match=expected), hold_lease(*named(tmp_path)):
        pass
    with hold_lease(*named(tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == ["lease"]
        # The lease of another process, to which this one has lost its own.
        (tmp_path / "lease").write_text(json.dumps(abandoned))
    assert (tmp_path / "lease").is_file()


def named(folder):
    return folder / "lease", folder, PrepareError


def test_a_lease_is_held_by_one_and_removed_at_the_end(tmp_path):
    with hold_lease(tmp_path / "lease", tmp_path, PrepareError):
        expected = f"in use by process {os.getpid()} on {socket.gethostname()}, since"
        second = hold_lease(tmp_path / "lease", tmp_path, PrepareError)
        with pytest.raises(PrepareError, match=expected), second:
            pass
        assert (tmp_path / "lease").exists()
    assert not (tmp_path / "lease").exists()


def test_a_lease_is_taken_over_when_its_owner_has_ended(tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    with lease(tmp_path, int(process.stdout), socket.gethostname()):
        assert json.loads((tmp_path / "lease").read_text())["pid"] == os.getpid()


def test_a_lease_of_another_host_lasts_while_it_is_renewed(tmp_path):
    with (
        pytest.raises(PrepareError, match="process 1 on elsewhere"),
        lease(tmp_path, 1, "elsewhere"),
    ):
        pass
    stale = lease(tmp_path, 1, "elsewhere")
    old = (tmp_path / "lease").stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(tmp_path / "lease", (old, old))
    with stale:
        assert json.loads((tmp_path / "lease").read_text())["pid"] == os.getpid()
