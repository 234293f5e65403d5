"""watch: what a run does, from the files that it writes; it may train on another machine.

Nothing is asked of the process that trains, and no file of the run is locked or written.
"""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from rich.console import Console
from rich.live import Live

from alexprep.errors import PrepareError, printable
from alexprep.lock import lock_owner
from alexprep.machine import gpu_megabytes, memory_megabytes
from alexprep.model.display import EPOCHS_SHOWN, format_record, run_table, time_left_text
from alexprep.model.run_folder import CONFIG, LOCK, read_config
from alexprep.model.run_log import Count, LogReader, Record, TimeLeft
from alexprep.progress import clock
from pipelines.format import MANIFEST

# A run on another machine that has logged nothing for so long is over: nobody can ask its process.
SILENT_SECONDS = 3600.0


class _Train(msgspec.Struct):
    epochs: Count
    stop_error: float | None = None


class _Loader(msgspec.Struct):
    batch: Annotated[int, msgspec.Meta(ge=1)]


class _Recipe(msgspec.Struct):
    train: _Train
    loader: _Loader


class RunWatch:
    """The state of a run folder; `update` reads what is new.

    PrepareError or RunError if the folder is no run, or what is in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        recipe = _read_recipe(folder)
        self.folder, self.log = folder, LogReader(folder)
        self.epochs, self.stop_error = recipe.train.epochs, recipe.train.stop_error
        self.time_left = TimeLeft(self.epochs, recipe.loader.batch)
        self.owner = lock_owner(folder / LOCK)

    def update(self) -> list[Record]:
        """The records that were added since the last call."""
        # The owner first: what a run logged before it ended is then read below.
        self.owner = lock_owner(self.folder / LOCK)
        records = self.log.update()
        for record in records:
            self.time_left.add(record)
        return records

    @property
    def rows(self) -> list[Record]:
        """The records of whole epochs."""
        return [record for record in self.log.records if record["kind"] == "epoch"]

    @property
    def step(self) -> Record:
        """The last record of steps; empty before the first."""
        steps = (record for record in reversed(self.log.records) if record["kind"] == "step")
        empty: Record = {}
        return next(steps, empty)

    @property
    def done(self) -> bool:
        """Whether all epochs have been trained, or the error is as low as was asked."""
        rows = self.rows
        errors = [row["top1"] for row in rows if row.get("top1") is not None]
        learned = self.stop_error is not None and min(errors, default=1.0) <= self.stop_error
        return bool(rows) and (rows[-1]["epoch"] + 1 >= self.epochs or learned)

    @property
    def active(self) -> bool:
        """Whether a process trains, as far as can be seen from here."""
        return self.owner is not None and self.silence < SILENT_SECONDS

    @property
    def silence(self) -> float:
        """Seconds since the run last wrote to its log or its configuration."""
        newest = 0.0
        for path in (self.log.path, self.folder / CONFIG):
            with suppress(FileNotFoundError):
                newest = max(newest, path.stat().st_mtime)
        return time.time() - newest

    def status(self) -> str:
        """One line: who trains, in how much memory, and how long it will take."""
        return ", ".join(self._status())

    def _status(self) -> Iterator[str]:
        if self.active and self.owner is not None:
            yield from filter(None, [time_left_text(self.time_left)])
            yield f"process {self.owner.pid} on {self.owner.host}"
            if self.owner.host == socket.gethostname():
                yield from _memory(self.owner.pid)
            yield f"log {clock(self.silence)} old"
        elif self.done:
            yield f"finished after {len(self.rows)} of {self.epochs} epochs"
        else:
            yield f"not running, {len(self.rows)} of {self.epochs} epochs done"
            yield "the same `alexprep train` command resumes it"


def _memory(process: int) -> Iterator[str]:
    with suppress(OSError, IndexError):  # it has just ended
        yield f"{memory_megabytes(process) / 1e3:,.1f} GB"
        on_gpus = gpu_megabytes(process)
        yield from [f"{on_gpus / 1e3:,.1f} GB on GPUs"] if on_gpus else []


def _read_recipe(folder: Path) -> _Recipe:
    if not folder.exists():
        raise PrepareError(f"{folder} does not exist. Give the folder that `train --run` names.")
    path = folder / CONFIG
    if not path.is_file():
        kind = "is a data set" if (folder / MANIFEST).is_file() else f"has no {CONFIG}"
        raise PrepareError(f"{folder} {kind}. Give the folder that `train --run` names.")
    try:
        return msgspec.convert(read_config(folder).recipe, _Recipe)
    except msgspec.ValidationError as error:
        raise PrepareError(f"{path} is damaged ({error}). Restore it from a copy.") from None


def watch(folder: Path, *, interval: float, once: bool = False) -> None:
    """Show a run on stdout until it ends: a table on a terminal, else a line for each record.

    Args:
        folder: of the run.
        interval: seconds between two looks at it.
        once: show it as it is, and return.
    """
    run = RunWatch(folder)
    show = _table if sys.stdout.isatty() else _lines
    show(run, interval, once=once)


def _table(run: RunWatch, interval: float, *, once: bool) -> None:
    with Live(console=Console(), auto_refresh=False) as live:
        for _ in _looks(run, interval, once=once):
            rows = run.rows[-EPOCHS_SHOWN:]
            shown = run_table(run.folder, run.epochs, rows, run.step, run.status())
            live.update(shown, refresh=True)


def _lines(run: RunWatch, interval: float, *, once: bool) -> None:
    """Of what is there already the epochs and the last step, later every record."""
    first = True
    for records in _looks(run, interval, once=once):
        if first:
            last = records[-1:] if run.step in records[-1:] else []
            records = [*run.rows, *last]
        for record in records:
            sys.stdout.write(f"{printable(format_record(record, run.epochs))}\n")
        if first or not run.active:
            sys.stdout.write(f"{printable(f'{run.folder}: {run.status()}')}\n")
        sys.stdout.flush()
        first = False


def _looks(run: RunWatch, interval: float, *, once: bool) -> Iterator[list[Record]]:
    """What was added at each look; the last one is after the run has ended."""
    while True:
        yield run.update()
        if once or not run.active:
            return
        time.sleep(interval)
