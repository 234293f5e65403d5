"""The update rule of 2012: momentum SGD with a rate and a decay for each kind of parameter.

The released code (weights.cu) keeps the rate inside the velocity:

    v = momentum * v - rate * decay * w - rate * gradient;  w = w + v

torch.optim.SGD keeps it outside: b = momentum * b + decay * w + gradient; w = w - rate * b. They
agree while the rate is constant; when it changes, v stays, so b must be multiplied by old / new.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from alexnet.training.config import TrainConfig
from alexnet.training.schedule import Kind


class Group(TypedDict):
    """A parameter group of torch.optim.SGD, with the names of its layer and parameters."""

    layer: str
    kind: Kind
    names: list[str]
    params: list[nn.Parameter]
    first_lr: float
    lr: float
    weight_decay: float


def sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """The optimizer of a config, with a group for the weights and one for the biases of a layer."""
    return torch.optim.SGD(
        groups(model, config),
        lr=config.lr,
        momentum=config.momentum,
        # One pass over memory for each tensor instead of five: 61 million parameters in 30 ms less.
        fused=all(p.is_floating_point() for p in model.parameters()),
    )


def groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups in the order of the parameters.

    ValueError if `layer_lr` names a layer that the network does not have.
    """
    by_kind: dict[tuple[str, Kind], Group] = {}
    for name, parameter in model.named_parameters():
        layer, kind = layer_of(name), kind_of(name)
        rate = config.lr * config.layer_lr.get(layer, 1.0)
        rate *= config.bias_lr if kind == "bias" else 1.0
        group = by_kind.setdefault(
            (layer, kind),
            Group(
                layer=layer,
                kind=kind,
                names=[],
                params=[],
                first_lr=rate,
                lr=rate,
                weight_decay=config.bias_decay if kind == "bias" else config.weight_decay,
            ),
        )
        group["names"].append(name)
        group["params"].append(parameter)
    layers = {layer for layer, _ in by_kind}
    for layer in config.layer_lr:
        if layer not in layers:
            raise ValueError(f"TrainConfig.layer_lr names {layer!r}; layers are {sorted(layers)}.")
    return [dict(group) for group in by_kind.values()]


def layer_of(name: str) -> str:
    """conv1 for conv1.weight and for column0.conv1.weight."""
    return name.split(".")[-2] if "." in name else name


def kind_of(name: str) -> Kind:
    """Whether a parameter of this name is a bias."""
    return "bias" if name.endswith("bias") else "weight"


def set_rates(
    optimizer: torch.optim.SGD, factor: Callable[[str, Kind], float], *, velocity_has_lr: bool
) -> None:
    """Give every group its first rate times factor(layer, kind); 0 freezes its parameters."""
    for group in optimizer.param_groups:
        new = group["first_lr"] * factor(group["layer"], group["kind"])
        old, group["lr"] = group["lr"], new
        for parameter in group["params"]:
            parameter.requires_grad_(new > 0)
            parameter.grad = None
            velocity: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
            if velocity is not None and velocity_has_lr and 0 < new != old > 0:
                velocity.mul_(old / new)


def velocities(optimizer: torch.optim.SGD) -> Iterator[tuple[str, Tensor]]:
    """(name of the parameter, its momentum buffer); zeros where it has not moved yet."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            velocity: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
            yield name, torch.zeros_like(parameter) if velocity is None else velocity


def load_velocities(optimizer: torch.optim.SGD, saved: dict[str, Tensor]) -> None:
    """Set the momentum buffers by the names of their parameters."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in saved:
                buffer = torch.empty_like(parameter).copy_(saved[name])
                optimizer.state[parameter]["momentum_buffer"] = buffer
