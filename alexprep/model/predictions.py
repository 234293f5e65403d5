"""Predictions of a network on a split in a file, so that ensembles need not run it again.

A safetensors file: probabilities float64 (N, K), labels int64 (N,); the metadata entry
"alexprep.predictions" is JSON: keys, classes, views, split, dataset, source, and the CRC-32 of all
of these and the tensors' bytes. Files without a CRC, which older versions wrote, are read too.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from alexnet.errors import RunError
from pipelines.atomic import check_writable, write_whole

SUFFIX = ".predictions"
ENTRY = "alexprep.predictions"


class PredictionsMeta(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON in a file of predictions; a changed name of a field makes it unknown."""

    keys: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    views: int
    split: str
    dataset: str
    source: str
    crc32: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Mean probabilities over the views (N, K), the labels (N,) and the images' keys."""

    probabilities: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    classes: tuple[tuple[str, str], ...]
    views: int
    split: str
    dataset: str
    source: str

    def save(self, path: Path) -> None:
        """Write the file atomically; ValueError for another suffix: eval knows them by it."""
        _check_suffix(path)
        meta = {name: getattr(self, name) for name in PredictionsMeta.__struct_fields__[:-1]}
        tensors = {"probabilities": self.probabilities.contiguous(), "labels": self.labels}
        text = json.dumps({**meta, "crc32": _crc(meta, tensors)})
        write_whole(path, to_bytes(tensors, {ENTRY: text}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Predictions that `save` wrote; RunError if they are none or damaged."""
        if not path.is_file():
            raise RunError(f"{path} is not a file. Name a file that --save-predictions wrote.")
        try:
            opened: Any = safe_open(path, framework="pt")
            with opened as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {
                    name: file.get_tensor(name) for name in ("probabilities", "labels")
                }
            meta = msgspec.json.decode(metadata.get(ENTRY, ""), type=PredictionsMeta)
            _check(meta, tensors)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} is not a predictions file of alexprep ({error}).") from error
        fields = msgspec.structs.asdict(meta)
        del fields["crc32"]
        return cls(**tensors, **fields)

    def select(self, rows: Sequence[int]) -> Self:
        """The predictions in these rows, in this order."""
        index = torch.tensor(rows, dtype=torch.int64)
        return replace(
            self,
            probabilities=self.probabilities[index],
            labels=self.labels[index],
            keys=tuple(self.keys[row] for row in rows),
        )

    def check_images(self, keys: tuple[str, ...], where: str) -> None:
        """RunError unless these are of the images with `keys`, in this order; `where` has those."""
        if self.keys != keys:
            raise RunError(
                f"{self.source} predicts {len(self.keys):,} images of "
                f"{self.dataset}/{self.split}, {where} has other ones ({len(keys):,}). "
                "An average needs predictions of the same images."
            )


def check_output(path: Path) -> None:
    """Check before an evaluation that its predictions can be saved to `path`.

    Raises:
        ValueError: for another suffix.
        OSError: the file cannot be written.
    """
    _check_suffix(path)
    check_writable(path)


def _check_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise ValueError(f"Files of predictions are called *{SUFFIX}, got {path.name}.")


def _check(meta: PredictionsMeta, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless shapes and labels fit each other, and the CRC the contents."""
    probabilities, labels = tensors["probabilities"], tensors["labels"]
    images, classes = len(meta.keys), len(meta.classes)
    if probabilities.shape != (images, classes) or probabilities.dtype != torch.float64:
        raise ValueError(
            f"probabilities are {probabilities.dtype} {tuple(probabilities.shape)}, "
            f"not float64 {(images, classes)}"
        )
    if labels.shape != (images,) or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}, not int64 {(images,)}")
    if images == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels are not in 0..{classes - 1}")
    if not probabilities.isfinite().all():
        raise ValueError("probabilities are not finite")
    if meta.views < 1:
        raise ValueError(f"views are {meta.views}")
    fields = msgspec.structs.asdict(meta)
    expected = fields.pop("crc32")
    if expected is not None and _crc(fields, tensors) != expected:
        raise ValueError("its contents have changed since it was written")


def _crc(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
