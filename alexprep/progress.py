"""Progress of long work: a bar on a terminal, a line every five seconds anywhere else."""

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pipelines.loader import Loader

from alexprep.errors import counted, printable

SECONDS_BETWEEN_LINES = 5.0
DELAY = 2.0  # of work that is usually short
WIDE = 100  # columns that the whole text fits beside a bar


class ProgressBar:
    """Counts finished units against a total, on stderr; enter it to start the clock.

    `advance` may be called at any pace. `seconds` and `rate` (units a second) hold after the end.

    Args:
        label: what is being done.
        total: units of the whole work.
        unit: their name.
        delay: seconds that the work has to last before anything is shown, for work that is usually
            short and has another result to print.
    """

    def __init__(self, label: str, total: int, unit: str = "images", *, delay: float = 0.0) -> None:
        self.label, self.total, self.unit = printable(label), total, unit
        self.delay = delay
        self.done = self.bytes = self.errors = 0
        self._started = self._ended = 0.0
        self._last_line = 0.0
        self._bar: Progress | None = None
        self._task: TaskID

    @property
    def seconds(self) -> float:
        return (self._ended or time.perf_counter()) - self._started

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return self.done / max(self.seconds, 1e-9)

    def __enter__(self) -> Self:
        self._started = self._last_line = time.perf_counter()
        if sys.stderr.isatty() and not self.delay:
            self._start_bar()
        return self

    def _start_bar(self) -> None:
        self._bar = _new_bar(self.label)
        self._bar.start()
        # Without a total the bar moves: the first unit may be minutes away.
        self._task = self._bar.add_task(self.label, total=None, text=self._bar_text())

    def advance(self, count: int, bytes: int = 0, errors: int = 0) -> None:
        """Add `count` finished units, `bytes` read or written, and `errors`."""
        self.done += count
        self.bytes += bytes
        self.errors += errors
        time_now = time.perf_counter()
        if time_now - self._started < self.delay:
            return
        if self._bar is None and sys.stderr.isatty():
            self._start_bar()
        if self._bar is not None:
            self._draw(self._bar)
        elif time_now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time_now
            self._line()

    def text(self, *, short: bool = False) -> str:
        """Units done, units and megabytes a second, time left and errors."""
        texts = [f"{self.done:,}/{self.total:,} {self.unit}"]
        if self.done:
            texts.append(f"{self.rate:,.0f}{'' if short else f' {self.unit}'}/s")
        if self.bytes and not short:
            texts.append(f"{self.bytes / 1e6 / max(self.seconds, 1e-9):,.1f} MB/s")
        if 0 < self.done < self.total:
            texts.append(f"{clock((self.total - self.done) / self.rate)} left")
        if self.errors:
            texts.append(counted(self.errors, "error"))
        return ", ".join(texts)

    def __exit__(self, *_: object) -> None:
        self._ended = time.perf_counter()
        if self._bar is not None:
            self._draw(self._bar)
            self._bar.stop()
        elif self.seconds >= self.delay:
            self._line()

    def _draw(self, bar: "Progress") -> None:
        text = self._bar_text()
        bar.update(self._task, total=self.total, completed=self.done, text=text)

    def _bar_text(self) -> str:
        return self.text(short=self._bar is not None and self._bar.console.width < WIDE)

    def _line(self) -> None:
        sys.stderr.write(f"{self.label}: {self.text()}\n")
        sys.stderr.flush()


def _new_bar(label: str) -> "Progress":
    """On a narrow terminal the bar is shortened, never the text next to it."""
    from rich.console import Console  # noqa: PLC0415 - takes as long as 20 images
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415 - as above
    from rich.table import Column  # noqa: PLC0415 - as above

    return Progress(
        TextColumn("{task.description}", table_column=Column(min_width=len(label))),
        BarColumn(),
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
    )


def preload(loader: "Loader", label: str) -> None:
    """Let a loader load what its backend holds in memory, with a bar if that takes long."""
    with ProgressBar(f"load {label}", loader.samples, delay=DELAY) as progress:
        loader.load(progress.advance)


def clock(duration: float) -> str:
    """A duration in seconds as 1:05 or 2:03:04."""
    minutes, seconds = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
