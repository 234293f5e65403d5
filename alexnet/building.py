"""build: a ModelConfig and a seed become a network with its start."""

import torch

from alexnet.grouped import Grouped
from alexnet.spec import ModelConfig
from alexnet.weights import initial_state


def build(config: ModelConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> Grouped:
    """The network of a config on one device, its start a function of config and seed alone.

    Takes images (N, 3, crop, crop) in grey levels minus their mean, returns logits (N, classes).
    """
    with torch.device("meta"):
        model = Grouped(config, seed=seed)
    model.to_empty(device=device)
    model.load_state_dict(initial_state(config, seed=seed))
    model.set_dropout_position(0)
    return model
