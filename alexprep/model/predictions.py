"""Predictions of a network on a split in a file, so that ensembles need not run it again.

A safetensors file: probabilities float64 (N, K), labels int64 (N,); keys and classes as JSON.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from alexnet.errors import RunError
from pipelines.files import check_writable, write_whole

SUFFIX = ".predictions"


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Mean probabilities over the views (N, K), the right labels (N,) and the images' keys."""

    probabilities: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    views: int
    split: str
    dataset: str
    source: str

    def save(self, path: Path) -> None:
        """Write them whole; ValueError for another suffix: eval knows them by it."""
        _check_name(path)
        about = {
            "keys": self.keys,
            "classes": self.classes,
            "views": self.views,
            "split": self.split,
            "dataset": self.dataset,
            "source": self.source,
        }
        tensors = {"probabilities": self.probabilities.contiguous(), "labels": self.labels}
        write_whole(path, to_bytes(tensors, {"alexprep.predictions": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Predictions that `save` wrote; RunError if they are none or damaged."""
        if not path.is_file():
            raise RunError(f"{path} is not a file. Name predictions that --save-predictions kept.")
        try:
            opened: Any = safe_open(path, framework="pt")
            with opened as file:
                about: Any = json.loads(file.metadata()["alexprep.predictions"])
                probabilities: Tensor = file.get_tensor("probabilities")
                labels: Tensor = file.get_tensor("labels")
            about["classes"] = tuple((wnid, names) for wnid, names in about["classes"])
            about["keys"] = tuple(about["keys"])
            return cls(probabilities=probabilities, labels=labels, **about)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} holds no predictions of alexprep ({error}).") from error

    def check_images(self, keys: tuple[str, ...], where: str) -> None:
        """RunError unless these are of the images with `keys`, in this order; `where` has those."""
        if self.keys != keys:
            raise RunError(
                f"{self.source} predicts {len(self.keys):,} images of "
                f"{self.dataset}/{self.split}, {where} has other ones ({len(keys):,}). "
                "An average wants the same images."
            )


def check_target(path: Path) -> None:
    """Find out before an evaluation that predictions cannot be kept in `path`.

    Raises:
        ValueError: for another suffix.
        OSError: the file cannot be written.
    """
    _check_name(path)
    check_writable(path)


def _check_name(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise ValueError(f"Predictions are kept in files called *{SUFFIX}, got {path.name}.")
