"""Signals that stop a run after the current step; a second one of a kind stops it at once.

Of Ctrl-C, schedulers (SIGTERM; Slurm's --signal=USR1@60) and a terminal that is closed (SIGHUP).
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):  # noqa: N818 - no error: how the loop is left between two steps
    """A signal asked the run to stop."""


class Stop:
    """Holds the signal that asked the run to stop; true once one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def request(self, number: int, _frame: FrameType | None) -> None:
        # The first one names the exit code. Another kind changes nothing: a launcher sends SIGTERM
        # after the Ctrl-C that the process has seen itself.
        self.signal = self.signal or signal.Signals(number)
        # A closed terminal sends SIGHUP twice, by its shell and by the kernel.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)


@contextmanager
def stop_requests() -> Generator[Stop]:
    """Catch the signals within the block; outside the main thread, which alone can, catch none."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [number for number in SIGNALS if number != signal.SIGHUP or not hangup_ignored()]
    handlers = {number: signal.signal(number, stop.request) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def hangup_ignored() -> bool:
    """Whether this process was started to outlive its terminal (nohup)."""
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
