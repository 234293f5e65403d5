"""Python processes forked from one that has imported torch: that takes each about two seconds.

They are like others in all but that: arguments, folder, session, signals, limits, exit codes.
"""

import atexit
import fcntl
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

# Nobody reads them before the process has ended, so that they must hold all it writes.
PIPE_BYTES = 1 << 20
ROOT = Path(__file__).parents[1]
# Without DALI: a test asks which processes load it.
SERVER = """
from contextlib import suppress
with suppress(ImportError):  # the host of a GPU may lack what some of them need
    import alexprep.model.evaluation, alexprep.model.predict, alexprep.model.training
    import alexprep.commands.data, alexprep.commands.model, alexprep.report
from tests.forks import run_as_main, serve
run_as_main(*serve())
"""


# The second lets torch look for GPUs without starting CUDA, which works in no fork then.
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def serve():
    """Fork what is asked for at the socket that is stdin; in the child, what it is to run."""
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not message:
            os._exit(0)
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    # A parent for each process writes its id and its end to the last descriptor.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control.close()
    *streams, report = descriptors
    if pid := os.fork():
        for descriptor in streams:
            os.close(descriptor)
        os.write(report, b"%12d" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(report, b"%12d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.close(report)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return json.loads(message)


def run_as_main(words, environment, folder, session):
    """As `python WORDS` does, with -m, -c or a script; an error ends the interpreter."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    option, *sys.argv = words
    if option == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        program, sys.argv[0] = sys.argv[0], "-c"
        exec(compile(program, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv, sys.path[0] = words, str(Path(option).parent)
        runpy.run_path(option, run_name="__main__")


@cache
def server():
    """The socket of the process that forks, of which each test process has one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=theirs,
        cwd=ROOT,
        env=os.environ | SERVER_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    theirs.close()

    def end():
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def read_text(pipe):
    """What is in the pipe, which is closed then."""
    os.set_blocking(pipe, False)  # a child of the process may still have it open
    with os.fdopen(pipe, "rb") as file:
        return (file.read() or b"").decode()


class Fork:
    """What subprocess.Popen gives for a command that begins with sys.executable.

    It has one thread of OpenMP. An output that is PIPE is a text, to be read when it has ended.
    """

    def __init__(
        self, command, *, stdout=None, stderr=None, env=None, cwd=".", start_new_session=False
    ):
        python, *words = map(str, command)
        assert python == sys.executable
        self.returncode = None
        self._report, report = os.pipe()
        self._outputs, targets = [None, None], [1, 2]
        for number, stream in enumerate((stdout, stderr)):
            if stream == subprocess.PIPE:
                self._outputs[number], targets[number] = os.pipe()
                fcntl.fcntl(targets[number], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        request = (words, dict(env or os.environ), str(Path(cwd).resolve()), start_new_session)
        opened = [os.open(os.devnull, os.O_RDONLY), *set(targets) - {1, 2}, report]
        descriptors = [opened[0], *targets, report]
        socket.send_fds(server(), [json.dumps(request).encode()], descriptors)
        for descriptor in opened:
            os.close(descriptor)
        self.pid = int(os.read(self._report, 12))

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(os.read(self._report, 12))
            os.close(self._report)
            self._texts = [output and read_text(output) for output in self._outputs]
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout=None):
        """What it wrote to stdout and stderr, once it has ended."""
        self.wait(timeout)
        return self._texts

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run_fork(command, *, timeout=200, **options):
    """As subprocess.run with the output captured."""
    process = Fork(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process, process.returncode, out, err)
