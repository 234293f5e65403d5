"""What a user sees of a run: a live table on a terminal, plain lines anywhere else; TensorBoard."""

import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alexprep.errors import printable
from alexprep.model.run_log import Record, TimeLeft
from alexprep.progress import clock

EPOCHS_SHOWN = 12
COLUMNS = ("epoch", "loss", "val loss", "top-1 acc", "top-5 acc", "images/s", "data wait")
FLUSH_SECONDS = 30.0


class RunDisplay:
    """Takes every record of a run; enter it for the duration of the run.

    Of several processes only one is not silent.

    Args:
        run: the folder.
        epochs: of the run.
        batch: images of a step, for the time left; 0: it is not shown.
        silent: show nothing.
    """

    def __init__(self, run: Path, epochs: int, *, batch: int = 0, silent: bool = False) -> None:
        self.run, self.epochs, self.silent = run, epochs, silent
        self._time_left = TimeLeft(epochs, batch)
        self._live: Live | None = None
        self._rows: list[Record] = []
        self._step: Record = {}
        self._events: EventFile | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self.silent:
            # No thread of its own draws it, which a closed terminal would end with a traceback.
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
        if self._events is not None:
            # The run may be ending on a storage fault already: each epoch flushes, and only lines
            # after the last one are lost.
            with suppress(OSError):
                self._events.close()

    def open_events(self) -> None:
        """Open TensorBoard's file, once the folder of the run is ours."""
        if find_spec("tensorboardX") is not None and not self.silent:
            self._events = EventFile(self.run)

    def log(self, text: str) -> None:
        """Show a line that is no record."""
        self.emit({"kind": "note", "text": text})

    def emit(self, record: Record) -> None:
        """Show a record of alexnet.training.trainer."""
        if self.silent:
            return
        if self._events is not None and record["kind"] != "note":
            self._events.write(record)
        # A terminal that is closed, or a pipe that nobody reads, does not end a run.
        with suppress(OSError):
            self._show(record)

    def _show(self, record: Record) -> None:
        if record["kind"] != "note":
            self._time_left.add(record)
        left = time_left_text(self._time_left)
        if self._live is None:
            text = format_record(record, self.epochs)
            text += f", {left}" if left and record["kind"] == "step" else ""
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()
            return
        if record["kind"] == "note":
            self._live.console.print(printable(record["text"]), highlight=False, markup=False)
        elif record["kind"] == "epoch":
            self._rows = [*self._rows, record][-EPOCHS_SHOWN:]
        else:
            self._step = record
        shown = run_table(self.run, self.epochs, self._rows, self._step, left)
        self._live.update(shown, refresh=True)


def time_left_text(time_left: TimeLeft) -> str:
    """Such as "1:02:03 left"; nothing where it is not known, or nothing is left."""
    if not time_left.batch or not time_left.seconds:
        return ""
    return f"{clock(time_left.seconds)} left"


def run_table(
    run: Path, epochs: int, rows: Sequence[Record], step: Record, status: str = ""
) -> Group:
    """The last epochs of a run as a table, below it the last step and a line of status."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        validation = ("-", "-", "-")
        if row.get("validation_loss") is not None:
            accuracies = (f"{1 - row[name]:.2%}" for name in ("top1", "top5"))
            validation = (f"{row['validation_loss']:.3f}", *accuracies)
        table.add_row(
            f"{row['epoch'] + 1}/{epochs}",
            f"{row['loss']:.3f}",
            *validation,
            f"{row['images_per_second']:,.0f}",
            f"{row['waiting']:.1%}",
        )
    # Above and below the table, so that they may be wider than it.
    lines = [format_record(step, epochs) if step else "", *([status] if status else [])]
    return Group(
        Text(printable(str(run)), style="bold"), table, Text(printable("\n".join(lines), "\n"))
    )


def format_record(record: Record, epochs: int) -> str:
    """A record as one line of a log."""
    if record["kind"] == "note":
        return record["text"]
    speed = f"{record['images_per_second']:,.0f} images/s, data wait {record['waiting']:.1%}"
    if record["kind"] == "step":
        return (
            f"epoch {record['epoch'] + 1} step {record['at']}/{record['of']}: "
            f"loss {record['loss']:.4f}, lr {record['lr']:.2g}, {speed}"
        )
    text = f"epoch {record['epoch'] + 1}/{epochs}: train loss {record['loss']:.3f}"
    end = f"{speed} ({record['bound']}-bound); {record['seconds']:.0f} s"
    if "validation_loss" not in record:
        return f"{text}; {end}"
    return (
        f"{text}, val loss {record['validation_loss']:.3f}, top-1 acc {1 - record['top1']:.2%}, "
        f"top-5 acc {1 - record['top5']:.2%}; {end} + {record['validation_seconds']:.0f} s "
        "validation"
    )


class EventFile:
    """RUN/events.*: the numbers of each record under train/ or epoch/, for TensorBoard.

    tensorboardX's own SummaryWriter has a thread, which a full disk ends; its queue then fills and
    training waits for ever. Written in the thread that trains, the fault is an OSError like others.
    """

    def __init__(self, run: Path) -> None:
        # Imported by name: tensorboardX is an extra and has no types.
        self._event: Any = import_module("tensorboardX.proto.event_pb2").Event
        self._scalar: Any = import_module("tensorboardX.summary").scalar
        writer: Any = import_module("tensorboardX.record_writer").RecordWriter
        started = time.time()
        # The name TensorBoard looks for.
        self.path = run / f"events.out.tfevents.{started:.0f}.{socket.gethostname()}"
        self._file = writer(str(self.path))
        header = self._event(wall_time=started, file_version="brain.Event:2")
        self._file.write(header.SerializeToString())
        self._flushed = time.monotonic()

    def write(self, record: Record) -> None:
        """Add a step or an epoch; OSError where it cannot be stored."""
        prefix = "train" if record["kind"] == "step" else "epoch"
        for name, value in record.items():
            if isinstance(value, float):
                summary = self._scalar(f"{prefix}/{name}", value)
                event = self._event(step=record["step"], wall_time=time.time(), summary=summary)
                self._file.write(event.SerializeToString())
        if record["kind"] == "epoch" or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()
