"""The queues of GPUs that are not there, on a clock of their own, by the names of torch.cuda.

A stream works its queue in order, and begins an operation when the one before it has ended, when
what it waits for has happened and not before the host has queued it. An event is the moment at
which its stream has come to it. The host goes on at once, unless a test moves its clock.
"""

from contextlib import contextmanager
from itertools import count

import torch

NUMBERS = count(1)
PRIVATE = torch._C._autograd.DeviceType.PrivateUse1  # what torch leaves to backends of others


class Event:
    def __init__(self, enable_timing=False):
        self.moment = None

    def record(self, stream):
        self.moment = stream.moment()

    def elapsed_time(self, later):
        """Milliseconds, as torch has it."""
        return 1000 * (later.moment - self.moment)


class Stream(torch.Stream):
    """A torch.Stream, for torch itself looks at what `record_stream` is given."""

    def __new__(cls, queues, device):
        kind = int(PRIVATE.value)
        return super().__new__(
            cls, stream_id=next(NUMBERS), device_index=device.index or 0, device_type=kind
        )

    def __init__(self, queues, device):
        self.queues, self.home = queues, torch.device(device.type, device.index or 0)
        self.ready = 0.0  # when its queue is empty
        self.worked = []  # begin and end of each operation

    def moment(self):
        return max(self.ready, self.queues.host)

    def work(self, seconds):
        """Queue an operation; its begin and end."""
        begin = self.moment()
        self.ready = begin + seconds
        self.worked.append((begin, self.ready))
        return self.worked[-1]

    def wait_stream(self, other):
        self.ready = max(self.moment(), other.moment())

    def wait_event(self, event):
        self.ready = max(self.moment(), event.moment)


class Queues:
    """What stands in for the module torch.cuda."""

    Event = Event

    def __init__(self):
        self.host = 0.0
        self.streams = []
        self._current = {}

    def Stream(self, device):  # noqa: N802 - as torch calls it
        self.streams.append(Stream(self, torch.device(device)))
        return self.streams[-1]

    def current_stream(self, device):
        device = torch.device(device)
        key = (device.type, device.index or 0)
        if key not in self._current:
            self._current[key] = self.Stream(device)
        return self._current[key]

    @contextmanager
    def stream(self, stream):
        key = (stream.home.type, stream.home.index)
        before = self.current_stream(stream.home)
        self._current[key] = stream
        yield
        self._current[key] = before
