"""Commands in processes that write down each change they make to a folder, or end at one of them.

    python traced.py      JSON requests on standard input, a JSON answer to each on standard output

One process imports the program, once, and forks for every request. A change is a file that is
created, cut, written, synced, linked, renamed or removed, or a folder made, synced or removed. The
audit hooks of the interpreter tell most of them; `open` and `os.fsync` are replaced for the others.
A process that is to end at change N sends itself SIGKILL before it, and half-way in a write.
"""

import builtins
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

MODULES = (
    *(
        "alexprep.cli",
        "alexprep.dataset.shard",
        "alexprep.dataset.stats",
        "alexprep.dataset.verify",
    ),
    *("alexprep.dataset.pixelsums", "alexprep.dataset.decode", "alexprep.dataset.lookup"),
    *("alexprep.dataset.export", "pipelines.planes", "pipelines.planes_loops", "pyarrow.parquet"),
    *("alexprep.dataset.forecast", "alexprep.dataset.stats_report", "alexprep.demo"),
    *("alexprep.model.training", "alexprep.model.evaluation", "alexprep.model.predict"),
    *("alexprep.model.watch", "alexprep.report", "alexprep.report.page", "pipelines.cpu"),
    "tensorboardX",
    "nvidia.dali.fn",
)
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Result(NamedTuple):
    """How a command ended, what it printed, and what it changed: (kind, path, ...) in order."""

    code: int
    out: str
    err: str
    changes: list


class Server:
    """The process that forks one for each command."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, root, *words, kill_at=0):
        """Run `alexprep WORDS...` in the folder `root`."""
        request = {
            "root": str(root),
            "words": [str(word) for word in words],
            "kill_at": kill_at,
            "answer": str(self.folder / "answer"),
        }
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        out, err, changes = (self.folder / f"answer.{kind}" for kind in ("out", "err", "changes"))
        traced = pickle.loads(changes.read_bytes()) if changes.exists() else []
        return Result(code, out.read_text(), err.read_text(), traced)

    def close(self):
        self.process.communicate()


class Trace:
    """The changes of this process to the folder `root`; ends the process at number `kill_at`."""

    def __init__(self, root, kill_at):
        self.root, self.kill_at = os.path.realpath(root), kill_at
        self.changes = []
        self._open, self._fsync = io.open, os.fsync

    def start(self):
        self.listeners = {
            "open": self._opened,
            "os.rename": lambda old, new, old_fd, new_fd: self._add(
                "rename", located(old, old_fd), located(new, new_fd)
            ),
            "os.link": lambda old, new, old_fd, new_fd: self._add(
                "link", located(old, old_fd), located(new, new_fd)
            ),
            "os.symlink": lambda old, new, fd: self._add("symlink", located(new, fd)),
            "os.mkdir": lambda path, _, fd: self._add_if(False, "mkdir", located(path, fd)),
            "os.remove": lambda path, fd: self._add_if(True, "remove", located(path, fd)),
            "os.rmdir": lambda path, fd: self._add_if(True, "remove", located(path, fd)),
            "os.truncate": lambda path, _: self._add("write", located(path)),
        }
        sys.addaudithook(self._hear)
        io.open = builtins.open = self.open
        os.fsync = self.fsync

    def _hear(self, event, arguments):
        if event in self.listeners:
            self.listeners[event](*arguments)

    def _opened(self, path, _, flags):
        if isinstance(path, int) or not flags & CHANGING or Path(path).is_dir():
            return  # a folder: of a file without a name
        path = located(path)
        if not os.path.lexists(path):
            self._add("create", path)
        elif flags & os.O_TRUNC:
            self._add("write", path)

    def _add_if(self, expected, kind, path):
        if os.path.lexists(path) == expected:  # else the call fails
            self._add(kind, path)

    def _add(self, kind, *paths, half=None):
        if not any(path.startswith(f"{self.root}/") or path == self.root for path in paths):
            return
        if len(self.changes) + 1 == self.kill_at:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        self.changes.append((kind, *paths))

    def open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
        """`open`, with every write of a file that is not only read in the list of changes."""
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, encoding, errors, newline, **more)
        raw = TracedFile(file, mode.replace("b", "").replace("t", ""), **more)
        raw.add = self._add
        if "b" in mode and buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline)

    def fsync(self, file):
        number = file if isinstance(file, int) else file.fileno()
        path = located(number)
        self._add("sync", path)
        self._fsync(number)
        if self.changes and self.changes[-1] == ("sync", path):
            data = Path(path).read_bytes() if Path(path).is_file() else None
            self.changes[-1] = ("sync", path, data)


class TracedFile(io.FileIO):
    """A file whose writes are changes."""

    def write(self, data):
        view = memoryview(data).cast("B")
        half = view[: len(view) // 2]
        self.add("write", located(self.fileno()), half=lambda: super(TracedFile, self).write(half))
        return super().write(data)

    def truncate(self, size=None):
        self.add("write", located(self.fileno()))
        return super().truncate(size)


def located(path, folder=-1):
    """The absolute path of an argument of an audit event: a path, perhaps of a folder's number."""
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    base = Path.cwd() if folder in (-1, None) else Path(f"/proc/self/fd/{folder}").readlink()
    return os.path.normpath(base / os.fsdecode(path))


def run_forked(request):
    """Run a command in a fork of this process; its exit code, or minus the signal."""
    for kind in ("out", "err", "changes"):
        Path(f"{request['answer']}.{kind}").unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        _run(request)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(request):
    code = 1
    for number, kind in ((1, "out"), (2, "err")):
        file = os.open(f"{request['answer']}.{kind}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.chdir(request["root"])
    tempfile.tempdir = f"{request['root']}/tmp"
    trace = Trace(request["root"], request["kill_at"])
    trace.start()
    try:
        import_module("alexprep.cli").cli.main(request["words"], "alexprep")
    except SystemExit as ended:
        code = ended.code or 0
    except Exception:  # noqa: BLE001 - the test shows it
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    with trace._open(f"{request['answer']}.changes", "wb") as file:
        pickle.dump(trace.changes, file)
    os._exit(code)


def main():
    for name in MODULES:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(f"{json.dumps(run_forked(json.loads(line)))}\n")
        answers.flush()


if __name__ == "__main__":
    main()
