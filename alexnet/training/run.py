"""What `fit` is given and what it gives back: the loaders, the folder of the run, the summary."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from alexnet.distributed.replicas import ALONE, Replicas
from alexnet.training.metrics import Record


class Loader(Protocol):
    """Batches of the rest of an epoch; the state says where the sequence stands."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def __len__(self) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What the network learns from, and what its error is counted on after each epoch.

    None where another process has the loaders: the first column's feeds the others of its replica.
    """

    train: Loader | None
    validation: Loader | None


def silent(_record: Record) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Where a run lives, what goes into its checkpoints beside the network, who is told.

    Attributes:
        folder: is made if it is not there.
        meta: JSON for every checkpoint: class names, augmentation, ...
        tensors: parts for every checkpoint: {"stats": {"mean": ...}}.
        report: is given each record of metrics.jsonl, and {"kind": "note", "text": ...}.
        replicas: this process among those that share the batches; the first one writes.
    """

    folder: Path
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tensors: Mapping[str, Mapping[str, Tensor]] = field(
        default_factory=dict[str, Mapping[str, Tensor]]
    )
    report: Callable[[Record], None] = silent
    replicas: Replicas = ALONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a call of `fit` came to.

    `images` and `seconds` are of this call; `best_error` is top-1 on validation; `stopped` names
    the signal that ended it early, "" for none.
    """

    epochs: int
    steps: int
    images: int
    seconds: float
    best_error: float
    best: Path | None
    last: Path | None
    stopped: str = ""
    exit_code: int = 0

    def text(self) -> str:
        """One line for a person."""
        done = f"{self.epochs} epochs, {self.steps:,} steps"
        if self.epochs:
            done += f"; best top-1 {1 - self.best_error:.2%} right: {self.best}"
        if self.stopped:
            return f"{self.stopped}: saved {self.last}; the same command goes on. {done}"
        return done
