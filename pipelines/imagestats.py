"""The measured colours of a split on disk: mean image, covariance and principal colour axes.

    ROOT/stats.npz     float64 arrays under the names of the fields of `ImageStats`
    ROOT/mean.png      the mean image, rounded, to look at
    ROOT/stats.json    written last: the numbers with the unit in the key, the sha256 of stats.npz
                       and of every shard the statistics were taken from

All values are RGB in 0..255 as the decoder gives them; nothing is divided by 255. A split other
than train has its name in its file names (stats-validation.json), so that it replaces nothing.
The three files appear whole: stats.json names the stats.npz it belongs to, so a run that ended
between two renames leaves statistics that are refused, never a wrong pair.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.atomic import write_whole
from pipelines.errors import DataError
from pipelines.format import Count, Manifest, decode_object

Floats = NDArray[np.float64]

VERSION = 1
SHAPES = {  # None: the height and width of the images
    "mean_image_HWC": None,
    "mean": (3,),
    "sd": (3,),
    "covariance": (3, 3),
    "eigenvalues": (3,),
    "stdevs": (3,),
    "eigenvectors": (3, 3),
}
UNITS = {
    "mean": "mean_0_255",
    "sd": "sd_0_255",
    "covariance": "covariance_0_255_squared",
    "eigenvalues": "eigenvalues_0_255_squared",
    "stdevs": "stdevs_0_255",
    "eigenvectors": "eigenvectors_RGB_in_columns",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageStats:
    """Statistics over every pixel of a split; RGB, 0..255 units, float64.

    mean_image_HWC: mean of each pixel over the images, (height, width, 3)
    mean, sd: of each channel over all pixels, (3,); sd divides by the number of pixels
    covariance: of the channels over all pixels, (3, 3), divided by the number of pixels
    eigenvalues: of the covariance, largest first, (3,); in squared grey levels
    stdevs: their square roots, (3,); in grey levels, what PCA lighting multiplies
    eigenvectors: (3, 3), COLUMN i is the unit axis of eigenvalue i; it points where its first
        component that is not zero is positive (red, in photographs)
    shards: name under ROOT -> sha256 of the tars the statistics were taken from
    """

    split: str
    images: int
    height: int
    width: int
    mean_image_HWC: Floats  # noqa: N815 - the shape belongs to the name
    mean: Floats
    sd: Floats
    covariance: Floats
    eigenvalues: Floats
    stdevs: Floats
    eigenvectors: Floats
    shards: Mapping[str, str]

    @classmethod
    def load(
        cls, root: Path, manifest: Manifest, split: str = "train", folder: Path | None = None
    ) -> Self:
        """Statistics of `split`, in `folder` if not next to the manifest in `root`.

        DataError if missing, damaged or taken from other shards.
        """
        remedy = _renew(root, split, folder)
        paths = stats_paths(folder or root, split)
        path = paths.json
        raw = _read_json(path, remedy)
        expected = {shard.name: shard.sha256 for shard in manifest.split(split, root).shards}
        if raw.get("shards") != expected:
            raise DataError(f"{path} was taken from other shards than those in {root}. {remedy}")
        try:
            head = msgspec.convert(raw, _Head)
            stats = cls(
                split=split,
                images=head.images,
                height=head.height,
                width=head.width,
                shards=head.shards,
                **_read_arrays(paths.npz, head, remedy),
            )
            if any(raw.get(name) != value for name, value in stats.to_dict().items()):
                raise ValueError(f"it has other numbers than {paths.npz.name}")
            return stats
        except (KeyError, TypeError, ValueError, BadZipFile, EOFError) as error:
            raise DataError(f"{path} is damaged ({error}). {remedy}") from error

    def save(self, root: Path) -> None:
        """Write stats.npz, mean.png and, last, stats.json next to the manifest in `root`."""
        paths = stats_paths(root, self.split)
        npz, png = io.BytesIO(), io.BytesIO()
        np.savez(npz, **{name: getattr(self, name) for name in SHAPES})
        mean = np.rint(self.mean_image_HWC).astype(np.uint8)
        # .02 s to import: those that only read statistics or look for them need it not.
        from PIL import Image  # noqa: PLC0415

        Image.fromarray(mean).save(png, "PNG")
        write_whole(paths.npz, npz.getvalue())
        write_whole(paths.png, png.getvalue())
        sha256 = hashlib.sha256(npz.getvalue()).hexdigest()
        # Floats are written so that reading gives the same bits.
        text = json.dumps({"version": VERSION, "npz_sha256": sha256, **self.to_dict()}, indent=1)
        write_whole(paths.json, f"{text}\n".encode())

    def to_dict(self) -> dict[str, Any]:
        """All but the mean image as JSON values, the unit in the key."""
        numbers = {key: getattr(self, name).tolist() for name, key in UNITS.items()}
        head = {
            "split": self.split,
            "images": self.images,
            "height": self.height,
            "width": self.width,
        }
        return {**head, **numbers, "shards": dict(self.shards)}


@dataclass(frozen=True, slots=True)
class StatsPaths:
    """Where the statistics of one split lie."""

    json: Path
    npz: Path
    png: Path


def stats_paths(root: Path, split: str) -> StatsPaths:
    """File names of a split's statistics; those of train have no suffix."""
    suffix = "" if split == "train" else f"-{split}"
    return StatsPaths(
        root / f"stats{suffix}.json", root / f"stats{suffix}.npz", root / f"mean{suffix}.png"
    )


def _renew(root: Path, split: str, folder: Path | None = None) -> str:
    option = "" if split == "train" else f" --split {split}"
    target = "" if folder is None else f" --out {folder}"
    return f"Run `alexprep stats {root}{option}{target}`."


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}. {remedy}")
    fields = decode_object(path.read_bytes(), str(path), remedy)
    if fields.get("version") != VERSION:
        raise DataError(
            f"{path} has version {fields.get('version')}; this alexprep reads {VERSION}. {remedy}"
        )
    return fields


class _Head(msgspec.Struct):
    """What is read of stats.json; the numbers come from stats.npz."""

    images: Count
    height: Count
    width: Count
    shards: dict[str, str]
    npz_sha256: str


def _read_arrays(path: Path, head: _Head, remedy: str) -> dict[str, Floats]:
    if not path.is_file():
        raise DataError(f"{path.parent} has no {path.name}. {remedy}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != head.npz_sha256:
        raise ValueError(f"{path.name} is not the file it was written with")
    arrays: dict[str, Floats] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for name, shape in SHAPES.items():
            array: Floats = file[name]
            expected = shape or (head.height, head.width, 3)
            if array.shape != expected or array.dtype != np.float64:
                raise ValueError(
                    f"{name} in {path.name} is {array.dtype} {array.shape}, not float64 {expected}"
                )
            arrays[name] = array
    return arrays
