"""When learning rates change: by the clock (Hand) or by the validation error (Plateau). No torch.

Schedules are data in a TrainConfig. What they give are factors of the first rate of a layer's
weights or biases; a factor of 0 freezes the layer: no gradient, no momentum, no decay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["weight", "bias"]
# (from this part of the run on, this factor) in the order of time; before the first it is 1.
Stages = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hand:
    """Rates by the clock, as parts of the run: the epoch about to begin / all epochs.

    Attributes:
        weights: stages of the weights.
        biases: stages of the biases.
        layers: stages of both in single layers, instead of the two above.
    """

    weights: Stages = ()
    biases: Stages = ()
    layers: Mapping[str, Stages] = field(default_factory=dict[str, Stages])

    def __post_init__(self) -> None:
        for stages in (self.weights, self.biases, *self.layers.values()):
            starts = [start for start, _ in stages]
            if starts != sorted(starts) or any(factor < 0 for _, factor in stages):
                raise ValueError(
                    f"Hand wants stages in the order of time with factors >= 0, got {stages}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plateau:
    """Divide the rates when the validation error stops improving; end when it does so once more.

    Section 5 of the paper: by 10, three times, looked at by hand; how long the authors waited it
    does not say.

    Attributes:
        patience: epochs without a new best, at the present rate, that count as no improvement.
        divide: what the rates are divided by.
        drops: how often; the plateau after the last drop ends the run.
        improvement: by how much a new best must be better; errors are in 0..1.
    """

    patience: int = 3
    divide: float = 10.0
    drops: int = 3
    improvement: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.drops < 0 or self.divide <= 1 or self.improvement < 0:
            raise ValueError(
                "Plateau wants patience >= 1, drops >= 0, divide > 1 and improvement >= 0, got "
                f"patience={self.patience}, drops={self.drops}, divide={self.divide}, "
                f"improvement={self.improvement}."
            )


Schedule = Hand | Plateau


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What a Plateau remembers: best error at the present rate, epochs since, drops so far."""

    best: float = 1.0
    waited: int = 0
    drops: int = 0

    def after(self, error: float, schedule: Schedule) -> "Watched":
        """With the validation error of one more epoch."""
        if isinstance(schedule, Hand):
            return self
        if error < self.best - schedule.improvement:
            return Watched(best=error, drops=self.drops)
        if self.waited + 1 < schedule.patience:
            return Watched(best=self.best, waited=self.waited + 1, drops=self.drops)
        # The best carries over: only what beats the old rate counts as an improvement.
        return Watched(best=self.best, drops=self.drops + 1)

    def ended(self, schedule: Schedule) -> bool:
        """Whether the error has stopped improving at the last rate too."""
        return isinstance(schedule, Plateau) and self.drops > schedule.drops


def factor(schedule: Schedule, watched: Watched, part: float, layer: str, kind: Kind) -> float:
    """Of the first rate of a layer's weights or biases, for an epoch that begins at `part`."""
    if isinstance(schedule, Plateau):
        return schedule.divide ** -min(watched.drops, schedule.drops)
    stages = schedule.layers.get(layer)
    if stages is None:
        stages = schedule.weights if kind == "weight" else schedule.biases
    now = 1.0
    for start, then in stages:
        if part >= start:
            now = then
    return now


# layer-params-145.cfg of the released code: 91 epochs, rates cut by hand after 25, 51 and 79; conv1
# slowed after 67 and frozen after 72. Its biases stayed at their first rate.
NET_145 = Hand(
    weights=((25 / 91, 0.1), (51 / 91, 0.01), (79 / 91, 0.001)),
    layers={
        "conv1": ((25 / 91, 0.1), (51 / 91, 0.01), (67 / 91, 0.001), (72 / 91, 0.0)),
    },
)
# The part of that run after which it had neither colour noise nor the division by 1.1.
NET_145_NOISE = 67 / 91

# Net 170 (cuda-convnet2's default, "dexp"): .01 * 250^(-k/3) in four equal stages, biases cut once.
NET_170 = Hand(
    weights=tuple((k / 4, 250 ** (-k / 3)) for k in (1, 2, 3)),
    biases=((0.5, 0.1),),
)

# bvlc_alexnet's solver: a tenth after every 100,000 of its 450,000 steps.
CAFFE = Hand(
    weights=tuple((k * 100 / 450, 0.1**k) for k in (1, 2, 3, 4)),
    biases=tuple((k * 100 / 450, 0.1**k) for k in (1, 2, 3, 4)),
)

CONSTANT = Hand()

# For runs of a few epochs, which end long before the first rate has done all it can.
SHORT = Hand(weights=((0.6, 0.1), (0.85, 0.01)), biases=((0.6, 0.1), (0.85, 0.01)))
