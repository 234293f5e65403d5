# pyright: reportUnknownVariableType=false
# safetensors types its functions only in part.
"""Weights to start from: a checkpoint's, or a file that another program wrote."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from alexnet.errors import RunError
from alexnet.model.weights import State
from alexnet.training import checkpoint

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


def first_weights(path: Path) -> State:
    """Weights by this project's names: of a checkpoint, or of a file of named tensors.

    The latter is a safetensors file or a PyTorch file (.pth, of which no code is run); the names of
    torchvision's alexnet are translated, other names stay. RunError as `read_weights`.
    """
    if path.suffix == ".safetensors" and _is_checkpoint(path):
        return checkpoint.load(path).parts["model"]
    state = read_weights(path)
    if any(name.rpartition(".")[0] in TORCHVISION for name in state):
        return from_torchvision(state)
    return state


def _is_checkpoint(path: Path) -> bool:
    try:
        opened: Any = safe_open(path, framework="pt")
        with opened as file:
            return "alexprep" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True  # which `checkpoint.load` refuses with its reasons


def read_weights(path: Path) -> State:
    """The named tensors of a safetensors file, or of a PyTorch file without running any of it.

    RunError if the file is missing, damaged, or holds anything but named tensors: a pickle that
    would run code is refused, not executed.
    """
    if not path.is_file():
        raise RunError(f"{path} is not a file. Name a .safetensors or .pth file of weights.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
        raise RunError(
            f"{path} holds no weights that can be read without running code. Ask its author for a "
            ".safetensors file."
        ) from error
    except Exception as error:  # a changed pickle leads torch to errors of any kind
        if isinstance(error, OSError) and error.filename is not None:  # may not be read
            raise
        raise RunError(f"{path} is damaged. Download it again.") from error
    if isinstance(raw, Mapping):
        named = cast("Mapping[Any, Any]", raw)
        if all(isinstance(tensor, Tensor) for tensor in named.values()):
            return {str(name): tensor for name, tensor in named.items()}
    raise RunError(
        f"{path} holds something other than named tensors. Save a model's state_dict() alone."
    )


def from_torchvision(state: Mapping[str, Tensor]) -> State:
    """The state of torchvision's alexnet under the names of the network `torchvision`.

    Its weights expect inputs divided by the sd of 0.229, 0.224, 0.225 of 255, which that
    network's `input_sd` does. RunError lists the names that are not torchvision's.
    """
    unknown = sorted(name for name in state if name.rpartition(".")[0] not in TORCHVISION)
    if unknown or not state:
        names = "; ".join(unknown[:8])
        suffix = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise RunError(f"Not the layout of torchvision's alexnet: it has no {names}{suffix}.")
    return {
        f"{TORCHVISION[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor
        for name, tensor in state.items()
    }
