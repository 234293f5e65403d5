"""What `fit` takes, what it gives back, and the state of a run between two steps."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from alexnet.distributed.feed import Loader
from alexnet.distributed.mesh import SINGLE_PROCESS, Replicas
from alexnet.training.metrics import Interval, Record
from alexnet.training.schedule import PlateauState


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What the network learns from, and what its error is measured on after each epoch.

    None in a process that another one feeds: the first column's feeds the others of its replica.
    Without `has_validation` nothing measures the error, and the newest checkpoint is the best.
    """

    train: Loader | None
    validation: Loader | None
    has_validation: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """Where a run lives, what its checkpoints hold besides the network, and who follows it.

    Attributes:
        folder: created if it does not exist.
        meta: JSON for every checkpoint: class names, augmentation, ...
        tensors: parts for every checkpoint: {"stats": {"mean": ...}}.
        emit: called with each record of metrics.jsonl, and with {"kind": "note", "text": ...}.
        replicas: this process among those that share the batches; the first one writes.
    """

    folder: Path
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tensors: Mapping[str, Mapping[str, Tensor]] = field(
        default_factory=dict[str, Mapping[str, Tensor]]
    )
    emit: Callable[[Record], None] = lambda _record: None
    replicas: Replicas = SINGLE_PROCESS


_ON_DISK = {"plateau": "watched"}


@dataclass(kw_only=True, slots=True)
class TrainState:
    """All that a checkpoint holds besides tensors and the state of the loader.

    `epoch` is that of the next step, `step` the steps done in it; `steps` and `images` count over
    the whole run, `totals` over the present epoch.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    images: int = 0
    lines: int = 0  # of metrics.jsonl
    totals: Interval = field(default_factory=Interval)
    rates: dict[str, float] = field(default_factory=dict[str, float])
    plateau: PlateauState = field(default_factory=PlateauState)
    best_error: float = 1.0
    best_step: int = -1

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, where the state of the plateau is called "watched"."""
        return {_ON_DISK.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "TrainState":
        """The state that `to_dict` wrote; ValueError for anything else."""
        names = {key: name for name, key in _ON_DISK.items()}
        values: dict[str, Any] = {names.get(key, key): value for key, value in raw.items()}
        if set(values) != {entry.name for entry in fields(cls)}:
            raise ValueError(f"the progress of the run has the fields {sorted(raw)}")
        state = msgspec.convert(values, cls)
        if min(state.epoch, state.step, state.steps, state.images, state.lines) < 0:
            raise ValueError("the progress of the run has counts below 0")
        return state

    def count_step(self) -> None:
        self.step += 1
        self.steps += 1

    def add(self, interval: Interval) -> None:
        self.images += interval.images
        self.totals = self.totals.plus(interval)

    def end_epoch(self, error: float | None) -> None:
        """Remember the error and begin the next epoch; without one the newest is the best."""
        if error is None:
            self.best_step = self.steps
        elif error < self.best_error or self.best_step < 0:
            self.best_error, self.best_step = error, self.steps
        self.epoch, self.step, self.totals = self.epoch + 1, 0, Interval()


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The result of one call of `fit`.

    `images` and `seconds` are of this call; `best_error` is top-1 on validation, None without one;
    `stopped` names the signal that ended it early, "" for none; `writes` is off in processes that
    leave files and reports to the first one.
    """

    epochs: int
    steps: int
    images: int
    seconds: float
    best_error: float | None
    best: Path | None
    last: Path | None
    stopped: str = ""
    exit_code: int = 0
    writes: bool = True

    def text(self) -> str:
        """One line of text."""
        text = f"{self.epochs} epochs, {self.steps:,} steps"
        if self.epochs and self.best_error is None:
            text += f"; newest checkpoint: {self.best}"
        elif self.epochs and self.best_error is not None:
            text += f"; best top-1 acc {1 - self.best_error:.2%}: {self.best}"
        if self.stopped:
            return f"{self.stopped}: saved {self.last}. Run it again to resume. {text}"
        return text
