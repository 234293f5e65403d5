"""What metrics.jsonl says of a run, checked, and how long the run will take by its last steps."""

import json
import os
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import msgspec

from alexnet.training import metrics
from alexprep.errors import PrepareError

Record = dict[str, Any]
# Bounded, so that sums with floats cannot overflow on a damaged file.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
RATES = 10  # records of steps whose mean speed forecasts the others


class StepRecord(msgspec.Struct, tag_field="kind", tag="step", kw_only=True):
    """A line of metrics.jsonl, written every train.log_steps steps."""

    epoch: Count
    batch: Count = msgspec.field(name="at")
    batches: Count = msgspec.field(name="of")
    loss: float
    lr: float
    images_per_second: float
    data_wait: float = msgspec.field(name="waiting")  # share of the time

    @property
    def epochs(self) -> float:
        """Epochs completed, counting the current one in part."""
        return self.epoch + self.batch / max(self.batches, 1)


class EpochRecord(msgspec.Struct, tag_field="kind", tag="epoch", kw_only=True):
    """A line of metrics.jsonl, written after every epoch."""

    epoch: Count
    loss: float
    validation_loss: float | None = None  # None, as the errors, without validation
    top1: float | None = None
    top5: float | None = None
    images_per_second: float
    data_wait: float = msgspec.field(name="waiting")
    seconds: float
    validation_seconds: float = 0.0


class LogReader:
    """Reads metrics.jsonl while it grows.

    Attributes:
        records: all that were read so far, as the file has them.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / metrics.NAME
        self.records: list[Record] = []
        self._inode = self._offset = 0

    def update(self) -> list[Record]:
        """Read what was added, and return it.

        A run that resumes replaces the file by its first lines: all of it is then read anew, and
        what comes after those lines is new. PrepareError names a line that is no record.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:  # a run that has not logged a step yet
            return []
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                resumed = bool(self.records)
                self.records, self._offset, self._inode = [], 0, status.st_ino
                self._read(file.read())
                return [] if resumed else self.records[:]
            file.seek(self._offset)
            count = len(self.records)
            self._read(file.read())
            return self.records[count:]

    def _read(self, data: bytes) -> None:
        # A last line that is being written has no end yet.
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self.records.append(self._parse(line))

    def _parse(self, line: bytes) -> Record:
        try:
            record = json.loads(line)
            msgspec.convert(record, StepRecord | EpochRecord)
        except (ValueError, RecursionError) as error:
            raise PrepareError(
                f"{self.path}, line {len(self.records) + 1}, is damaged ({error}). "
                "Delete the line, or restore the file from a copy."
            ) from None
        return record


def read_log(folder: Path) -> list[StepRecord | EpochRecord]:
    """The records of metrics.jsonl; PrepareError with the number of a line that is not one."""
    records = LogReader(folder).update()
    return [msgspec.convert(record, StepRecord | EpochRecord) for record in records]


class TimeLeft:
    """How long a run will take to its last epoch, by the speed of its last steps.

    Args:
        epochs: of the run.
        batch: images of a step, over all replicas.
    """

    def __init__(self, epochs: int, batch: int) -> None:
        self.epochs, self.batch = epochs, batch
        self.seconds: float | None = None
        self._validation = 0.0
        self._rates: deque[float] = deque(maxlen=RATES)

    def add(self, record: Record) -> None:
        """Take a record into account, and work `seconds` out again."""
        epochs = self.epochs - record["epoch"]
        if record["kind"] == "epoch":
            self._validation = record.get("validation_seconds", 0.0)
            self.seconds = max(epochs - 1, 0) * (record["seconds"] + self._validation)
        elif record["images_per_second"] > 0:
            self._rates.append(record["images_per_second"])
            mean = len(self._rates) / sum(1 / rate for rate in self._rates)
            steps = epochs * record["of"] - record["at"]
            self.seconds = max(steps * self.batch / mean + epochs * self._validation, 0.0)
