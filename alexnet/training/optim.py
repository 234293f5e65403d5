"""The update rule of 2012: momentum SGD with a rate and a decay for each kind of parameter.

The released code (weights.cu) keeps the rate inside the velocity:

    v = momentum * v - rate * decay * w - rate * gradient;  w = w + v

torch.optim.SGD keeps it outside: b = momentum * b + decay * w + gradient; w = w - rate * b. They
agree while the rate is constant; when it changes, v stays, so b must be multiplied by old / new.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd as update_parameters

from alexnet.model.cuda_ops import KERNEL_DEVICES
from alexnet.model.first_layer import Convolution
from alexnet.model.grouped import GroupedLinear
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Parameters of one device, one rate and one decay, which are updated together."""

    parameters: tuple[nn.Parameter, ...]
    rate: float | Tensor
    decay: float


class Sgd(torch.optim.SGD):
    """torch.optim.SGD, bit for bit, in as few launches as there are pairs of rate and decay.

    The 16 groups of code2012 have two such pairs. A rate is a float, or on CUDA a tensor: a step
    that is captured in a CUDA graph reads it at every replay, and `update_rates` writes it.

    The network may have its weights in another type than they are learned in (`round_weights`): the
    float32 weights are then in `masters`, and gradients come in the network's type. On CUDA that
    saves the casts of weights and gradients, 730 MB a step of code2012: .17 of some 2 ms at batch
    128, by the memory of an H200.

    Attributes:
        masters: what is updated in place of a parameter.
        generation: how often the launches have changed, other than in their rates: a step that was
            captured before is then no longer the same.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, lr: float, momentum: float, tensor_rates: bool
    ) -> None:
        parameters = [p for group in groups for p in group["params"]]
        # One pass over memory for each tensor instead of five: 61 million parameters in 30 ms less.
        fused = all(p.is_floating_point() for p in parameters)
        super().__init__(groups, lr=lr, momentum=momentum, fused=fused)
        self.tensor_rates = tensor_rates
        self.generation = 0
        self.launches: list[Launch] = []
        self.masters: dict[nn.Parameter, Tensor] = {}
        self._pairs: list[tuple[float, float]] = []

    def round_weights(self, weights: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
        """Give the network these weights in `dtype`, in place; learn them as they are now."""
        for weight in weights:
            self.masters[weight] = weight.data
            weight.data = weight.data.to(dtype)

    def master(self, parameter: nn.Parameter) -> Tensor:
        """What is updated: the parameter, unless the network has a rounded copy of it."""
        return self.masters.get(parameter, parameter)

    def update_rates(self) -> None:
        """Sort the parameters into launches by the present rates of their groups."""
        sorted_parameters: dict[tuple[torch.device, float, float], list[nn.Parameter]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                key = (parameter.device, group["lr"], group["weight_decay"])
                sorted_parameters.setdefault(key, []).append(parameter)
        # Tensors stay where they are while the launches do: a captured step reads them there.
        rates = {tuple(map(id, launch.parameters)): launch.rate for launch in self.launches}
        self.launches = []
        for (device, rate, decay), parameters in sorted_parameters.items():
            value = rates.get(tuple(map(id, parameters)), rate)
            if self.tensor_rates:
                value = value if isinstance(value, Tensor) else torch.empty((), device=device)
                value.fill_(rate)
            else:
                value = rate
            self.launches.append(Launch(parameters=tuple(parameters), rate=value, decay=decay))
        self.generation += {tuple(map(id, launch.parameters)) for launch in self.launches} != set(
            rates
        )
        self._pairs = self._present_pairs()

    def _present_pairs(self) -> list[tuple[float, float]]:
        return [(group["lr"], group["weight_decay"]) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient. A closure is not supported."""
        if self._pairs != self._present_pairs():
            self.update_rates()
        for launch in self.launches:
            moving = [p for p in launch.parameters if p.grad is not None]
            # The first update of a parameter sets its velocity instead of adding to it.
            started = ["momentum_buffer" in self.state[p] for p in moving]
            for state in (False, True):
                chosen = [p for p, known in zip(moving, started, strict=True) if known == state]
                self._update(chosen, launch)

    def _update(self, parameters: list[nn.Parameter], launch: Launch) -> None:
        if not parameters:
            return
        momentum = self.defaults["momentum"]
        if isinstance(launch.rate, Tensor) and KERNEL_DEVICES:
            rounded = [p for p in parameters if p in self.masters]
            for parameter in rounded:
                self._update_rounded(parameter, launch.rate, launch.decay)
            parameters = [p for p in parameters if p not in self.masters]
            if not parameters:
                return
        masters = [self.master(p) for p in parameters]
        buffers = [self.state[p].get("momentum_buffer") for p in parameters] if momentum else []
        update_parameters(
            masters,
            [cast(Tensor, p.grad).to(m.dtype) for p, m in zip(parameters, masters, strict=True)],
            buffers,
            weight_decay=launch.decay,
            momentum=momentum,
            lr=cast(float, launch.rate),  # torch takes tensors too, but does not say so
            dampening=0.0,
            nesterov=False,
            maximize=False,
            fused=self.defaults["fused"],
        )
        for parameter, velocity in zip(parameters, buffers, strict=False):
            self.state[parameter]["momentum_buffer"] = velocity
        for parameter, master in zip(parameters, masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def _update_rounded(self, parameter: nn.Parameter, rate: Tensor, decay: float) -> None:
        """The same for a weight that the network has in bfloat16, in one kernel."""
        from alexnet.training import sgd_triton  # noqa: PLC0415 - Triton is not everywhere

        master, state = self.masters[parameter], self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(master)
        sgd_triton.update(
            *(master, state["momentum_buffer"], parameter, cast(Tensor, parameter.grad), rate),
            decay=decay,
            momentum=self.defaults["momentum"],
        )


def sgd(model: nn.Module, config: TrainConfig, *, replicas: int = 1) -> Sgd:
    """The optimizer of a config, with a group for the weights and one for the biases of a layer.

    On CUDA in bfloat16 our networks get their weights rounded, unless several replicas add up their
    gradients, which stay float32 for that.
    """
    # CUDA's fused update reads rates as float32: float64 keeps numbers.
    tensor_rates = all(p.is_cuda and p.dtype != torch.float64 for p in model.parameters())
    optimizer = Sgd(
        groups(model, config), lr=config.lr, momentum=config.momentum, tensor_rates=tensor_rates
    )
    if config.precision == "bfloat16" and tensor_rates and KERNEL_DEVICES and replicas == 1:
        optimizer.round_weights(layer_weights(model), torch.bfloat16)
    return optimizer


def layer_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of our layers, which are used in nothing but products: autocast rounds them.

    What a network of another kind does with its weights is not known.
    """
    layers = [m for m in model.modules() if isinstance(m, (Convolution, GroupedLinear))]
    return [cast(nn.Parameter, layer.weight) for layer in layers]


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
    optimizer: Sgd, factor: Callable[[str, Kind], float], *, velocity_has_lr: bool
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
    optimizer.update_rates()


def full_weights(model: nn.Module, optimizer: Sgd) -> dict[str, Tensor]:
    """The parameters by name, in the type that they are learned in."""
    return {name: optimizer.master(p) for name, p in model.named_parameters()}


def load_masters(optimizer: Sgd, saved: Mapping[str, Tensor]) -> None:
    """Set what is learned in place of rounded weights, which are set apart."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if parameter in optimizer.masters:
                optimizer.masters[parameter].copy_(saved[name])


def velocities(optimizer: Sgd) -> Iterator[tuple[str, Tensor]]:
    """(name of the parameter, its momentum buffer); zeros where it has not moved yet."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            velocity: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
            yield (
                name,
                torch.zeros_like(optimizer.master(parameter)) if velocity is None else velocity,
            )


def load_velocities(optimizer: Sgd, saved: dict[str, Tensor]) -> None:
    """Set the momentum buffers by the names of their parameters."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in saved:
                buffer = torch.empty_like(optimizer.master(parameter)).copy_(saved[name])
                optimizer.state[parameter]["momentum_buffer"] = buffer
