"""TrainConfig: everything about training that is not the network or its data. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from alexnet.training.schedule import NET_145, Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The released code's training of net 145 by default (layer-params-145.cfg).

    Attributes:
        epochs: at most; a PlateauSchedule may end the run earlier.
        seed: of the first weights and of dropout.
        lr: first learning rate of the weights.
        bias_lr: the biases' first rate as a multiple of the weights'.
        layer_lr: multiples for single layers, weights and biases alike: {"fc8": 10}.
        momentum: of the velocity.
        weight_decay: times the rate, of the weights.
        bias_decay: the same of the biases.
        velocity_has_lr: whether the velocity stays as it is when the rate changes (2012), or
            shrinks with it (plain torch.optim.SGD).
        schedule: when the rates change.
        precision: of the network's arithmetic. Weights and updates are float32 with "bfloat16";
            "float64" is for proofs: forms and devices agree to about 1e-12, so that rounding
            hides nothing.
        channels_last: memory format of the convolutions.
        compile: torch.compile; "graphs" adds CUDA graphs (its mode "reduce-overhead").
        log_steps: steps between two lines of the log.
        checkpoint_minutes: time between two checkpoints within an epoch; each epoch ends with one.
        keep: how many of the latest checkpoints are kept, besides the best.
        explode: training has diverged when the loss exceeds this many times ln(classes), the loss
            at chance.
    """

    epochs: int = 91
    seed: int = 0
    lr: float = 0.01
    bias_lr: float = 2.0
    layer_lr: Mapping[str, float] = field(default_factory=dict[str, float])
    momentum: float = 0.9
    weight_decay: float = 0.0005
    bias_decay: float = 0.0
    velocity_has_lr: bool = True
    schedule: Schedule = NET_145
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    channels_last: bool = True
    compile: Literal["off", "on", "graphs"] = "off"
    log_steps: int = 50
    checkpoint_minutes: float = 10.0
    keep: int = 2
    explode: float = 20.0

    def __post_init__(self) -> None:
        for name in ("epochs", "log_steps", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TrainConfig.{name} must be at least 1, got {getattr(self, name)}."
                )
        for name in ("lr", "bias_lr", "checkpoint_minutes", "explode"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"TrainConfig.{name} must be above 0, got {getattr(self, name)}.")
        for name in ("weight_decay", "bias_decay", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"TrainConfig.{name} must be in [0, 1), got {getattr(self, name)}."
                )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"TrainConfig.seed must be in 0..2**31-1, got {self.seed}.")
