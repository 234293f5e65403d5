# pyright: basic
# tensorboardX has no types; protobuf makes Event when it is imported.
"""TensorBoard's event files, written in the thread that trains.

tensorboardX's own SummaryWriter has a thread for it, which a full disk ends; its queue then fills
and the training waits for ever. Written here, the fault comes out as any other of storage.
"""

import socket
import time
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

FLUSH_SECONDS = 30.0


class Events:
    """RUN/events.*: the numbers of each record under train/ or epoch/."""

    def __init__(self, run: Path) -> None:
        began = time.time()
        # The name TensorBoard looks for.
        self.path = run / f"events.out.tfevents.{began:.0f}.{socket.gethostname()}"
        self._file = RecordWriter(str(self.path))
        self._file.write(Event(wall_time=began, file_version="brain.Event:2").SerializeToString())
        self._flushed = time.monotonic()

    def write(self, record: dict[str, Any]) -> None:
        """Add a step or an epoch; OSError where it cannot be stored."""
        prefix = "train" if record["kind"] == "step" else "epoch"
        for name, value in record.items():
            if isinstance(value, float):
                summary = scalar(f"{prefix}/{name}", value)
                event = Event(step=record["step"], wall_time=time.time(), summary=summary)
                self._file.write(event.SerializeToString())
        if record["kind"] == "epoch" or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()
