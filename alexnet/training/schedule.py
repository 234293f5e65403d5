"""When learning rates change: at set times (StepSchedule) or by the validation error. No torch.

Schedules are data in a TrainConfig. What they give are factors of the first rate of a layer's
weights or biases; a factor of 0 freezes the layer: no gradient, no momentum, no decay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["weight", "bias"]
# (progress of the run from which on it holds, factor) in order of time; before the first it is 1.
Stages = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateauState:
    """What a PlateauSchedule remembers between epochs.

    `best` is the lowest error so far, `waited` the epochs since, at the present rate.
    """

    best: float = 1.0
    waited: int = 0
    drops: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSchedule:
    """Rates that change at set times, as parts of the run: the epoch about to begin / all epochs.

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
            valid = all(0 <= factor < math.inf for _, factor in stages)
            if starts != sorted(starts) or not valid:
                raise ValueError(
                    f"StepSchedule expects stages in order of time with factors >= 0, got {stages}."
                )

    def lr_factor(self, layer: str, kind: Kind, *, progress: float, state: PlateauState) -> float:
        """Of the first rate of a layer's weights or biases, for an epoch that begins at `progress`.

        `progress` is the share of the run that is done, 0..1; the state has no influence.
        """
        stages = self.layers.get(layer)
        if stages is None:
            stages = self.weights if kind == "weight" else self.biases
        factors = [factor for start, factor in stages if start <= progress]
        return factors[-1] if factors else 1.0

    def after(self, error: float, state: PlateauState) -> PlateauState:
        """The same state: the validation error has no influence."""
        return state

    def ended(self, state: PlateauState) -> bool:
        """Never: the epochs end the run."""
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateauSchedule:
    """Divide the rates when the validation error stops improving; end when it does so once more.

    Section 5 of the paper: by 10, three times, decided by hand; it does not say how long the
    authors waited.

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
        rates = 1 < self.divide < math.inf and 0 <= self.improvement < math.inf
        if self.patience < 1 or self.drops < 0 or not rates:
            raise ValueError(
                "PlateauSchedule expects patience >= 1, drops >= 0, divide > 1 and "
                f"improvement >= 0, got patience={self.patience}, drops={self.drops}, "
                f"divide={self.divide}, improvement={self.improvement}."
            )

    def lr_factor(self, layer: str, kind: Kind, *, progress: float, state: PlateauState) -> float:
        """Of the first rate, the same for all layers and kinds."""
        return self.divide ** -min(state.drops, self.drops)

    def after(self, error: float, state: PlateauState) -> PlateauState:
        """The state with the validation error of one more epoch."""
        if error < state.best - self.improvement:
            return PlateauState(best=error, drops=state.drops)
        if state.waited + 1 < self.patience:
            return PlateauState(best=state.best, waited=state.waited + 1, drops=state.drops)
        # The best carries over: only what beats the old rate counts as an improvement.
        return PlateauState(best=state.best, drops=state.drops + 1)

    def ended(self, state: PlateauState) -> bool:
        """Whether the error has stopped improving at the last rate too."""
        return state.drops > self.drops


Schedule = StepSchedule | PlateauSchedule

# layer-params-145.cfg of the released code: 91 epochs, rates cut by hand after 25, 51 and 79; conv1
# slowed after 67 and frozen after 72. Its biases stayed at their first rate.
NET_145 = StepSchedule(
    weights=((25 / 91, 0.1), (51 / 91, 0.01), (79 / 91, 0.001)),
    layers={
        "conv1": ((25 / 91, 0.1), (51 / 91, 0.01), (67 / 91, 0.001), (72 / 91, 0.0)),
    },
)
# The part of that run after which it had neither colour noise nor the division by 1.1.
NET_145_NOISE = 67 / 91

# Net 170 (cuda-convnet2's default, "dexp"): .01 * 250^(-k/3) in four equal stages, biases cut once.
NET_170 = StepSchedule(
    weights=tuple((k / 4, 250 ** (-k / 3)) for k in (1, 2, 3)),
    biases=((0.5, 0.1),),
)

# bvlc_alexnet's solver: a tenth after every 100,000 of its 450,000 steps.
CAFFE = StepSchedule(
    weights=tuple((k * 100 / 450, 0.1**k) for k in (1, 2, 3, 4)),
    biases=tuple((k * 100 / 450, 0.1**k) for k in (1, 2, 3, 4)),
)

CONSTANT = StepSchedule()

# For runs of a few epochs, which end long before the first rate has done all it can.
SHORT = StepSchedule(weights=((0.6, 0.1), (0.85, 0.01)), biases=((0.6, 0.1), (0.85, 0.01)))
