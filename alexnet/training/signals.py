"""SIGTERM and Ctrl-C stop a run after the current step; a second one stops it at once."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - no error: how the loop is left between two steps
    """A signal asked the run to stop."""


class Stop:
    """Holds the signal that asked the run to stop; true once one did."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def request(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_requests() -> Generator[Stop]:
    """Catch the signals within the block; outside the main thread, which alone can, catch none."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {number: signal.signal(number, stop.request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
