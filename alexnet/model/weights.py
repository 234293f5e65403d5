"""Weights: their first values, and how they map from one form of the network to another."""

import math

import torch
from torch import Tensor

from alexnet.model.spec import Layer, ModelConfig, Size, sizes

State = dict[str, Tensor]


def initial_state(config: ModelConfig, *, seed: int) -> State:
    """First weights of the one-device form, float32: a function of config and seed alone.

    Weights are normal with the row's sd, biases constant; None gives PyTorch's default, uniform
    within 1 / sqrt(terms of one output).
    """
    state: State = {}
    for index, (row, size) in enumerate(zip(config.layers, sizes(config), strict=True)):
        # A generator a layer: the first weights of a layer do not depend on the other layers.
        chance = torch.Generator().manual_seed(seed * 64 + index)
        state[f"{row.name}.weight"], state[f"{row.name}.bias"] = _first_values(row, size, chance)
    return state


def _first_values(row: Layer, size: Size, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    # On the CPU, where `chance` is, also for who has made a GPU torch's default device.
    weight, bias = (torch.empty(shape, device="cpu") for shape in (size.weight, (row.out,)))
    reach = 1 / math.sqrt(math.prod(size.weight[1:]))
    if row.sd is None:
        weight.uniform_(-reach, reach, generator=chance)
    else:
        weight.normal_(0.0, row.sd, generator=chance)
    if row.bias is None:
        bias.uniform_(-reach, reach, generator=chance)
    else:
        bias.fill_(row.bias)
    return weight, bias


def to_columns(state: State, config: ModelConfig) -> State:
    """A state of the one-device form as that of `Columns`: names column0.conv1.weight and so on.

    A column holds the weights of its outputs. Anything laid out as the weights maps the same way:
    momenta, gradients.
    """
    split: State = {}
    for row in config.layers:
        for kind in ("weight", "bias"):
            tensor = state[f"{row.name}.{kind}"]
            shares = (tensor,) if row is config.layers[-1] else tensor.chunk(config.columns)
            for column, share in enumerate(shares):
                split[f"column{column}.{row.name}.{kind}"] = share.clone()
    return split


def to_grouped(state: State, config: ModelConfig) -> State:
    """The inverse of `to_columns`; the state must hold all columns."""
    grouped: State = {}
    for row in config.layers:
        columns = 1 if row is config.layers[-1] else config.columns
        for kind in ("weight", "bias"):
            names = [f"column{column}.{row.name}.{kind}" for column in range(columns)]
            grouped[f"{row.name}.{kind}"] = torch.cat([state[name].cpu() for name in names])
    return grouped
