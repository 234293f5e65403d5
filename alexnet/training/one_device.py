# pyright: reportUnknownMemberType=false
# torch.distributed is typed only in part.
"""Checkpoints hold the one-device form, whatever form wrote them: a run may change its devices."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet.distributed.mesh import Team, TeamSeam
from alexnet.errors import RunError
from alexnet.model.columns import Columns
from alexnet.model.spec import ModelConfig, sizes
from alexnet.model.weights import to_columns, to_grouped
from alexnet.training.checkpoint import matching


def to_whole(model: nn.Module, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or what is laid out as they are, in the names and shapes of the one-device form.

    With a column in each process all processes of a replica must call it; each gets the whole.
    """
    if not isinstance(model, Columns):
        return dict(named)
    columns = {name: tensor.detach() for name, tensor in named.items()}
    if isinstance(model.seam, TeamSeam):
        columns = _all_columns(columns, model.config, model.seam.team)
    return to_grouped(columns, model.config)


def from_whole(model: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: what the columns of this process hold of it."""
    if not isinstance(model, Columns):
        return dict(whole)
    return model.share_of(to_columns(dict(whole), model.config))


def whole_like(model: nn.Module) -> dict[str, Tensor]:
    """Names and shapes of the one-device form, without memory behind them."""
    if not isinstance(model, Columns):
        return dict(model.named_parameters())
    like: dict[str, Tensor] = {}
    for row, size in zip(model.config.layers, sizes(model.config), strict=True):
        like[f"{row.name}.weight"] = torch.empty(size.weight, device="meta")
        like[f"{row.name}.bias"] = torch.empty(size.biases, device="meta")
    return like


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy the weights of a checkpoint; RunError listing what does not fit this network."""
    _, differences = matching(whole_like(model), weights)
    if differences:
        raise RunError(
            f"{path} is of another network: {'; '.join(differences[:6])}"
            f"{f'; and {len(differences) - 6} more' if len(differences) > 6 else ''}. "
            "Use the network it was trained with, or start from it with --init-from."
        )
    copy_weights(model, weights, whole_like(model))


def copy_fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what fits by name and shape; the names copied, and those left as they were."""
    here = whole_like(model)
    fits, _ = matching(here, weights)
    copy_weights(model, weights, fits)
    return fits, [name for name in here if name not in fits]


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Copy the weights called `names` into the network, which may hold columns of them."""
    whole = to_whole(model, dict(model.named_parameters()))
    whole |= {name: weights[name] for name in names}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in from_whole(model, whole).items():
            own[name].copy_(tensor)


def _all_columns(mine: dict[str, Tensor], config: ModelConfig, team: Team) -> dict[str, Tensor]:
    """The tensors of all columns on the CPU, sent from each process to the others."""
    like = {
        f"{row.name}.{kind}": torch.empty(shape, device="meta")
        for row, size in zip(config.layers, sizes(config), strict=True)
        for kind, shape in (("weight", size.weight), ("bias", (size.biases,)))
    }
    dtype = next(iter(mine.values())).dtype
    everything: dict[str, Tensor] = {}
    for name, meta in to_columns(like, config).items():
        sender = int(name.partition(".")[0].removeprefix("column"))
        tensor = torch.empty(meta.shape, dtype=dtype, device=team.device)
        if sender == team.column:
            tensor.copy_(mine[name])
        source = dist.get_global_rank(team.group, sender)
        team.exchange(dist.broadcast, tensor, src=source, group=team.group)
        everything[name] = tensor.cpu()
    return everything
