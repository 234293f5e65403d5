"""`shard` in a process of its own, so that tests can stop it in every way there is."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

CODE = """
import json, resource, sys
from alexprep.errors import PrepareError
from alexprep.dataset.shard import RunOptions, ShardConfig, shard

if __name__ == "__main__":
    source, out, config, options, limit = json.loads(sys.argv[1])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        shard(source, out, ShardConfig(**config), RunOptions(**options))
    except PrepareError as error:
        sys.exit(f"PrepareError: {error}")
"""


def start_shard(script: Path, source, out, config, options, file_limit=0):
    """Start it in a session of its own; its processes can be found by that."""
    script.write_text(CODE)
    call = json.dumps([str(source), str(out), config, options, file_limit])
    return subprocess.Popen(
        [sys.executable, str(script), call],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def members(session):
    """The processes of a session that run (not those that wait to be reaped)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.name))
    return found


def workers(parent):
    """The processes that take tasks: those that the server of `parent` has forked."""
    found = {}
    for pid in members(parent):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if b"multiprocessing.forkserver" in command:
            found[pid] = int(stat[1])  # its parent
    return [pid for pid, server in found.items() if server in found]


def kill(pid, blow=signal.SIGKILL):
    """Send a signal to a process that may be gone already."""
    try:
        os.kill(pid, blow)
    except ProcessLookupError:
        return False
    return True
