"""Processes that are told their ranks, as torchrun tells them."""

import os
import socket
import time

from tests.forks import Fork


def start_ranks(world, command, *, env=os.environ, **options):
    """The same command in `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        Fork(
            command,
            env={
                **env,
                **meeting,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
            },
            **options,
        )
        for rank in range(world)
    ]


def ended(processes, timeout=200):
    """Their exit codes and what they wrote to stderr, where that is a pipe."""
    until = time.monotonic() + timeout
    try:
        said = [p.communicate(timeout=until - time.monotonic())[1] for p in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], said


def run_ranks(world, command, timeout=200):
    """The exit codes of `world` processes."""
    return ended(start_ranks(world, command), timeout)[0]
