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
        epochs: maximum number of epochs; the schedule `plateau` may end earlier.
        seed: random seed of the initial weights and of dropout.
        lr: initial learning rate of the weights.
        bias_lr: initial learning rate of the biases, relative to the weights.
        layer_lr: learning rates of single layers, relative to the others: {"fc8": 10}.
        momentum: of SGD.
        weight_decay: of the weights, multiplied by the learning rate.
        bias_decay: of the biases, multiplied by the learning rate.
        velocity_has_lr: whether the velocity includes the learning rate (2012) and stays the same
            when the rate drops, or is scaled with it (torch.optim.SGD).
        schedule: how the learning rates change over the run.
        precision: of activations and gradients; weights and updates are float32 with "bfloat16".
            "float64" is for proofs: forms and devices agree to about 1e-12, so that rounding
            hides nothing.
        channels_last: memory format of the convolutions.
        compile: torch.compile; "graphs" adds CUDA graphs (its mode "reduce-overhead").
        cuda_graph: run the whole step as one CUDA graph, on a single GPU; `compile` may be "on".
        fuse_conv1: whether conv1 is one kernel with its norm and pooling, on a Hopper GPU in
            bfloat16; "auto" times it and cuDNN, and takes the faster.
        stop_error: end the run when the top-1 error on validation, 0..1, is at most this; None:
            train for all epochs.
        log_steps: steps between two lines of the log.
        checkpoint_minutes: minutes between checkpoints within an epoch; each epoch ends with one.
        keep: number of latest checkpoints to keep, in addition to the best.
        explode: stop when the loss of a step exceeds this many times ln(classes), the loss of
            guessing.
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
    cuda_graph: bool = False
    fuse_conv1: Literal["auto", "on", "off"] = "auto"
    stop_error: float | None = None
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
        self._check_rates()
        for name in ("weight_decay", "bias_decay", "momentum", "stop_error"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(
                    f"TrainConfig.{name} must be in [0, 1), got {getattr(self, name)}."
                )
        self._check_graph()
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"TrainConfig.seed must be in 0..2**31-1, got {self.seed}.")

    def _check_rates(self) -> None:
        for name in ("lr", "bias_lr", "checkpoint_minutes", "explode"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"TrainConfig.{name} must be above 0, got {getattr(self, name)}.")
        for layer, rate in self.layer_lr.items():
            if not 0 <= rate < math.inf:
                raise ValueError(f"TrainConfig.layer_lr of {layer} must be at least 0, got {rate}.")

    def _check_graph(self) -> None:
        if self.cuda_graph and (self.compile == "graphs" or self.precision == "float64"):
            raise ValueError(
                "TrainConfig.cuda_graph captures the step itself: it needs compile 'off' or 'on', "
                "and float32 or bfloat16, in which learning rates are tensors."
            )
