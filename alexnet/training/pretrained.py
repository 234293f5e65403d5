# pyright: reportUnknownVariableType=false
# safetensors types its functions only in part.
"""Weights that this project did not write: files of strangers, other layouts, other networks."""

import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alexnet.errors import RunError
from alexnet.model.spec import ModelConfig, sizes
from alexnet.model.weights import State, initial_state

# torchvision.models.alexnet numbers its modules with the neurons and pools between them.
TORCHVISION = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def read_weights(path: Path) -> State:
    """The named tensors of a safetensors file, or of a PyTorch file without running any of it.

    RunError where the file is missing, damaged, or holds anything but named tensors: a pickle
    that would run code is refused, not executed.
    """
    if not path.is_file():
        raise RunError(f"{path} is not a file. Name a .safetensors or .pth file of weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        raise RunError(
            f"{path} holds no weights that can be read without running code. Have it saved as "
            "safetensors by whom you have it from."
        ) from error
    except RuntimeError as error:
        raise RunError(f"{path} is damaged. Get it again.") from error
    return _named_tensors(raw, path)


def _named_tensors(raw: Any, path: Path) -> State:
    if isinstance(raw, Mapping):
        named = cast("Mapping[Any, Any]", raw)
        if all(isinstance(tensor, Tensor) for tensor in named.values()):
            return {str(name): tensor for name, tensor in named.items()}
    raise RunError(
        f"{path} holds something else than named tensors. Save a model's state_dict() alone."
    )


def from_torchvision(state: Mapping[str, Tensor]) -> State:
    """The state of torchvision's alexnet under the names of the network `torchvision`.

    Its weights expect inputs divided by the sd of 0.229, 0.224, 0.225 of 255, which that
    network's `input_sd` does. RunError lists the names that are not torchvision's.
    """
    odd = sorted(name for name in state if name.rpartition(".")[0] not in TORCHVISION)
    if odd or not state:
        raise RunError(f"Not the layout of torchvision's alexnet: it has no {_some(odd)}.")
    return {
        f"{TORCHVISION[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor
        for name, tensor in state.items()
    }


def checked(state: State, config: ModelConfig) -> State:
    """The state itself where it is that of the config's network; RunError lists what is not."""
    expected = _shapes(config)
    wrong = [
        f"{name} missing"
        if name not in state
        else f"{name} {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    wrong += [f"{name} unknown" for name in state if name not in expected]
    if wrong:
        raise RunError(f"The weights are of another network: {_some(wrong)}.")
    return state


def carried_over(
    state: State, config: ModelConfig, *, seed: int, fresh: Collection[str] = ("fc8",)
) -> State:
    """A start for another network: every layer it shares with `state` copied, the rest fresh.

    The starred rows of the paper: the six-convolution network, trained on a larger set of
    classes, goes on with layers fc8 fresh; it began itself from the five convolutions, with
    conv6, fc6, fc7 and fc8 fresh.

    Args:
        state: of the one-device form (`to_grouped` makes it of columns).
        config: the network to start.
        seed: of the layers that start fresh.
        fresh: layers that are not copied; those that `state` does not have need not be named.

    Raises:
        RunError: lists the layers whose shapes differ and that are not in `fresh`.
    """
    start = initial_state(config, seed=seed)
    copied = {
        name: state[name]
        for name in start
        if name in state and name.rpartition(".")[0] not in fresh
    }
    wrong = [
        f"{name} {tuple(tensor.shape)}, not {tuple(start[name].shape)}"
        for name, tensor in copied.items()
        if tensor.shape != start[name].shape
    ]
    if wrong:
        raise RunError(
            f"These layers differ and cannot be copied: {_some(wrong)}. Start them fresh."
        )
    return {**start, **copied}


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for size in sizes(config):
        shapes[f"{size.name}.weight"] = size.weight
        shapes[f"{size.name}.bias"] = (size.biases,)
    return shapes


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more
