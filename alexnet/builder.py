"""build: a config and a seed become a network, in one of its forms, with its first weights."""

from collections.abc import Sequence
from typing import Literal

import torch

from alexnet.distributed.mesh import Team, TeamSeam
from alexnet.model.columns import Columns, local_seam
from alexnet.model.grouped import Grouped
from alexnet.model.spec import ModelConfig
from alexnet.model.weights import initial_state, to_columns


def build(
    config: ModelConfig,
    *,
    form: Literal["grouped", "columns"] = "grouped",
    devices: Sequence[str | torch.device] = ("cpu",),
    team: Team | None = None,
    seed: int = 0,
) -> Grouped | Columns:
    """The network of a config; first weights and dropout depend on config and seed alone.

    Takes images (N, 3, crop, crop) in grey levels minus their mean, returns logits (N, classes).
    Every form computes the same function.

    Args:
        config: the network, see alexnet.model.networks.
        form: "grouped" on one device, or "columns".
        devices: one device, or for columns one per column.
        team: for columns, one in each process (alexnet.distributed.mesh); replaces `devices`.
        seed: of the first weights and of dropout.

    Raises:
        ValueError: another form, another number of devices, or a norm across columns that are to
            be split (ModelConfig.lrn_across).
    """
    if form not in ("grouped", "columns"):
        raise ValueError(f"build expects form 'grouped' or 'columns', got {form!r}.")
    state = initial_state(config, seed=seed)
    with torch.device("meta"):
        if form == "grouped":
            model = Grouped(config, seed=seed)
        else:
            seam = TeamSeam(team=team) if team else local_seam(config.columns, devices)
            model = Columns(config, seam, seed=seed)
    if isinstance(model, Grouped):
        model.to_empty(device=devices[0])
    else:
        state = model.share_of(to_columns(state, config))
        for column, device in zip(model.local, model.seam.devices, strict=True):
            column.to_empty(device=device)
    model.load_state_dict(state)
    model.set_dropout_position(0)
    return model
