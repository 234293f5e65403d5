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
from alexnet.model.spec import ModelConfig, Shapes, state_shapes
from alexnet.model.weights import to_columns, to_grouped
from alexnet.training.checkpoint import compare_shapes


def to_one_device(model: nn.Module, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or momenta, under the names and in the shapes of the one-device form.

    With one column a process, all processes of a replica must call it; each gets all columns.
    """
    if not isinstance(model, Columns):
        return dict(named)
    columns = {name: tensor.detach() for name, tensor in named.items()}
    if isinstance(model.seam, TeamSeam):
        columns = _all_columns(columns, model.config, model.seam.team)
    return to_grouped(columns, model.config)


def from_one_device(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: what the columns of this process hold of `state`."""
    if not isinstance(model, Columns):
        return dict(state)
    return model.share_of(to_columns(dict(state), model.config))


def parameter_shapes(model: nn.Module) -> Shapes:
    """The parameters of the one-device form, in order."""
    if not isinstance(model, Columns):
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return state_shapes(model.config)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy the weights of a checkpoint; RunError listing what does not fit this network."""
    shapes = parameter_shapes(model)
    check_shapes(shapes, weights, path)
    copy_weights(model, weights, shapes)


def check_shapes(shapes: Shapes, weights: Mapping[str, Tensor], path: Path) -> None:
    """RunError unless the weights of a checkpoint have the names and shapes of a network."""
    _, differences = compare_shapes(shapes, weights)
    if differences:
        raise RunError(
            f"{path} is of another network: {'; '.join(differences[:6])}"
            f"{f'; and {len(differences) - 6} more' if len(differences) > 6 else ''}. "
            "Use the network it was trained with, or start from it with --init-from."
        )


def copy_fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what fits by name and shape; the names copied, and those that start fresh."""
    shapes = parameter_shapes(model)
    fitting, _ = compare_shapes(shapes, weights)
    copy_weights(model, weights, fitting)
    return fitting, [name for name in shapes if name not in fitting]


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Copy the weights called `names` into the network, which may hold columns of them."""
    state = to_one_device(model, dict(model.named_parameters()))
    state |= {name: weights[name] for name in names}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in from_one_device(model, state).items():
            own[name].copy_(tensor)


def _all_columns(local: dict[str, Tensor], config: ModelConfig, team: Team) -> dict[str, Tensor]:
    """The tensors of all columns on the CPU, sent from each process to the others."""
    shapes = state_shapes(config)
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    dtype = next(iter(local.values())).dtype
    columns: dict[str, Tensor] = {}
    for name, meta in to_columns(empty, config).items():
        sender = int(name.partition(".")[0].removeprefix("column"))
        tensor = torch.empty(meta.shape, dtype=dtype, device=team.device)
        if sender == team.column:
            tensor.copy_(local[name])
        source = dist.get_global_rank(team.group, sender)
        team.exchange(dist.broadcast, tensor, src=source, group=team.group)
        columns[name] = tensor.cpu()
    return columns
