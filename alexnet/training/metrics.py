"""What the log of a run says: sums over a few steps, and metrics.jsonl, a JSON object a line.

    {"kind": "step", "step": 50, "epoch": 0, "at": 50, "of": 390, "loss": ..., "lr": ...,
     "images_per_second": ..., "waiting": 0.004}    every few steps, of the steps since the last one
    {"kind": "epoch", "step": 390, "epoch": 0, "epochs": 91, "loss": ..., "validation_loss": ...,
     "top1": ..., "top5": ..., "images_per_second": ..., "waiting": ..., "bound": "compute",
     "seconds": ..., "validation_seconds": ...}     of a whole epoch

Epochs count from 0, losses are means in nats, waiting is a share of the time, top1 and top5 are
errors in 0..1; what validation measures is missing where there is none. docs/reference/format.md
has a table of the fields.

A resumed run cuts off the lines that came after its checkpoint and writes those steps again.

metrics.crc32 has a CRC-32 of the lines before the last checkpoint. It is not in the checkpoint:
the lines have times, and equal runs have equal checkpoints.
"""

import json
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet.distributed.feed import Batch
from alexnet.training.checkpoint import replace_file, sync

NAME = "metrics.jsonl"
CRC_NAME = "metrics.crc32"
Record = dict[str, Any]


class Metrics:
    """Appends records to RUN/metrics.jsonl, each flushed at once, so that others can follow it.

    Lines after the first `keep_lines` are cut off.
    """

    def __init__(self, run: Path, *, keep_lines: int) -> None:
        self.path = run / NAME
        # Bytes, since a damaged line must not keep the run from being resumed.
        data = _first_lines(self.path.read_bytes() if self.path.exists() else b"", keep_lines)
        self.lines, self._crc = data.count(b"\n"), zlib.crc32(data)
        # First the CRC of fewer lines: it is that of the longer log too.
        if _saved_crc(run)[:1] != (self.lines,):
            self._save_crc()
        replace_file(self.path, data)

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self.path.open("ab") as file:
            file.write(line)
        self.lines, self._crc = self.lines + 1, zlib.crc32(line, self._crc)

    def sync(self) -> None:
        """Bring the lines to the disk: a checkpoint that counts them follows."""
        sync(self.path)
        self._save_crc()

    def _save_crc(self) -> None:
        text = json.dumps({"lines": self.lines, "crc32": f"{self._crc:08x}"})
        replace_file(self.path.with_name(CRC_NAME), f"{text}\n".encode())


def has_changed(run: Path) -> bool:
    """Whether the log of a run is another than it was at the last checkpoint.

    False for runs of earlier releases, which saved no CRC-32 of it.
    """
    saved = _saved_crc(run)
    if not saved:
        return False
    path = run / NAME
    data = _first_lines(path.read_bytes() if path.exists() else b"", saved[0])
    return saved != (data.count(b"\n"), f"{zlib.crc32(data):08x}")


def _saved_crc(run: Path) -> tuple[int, str] | tuple[()]:
    """(lines, CRC-32 of these lines), impossible ones from a damaged file; () if there is none."""
    try:
        saved = json.loads((run / CRC_NAME).read_bytes())
        return int(saved["lines"]), str(saved["crc32"])
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return -1, ""


def _first_lines(data: bytes, count: int) -> bytes:
    return b"".join(line + b"\n" for line in data.splitlines()[: max(count, 0)])


def read(run: Path) -> Iterator[Record]:
    """The records of a run in order, without a last line that a killed run left unfinished.

    ValueError at a line that is not JSON.
    """
    for line in (run / NAME).read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)


class Interval(NamedTuple):
    """Sums over some steps; `loss` is the sum of the losses of the images.

    `stalled` are the seconds that went by without data. Checkpoints store the fields in this order.
    """

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    stalled: float = 0.0

    def plus(self, interval: "Interval") -> "Interval":
        return Interval(
            steps=self.steps + interval.steps,
            images=self.images + interval.images,
            loss=self.loss + interval.loss,
            seconds=self.seconds + interval.seconds,
            stalled=self.stalled + interval.stalled,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.images, 1)

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def stall(self) -> float:
        """Share of the time that went by without data."""
        return self.stalled / max(self.seconds, 1e-9)


class ChanceWatch:
    """Notices, once, a loss that has stayed at ln(classes), the loss of guessing.

    `steps` in a row have to be within `CLOSE` of it.
    """

    CLOSE = 0.03

    def __init__(self, classes: int, steps: int) -> None:
        self.loss = math.log(max(classes, 2))
        self.steps = steps
        self.count = 0
        self.reported = False

    def add(self, interval: Interval) -> bool:
        """Count an interval; true for the one with which it has stayed there for long."""
        close = abs(interval.mean_loss / self.loss - 1) < self.CLOSE
        self.count = self.count + interval.steps if close else 0
        if self.reported or self.count < self.steps:
            return False
        self.reported = True
        return True


class HostWaits:
    """Seconds without a batch on a CPU, which does nothing else while it asks for one."""

    def __init__(self) -> None:
        self._seconds = self._asked = 0.0

    def asks(self, *, first: bool) -> None:
        """Call it before a batch is asked for; before the first one there is no step."""
        self._asked = time.perf_counter()

    def arrives(self) -> None:
        """Call it when the batch has been given out."""
        self._seconds += time.perf_counter() - self._asked

    def flush(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class DeviceWaits:
    """Seconds without a batch on a GPU, by events in its queue around what it waits for.

    Not by the host's clock: the host queues steps ahead, and while it waits for a batch the GPU may
    still be computing, or the other way round.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch.cuda: torch has a module with the same names for each kind of device.
        self._streams: Any = torch.get_device_module(device)
        self._gaps: list[tuple[torch.Event, torch.Event]] = []
        self._ended: torch.Event | None = None

    def asks(self, *, first: bool) -> None:
        """Call it before a batch is asked for; before the first one there is no step."""
        self._ended = None if first else self._mark()

    def arrives(self) -> None:
        """Call it when the batch has been given out: the queue then waits for what makes it."""
        if self._ended is not None:
            self._gaps.append((self._ended, self._mark()))

    def flush(self) -> float:
        """The seconds since the last call; the GPU must have come to its last event."""
        seconds = sum(ended.elapsed_time(began) for ended, began in self._gaps) / 1000
        self._gaps.clear()
        return seconds

    def _mark(self) -> torch.Event:
        """An event in the queue of this device, which need not be torch's current one."""
        event = self._streams.Event(enable_timing=True)
        event.record(self._streams.current_stream(self.device))
        return event


class Meter:
    """Adds up since the last `flush`, which alone reads tensors, so that a GPU never waits for it.

    `waits` measures the time without data, in the way of the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.waits = DeviceWaits(device) if device.type == "cuda" else HostWaits()
        self.loss = torch.zeros((), device=device, dtype=torch.float32)
        self.steps = self.images = 0
        self.began = time.perf_counter()

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of the loader; what happens between two of them counts as computing."""
        self.began = time.perf_counter()
        iterator = iter(loader)
        self.waits.asks(first=True)
        while (batch := next(iterator, None)) is not None:
            self.waits.arrives()
            yield batch
            self.waits.asks(first=False)

    def add(self, loss: Tensor, images: int) -> None:
        """One step: the mean loss of its images."""
        self.loss += loss * images
        self.images += images
        self.steps += 1

    def flush(self) -> Interval:
        """The sums since the last call."""
        loss = float(self.loss)  # waits for the device, so the seconds below are those of the steps
        stalled = self.waits.flush()
        clock = time.perf_counter()
        interval = Interval(self.steps, self.images, loss, clock - self.began, stalled)
        self.loss.zero_()
        self.steps = self.images = 0
        self.began = clock
        return interval
