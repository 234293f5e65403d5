"""The networks of 2012 as data: one row a weight layer, and the sizes and counts that follow.

Letters in names: N images, C channels, H rows, W columns of pixels, K classes.
Nothing here imports torch: recipes and `--help` read these tables.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

Sees = Literal["own", "all"]
# "spatial" is the released code's second norm of layer 2, within a channel; "act" the neuron.
Stage = Literal["act", "lrn", "spatial", "pool", "dropout"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conv:
    """A convolution of all columns together, and what its output goes through, in order."""

    name: str
    out: int  # channels of all columns together
    kernel: int
    stride: int = 1
    pad: int = 0
    sees: Sees = "own"  # the maps of its own column, or those of all columns
    then: tuple[Stage, ...] = ("act",)
    sd: float | None = 0.01  # of the normal the weights are drawn from; None: PyTorch's default
    bias: float | None = 0.0  # what every bias starts at; None: PyTorch's default


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """A fully connected layer of all columns together, and what follows it, in order.

    The last one, which gives the logits, lives on the first column alone, as it did in 2012.
    """

    name: str
    out: int  # units of all columns together
    sees: Sees = "all"
    then: tuple[Stage, ...] = ("act", "dropout")
    sd: float | None = 0.01
    bias: float | None = 1.0


Layer = Conv | Dense
MAX_PARAMETERS = 10**10  # 160 times code2012: more is a slip of the keyboard


class Lrn(NamedTuple):
    """The constants of a norm y = x / (k + alpha * mean of squares) ** beta.

    The mean is over `size` neighbouring channels or, for the spatial norm, size x size places; it
    divides by the full count at the edges too.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Everything that decides the function a network computes and how its weights start.

    Images are float NCHW in grey levels (0..255) minus their mean; `input_sd` divides them.
    """

    layers: tuple[Layer, ...]
    columns: int = 2
    crop: int = 224  # pixels a side of the images the network takes
    # Zeros on the right and the bottom. cuda-convnet's conv1 has 1 + ceil((224 - 11) / 4) = 55
    # outputs a side, which amounts to three rows and columns of zeros there.
    pad_end: int = 3
    input_sd: tuple[float, float, float] = (1.0, 1.0, 1.0)
    act: Literal["relu", "tanh"] = "relu"
    # Sizes are rounded up, as cuda-convnet does: it matters where the stride does not fit.
    pool_size: int = 3
    pool_stride: int = 2
    lrn_size: int = 5
    # Divided by lrn_size, as cuda-convnet and torch do; the paper's formula read literally has
    # 1e-4 on the plain sum, that is lrn_alpha = 5e-4.
    lrn_alpha: float = 1e-4
    lrn_beta: float = 0.75
    lrn_k: float = 2.0
    lrn_across: Sees = "own"  # 2012: a column's own maps; Caffe: the maps of both columns
    spatial_size: int = 5
    spatial_alpha: float = 1e-3  # divided by spatial_size squared
    spatial_beta: float = 0.75
    spatial_k: float = 1.0
    dropout: float = 0.5  # probability that a unit is silent
    # "mask" (2012): masked in training, times 1 - dropout in use. "inverted" (PyTorch): divided
    # by 1 - dropout in training: later layers then train on twice the signal.
    dropout_kind: Literal["mask", "inverted"] = "mask"

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_rows(self)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"ModelConfig.dropout must be in [0, 1), got {self.dropout}.")
        if self.lrn_size % 2 == 0:
            raise ValueError(f"ModelConfig.lrn_size must be odd, got {self.lrn_size}.")
        for size in sizes(self):
            if size.side < 1:
                raise ValueError(
                    f"ModelConfig.crop {self.crop} is too small: no pixels are left at "
                    f"{size.name}. Use a larger crop, or a network made for this one (smoke)."
                )
        if parameter_count(self) > MAX_PARAMETERS:
            raise ValueError(
                f"ModelConfig.layers have {parameter_count(self):,} parameters, at most "
                f"{MAX_PARAMETERS:,} are allowed."
            )

    @property
    def classes(self) -> int:
        return self.layers[-1].out

    @property
    def lrn(self) -> Lrn:
        return Lrn(self.lrn_size, self.lrn_alpha, self.lrn_beta, self.lrn_k)

    @property
    def spatial(self) -> Lrn:
        return Lrn(self.spatial_size, self.spatial_alpha, self.spatial_beta, self.spatial_k)


def _check_numbers(config: ModelConfig) -> None:
    for name in ("columns", "crop", "pool_size", "pool_stride", "lrn_size", "spatial_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"ModelConfig.{name} must be at least 1, got {getattr(config, name)}.")
    if config.pad_end < 0 or not all(0 < sd < math.inf for sd in config.input_sd):
        raise ValueError(
            "ModelConfig expects pad_end >= 0 and input_sd > 0, "
            f"got pad_end={config.pad_end} and input_sd={config.input_sd}."
        )
    for name, norm in (("lrn", config.lrn), ("spatial", config.spatial)):
        # With k at 0 the norm of a zero would be 0 / 0.
        signs = norm.alpha >= 0 and norm.beta >= 0 and norm.k > 0
        if not (signs and math.isfinite(norm.alpha + norm.beta + norm.k)):
            raise ValueError(
                f"ModelConfig expects {name}_alpha and {name}_beta >= 0 and {name}_k > 0, got "
                f"{norm.alpha}, {norm.beta} and {norm.k}."
            )
    _check_layers(config.layers)


def _check_layers(layers: tuple[Layer, ...]) -> None:
    for row in layers:
        least = {"out": 1} | ({"kernel": 1, "stride": 1, "pad": 0} if isinstance(row, Conv) else {})
        for name, bound in least.items():
            if getattr(row, name) < bound:
                raise ValueError(
                    f"{row.name}.{name} must be at least {bound}, got {getattr(row, name)}."
                )
        if row.sd is not None and not 0 <= row.sd < math.inf:
            raise ValueError(f"{row.name}.sd must be at least 0, got {row.sd}.")


def _check_rows(config: ModelConfig) -> None:
    names = [row.name for row in config.layers]
    if len(names) < 2 or not isinstance(config.layers[-1], Dense):
        raise ValueError(f"ModelConfig.layers must end with a Dense layer, got {names}.")
    if len(set(names)) != len(names):
        raise ValueError(f"ModelConfig.layers must have different names, got {names}.")
    kinds = [isinstance(row, Dense) for row in config.layers]
    if kinds != sorted(kinds):
        raise ValueError(f"ModelConfig.layers has a Conv after a Dense layer: {names}.")
    if config.layers[-1].sees != "all":
        raise ValueError(f"{names[-1]} lives on the first column and must see all, not its own.")
    for row in config.layers:
        wrong = set(row.then) - set(get_args(Stage))
        if wrong:
            raise ValueError(f"{row.name}.then knows {get_args(Stage)}, got {sorted(wrong)}.")
        if row.out % config.columns and row is not config.layers[-1]:
            raise ValueError(f"{row.name}.out {row.out} does not divide by {config.columns}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What one row amounts to in a config: all columns together, for one image."""

    name: str
    groups: int  # columns that one output does not mix, 1 where it sees them all
    conv_side: int  # of the maps before pooling; 1 for Dense
    side: int  # of the maps that the next layer sees
    weight: tuple[int, ...]  # shape of the weight in the grouped form
    biases: int
    macs: int  # multiplications and additions of the forward pass

    neurons: int  # units before pooling, as the paper counts them

    @property
    def parameters(self) -> int:
        return math.prod(self.weight) + self.biases


def sizes(config: ModelConfig) -> Iterator[Size]:
    """One Size a row, from images to logits."""
    channels, side, split = 3, config.crop + config.pad_end, 1
    for row in config.layers:
        groups = split if row.sees == "own" else 1
        if isinstance(row, Conv):
            conv_side = (side + 2 * row.pad - row.kernel) // row.stride + 1
            weight = (row.out, channels // groups, row.kernel, row.kernel)
            side = (
                pooled(conv_side, config.pool_size, config.pool_stride)
                if "pool" in row.then
                else conv_side
            )
        else:
            weight = (row.out, channels * side * side // groups)
            conv_side, side = 1, 1
        neurons = row.out * conv_side * conv_side
        yield Size(
            name=row.name,
            groups=groups,
            conv_side=conv_side,
            side=side,
            weight=weight,
            biases=row.out,
            macs=neurons * math.prod(weight[1:]),
            neurons=neurons,
        )
        channels, split = row.out, config.columns


Shapes = dict[str, tuple[int, ...]]


def state_shapes(config: ModelConfig) -> Shapes:
    """Shape of every parameter of the one-device form, in order."""
    shapes: Shapes = {}
    for size in sizes(config):
        shapes[f"{size.name}.weight"] = size.weight
        shapes[f"{size.name}.bias"] = (size.biases,)
    return shapes


def pooled(side: int, size: int, stride: int) -> int:
    """Side of a map after pooling; no window starts beyond the map."""
    steps = -(-(side - size) // stride)
    if steps * stride >= side:
        steps -= 1
    return max(steps + 1, 0)


def parameter_count(config: ModelConfig) -> int:
    """Weights and biases of all layers."""
    return sum(size.parameters for size in sizes(config))


def with_rows(config: ModelConfig, **changes: Mapping[str, Any]) -> ModelConfig:
    """The config with fields of some rows changed, as in conv3={"sd": 0.01}."""
    unknown = set(changes) - {row.name for row in config.layers}
    if unknown:
        raise ValueError(f"no layer is called {', '.join(sorted(unknown))}.")
    rows = tuple(replace(row, **changes.get(row.name, {})) for row in config.layers)
    return replace(config, layers=rows)
