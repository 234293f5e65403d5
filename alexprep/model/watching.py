"""What is seen of a run: a live table on a terminal, plain lines anywhere else; TensorBoard."""

import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from alexprep.model.events import Events

Record = dict[str, Any]


class Watcher:
    """Is told every record of a run; enter it for the duration of the run.

    A silent one shows nothing: of several processes only one speaks.
    """

    def __init__(self, run: Path, epochs: int, *, silent: bool = False) -> None:
        self.run, self.epochs, self.silent = run, epochs, silent
        self._live: Live | None = None
        self._rows: list[Record] = []
        self._now: Record = {}
        self._events: Events | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self.silent:
            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._events is not None:
            # Each epoch flushes, where a fault ends the run: what is lost here is its last lines.
            with suppress(OSError):
                self._events.close()

    def begin(self) -> None:
        """Open the event files, now that the folder of the run is ours."""
        if find_spec("tensorboardX") is not None and not self.silent:
            from alexprep.model.events import Events  # noqa: PLC0415 - an extra

            self._events = Events(self.run)

    def note(self, text: str) -> None:
        self.report({"kind": "note", "text": text})

    def report(self, record: Record) -> None:
        """Show a record of alexnet.training.trainer."""
        if self.silent:
            return
        if self._events is not None and record["kind"] != "note":
            self._events.write(record)
        if self._live is None:
            sys.stderr.write(f"{line(record, self.epochs)}\n")
            sys.stderr.flush()
            return
        if record["kind"] == "note":
            self._live.console.print(record["text"], highlight=False, markup=False)
        elif record["kind"] == "epoch":
            self._rows = [*self._rows, record][-12:]
        else:
            self._now = record
        self._live.update(self._table())

    def _table(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in (
            "epoch",
            "loss",
            "validation",
            "top-1 right",
            "top-5 right",
            "images/s",
            "waiting",
        ):
            table.add_column(name, justify="right")
        for row in self._rows:
            table.add_row(
                f"{row['epoch'] + 1}/{self.epochs}",
                f"{row['loss']:.3f}",
                f"{row['validation_loss']:.3f}",
                f"{1 - row['top1']:.2%}",
                f"{1 - row['top5']:.2%}",
                f"{row['images_per_second']:,.0f}",
                f"{row['waiting']:.1%}",
            )
        # Above and below the table, so that they may be wider than it.
        now = _step(self._now).removesuffix(" for data") if self._now else ""
        return Group(Text(str(self.run), style="bold"), table, Text(now))


def line(record: Record, epochs: int) -> str:
    """A record as one line of a log."""
    if record["kind"] == "note":
        return record["text"]
    if record["kind"] == "step":
        return _step(record)
    return (
        f"epoch {record['epoch'] + 1}/{epochs}: loss {record['loss']:.3f}; validation "
        f"loss {record['validation_loss']:.3f}, top-1 {1 - record['top1']:.2%}, "
        f"top-5 {1 - record['top5']:.2%} right; {record['bound']}-bound: "
        f"{record['images_per_second']:,.0f} images/s, {record['waiting']:.1%} of the time "
        f"without data; {record['seconds']:.0f} s + {record['validation_seconds']:.0f} s validation"
    )


def _step(record: Record) -> str:
    return (
        f"epoch {record['epoch'] + 1} step {record['at']}/{record['of']}: "
        f"loss {record['loss']:.4f}, lr {record['lr']:.2g}, "
        f"{record['images_per_second']:,.0f} images/s, {record['waiting']:.1%} waiting for data"
    )
