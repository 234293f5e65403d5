"""Where a run stands: all that a checkpoint says besides tensors and the loader's own state."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from alexnet.training.meter import Taken
from alexnet.training.schedule import Watched


@dataclass(kw_only=True, slots=True)
class Progress:
    """Counts of the run, sums over the present epoch, and what the schedule has seen.

    `epoch` is of the next step, `step` the steps done in it; `steps` and `images` are of the run.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    images: int = 0
    lines: int = 0  # of metrics.jsonl
    totals: Taken = field(default_factory=Taken)  # of the present epoch
    rates: dict[str, float] = field(default_factory=dict[str, float])
    watched: Watched = field(default_factory=Watched)
    best_error: float = 1.0
    best_step: int = -1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Progress":
        values: dict[str, Any] = {**raw}
        values["totals"] = Taken(*raw["totals"])
        values["watched"] = Watched(**raw["watched"])
        return cls(**values)

    def count(self) -> None:
        """One more step."""
        self.step += 1
        self.steps += 1

    def add(self, taken: Taken) -> None:
        """What the last steps came to."""
        self.images += taken.images
        self.totals = self.totals.plus(taken)

    def end_epoch(self, error: float) -> None:
        """Remember the error and begin the next epoch."""
        if error < self.best_error or self.best_step < 0:
            self.best_error, self.best_step = error, self.steps
        self.epoch, self.step, self.totals = self.epoch + 1, 0, Taken()
