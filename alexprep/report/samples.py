"""What the page of a data set takes from its shards: sizes of the sources, and pictures.

Every shard is class-mixed, so the head of each of some shards is a fair sample of the split.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from pipelines.augment import AugmentSpec
from pipelines.config import LoaderConfig
from pipelines.format import Manifest, Sample, Shard, parse_index
from pipelines.imagestats import ImageStats
from pipelines.loader import Loader, open_loader
from pipelines.order import global_order

# Samples whose JSON is read: half a second, and no share is off by more than a point.
SURVEYED = 20_000
SHOWN = 6
DRAWS = 6


@dataclass(kw_only=True, slots=True)
class Survey:
    """Of some samples of a split: how large their sources and their stored JPEGs are.

    sizes: (width, height) of the source -> images; jpg_bytes: (N,).
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    jpg_bytes: list[int] = field(default_factory=list[int])

    @property
    def sides(self) -> NDArray[np.int64]:
        """Width and height of the source of each image, (N, 2)."""
        return np.repeat(list(self.sizes), list(self.sizes.values()), axis=0)


def survey(root: Path, manifest: Manifest, split: str) -> Survey:
    """Read the JSON of at most SURVEYED samples, the same number from each of some shards."""
    shards = manifest.split(split, root).shards
    some = shards[:: max(1, len(shards) // 64)]
    each = -(-SURVEYED // max(len(some), 1))
    found = Survey()
    for shard in some:
        _survey_shard(root, shard, each, found)
    return found


def _survey_shard(root: Path, shard: Shard, most: int, found: Survey) -> None:
    index = root / shard.index
    samples = parse_index(index.read_text(), index)[:most]
    descriptor = os.open(root / shard.name, os.O_RDONLY)
    try:
        for sample in samples:
            about = _about(descriptor, sample, root / shard.name)
            found.sizes[about] += 1
            found.jpg_bytes.append(sample.jpg.size)
    finally:
        os.close(descriptor)


def _about(descriptor: int, sample: Sample, path: Path) -> tuple[int, int]:
    data = os.pread(descriptor, sample.json.size, sample.json.offset)
    try:
        raw = json.loads(data)
        return int(raw["width"]), int(raw["height"])
    except (ValueError, KeyError, TypeError) as error:
        raise PrepareError(
            f"{path}, key {sample.key}, offset {sample.json.offset}: its JSON says nothing of the "
            f"source ({error!r}). Find all damage with `alexprep verify`."
        ) from error


class Shown(NamedTuple):
    """One training image as it is stored, and as the first epochs show it to the network."""

    label: int
    stored_HWC: NDArray[np.float64]  # noqa: N815 - the shape belongs to the name
    drawn_NHWC: NDArray[np.float64]  # noqa: N815


def training_images(
    root: Path, manifest: Manifest, split: str, stats: ImageStats | None
) -> list[Shown]:
    """SHOWN images of different classes, each as DRAWS epochs of seed 0 augment it.

    The mean is added again, so that the network's input can be looked at. Without statistics the
    images are cropped and mirrored, not lit.
    """
    size = manifest.size
    bare = AugmentSpec(source=size, crop=size, mirror=False, mean="none", lighting=0, divide=1)
    spec = AugmentSpec(source=size, crop=size * 7 // 8)
    mean_HWC = np.zeros((spec.crop, spec.crop, 3))
    if stats is None:
        spec = AugmentSpec(source=size, crop=spec.crop, mean="none", lighting=0, divide=1)
    else:
        edge = (size - spec.crop) // 2
        mean_HWC = stats.mean_image_HWC[edge : edge + spec.crop, edge : edge + spec.crop]
    one = LoaderConfig(batch=1, backend="torch", threads=1, readers=1, prefetch=1)
    shown: list[Shown] = []
    with (
        open_loader(root, split, one, bare, train=True) as stored,
        open_loader(root, split, one, spec, train=True, stats=stats) as augmented,
    ):
        for position, label in list(_first_of_classes(stored)):
            place = int(global_order(stored.samples, 0, 0)[position])
            drawn = [
                _image_at(augmented, epoch, _position(stored.samples, epoch, place)) + mean_HWC
                for epoch in range(DRAWS)
            ]
            shown.append(Shown(label, _image_at(stored, 0, position), np.stack(drawn)))
    return shown


def _first_of_classes(loader: Loader) -> Iterator[tuple[int, int]]:
    """(position in the first epoch, label) of the first images that are of different classes."""
    seen: list[int] = []
    most = min(SHOWN, len(loader.classes))
    for position, (_, labels) in enumerate(loader):
        label = int(labels[0])
        if label not in seen:
            seen.append(label)
            yield position, label
        if len(seen) == most:
            return


def _position(samples: int, epoch: int, place: int) -> int:
    """Where in the order of an epoch the image at `place` of the split stands."""
    return int(np.flatnonzero(global_order(samples, 0, epoch) == place)[0])


def _image_at(loader: Loader, epoch: int, position: int) -> NDArray[np.float64]:
    """The image that training sees there, (H, W, C); the loader gives out one at a time."""
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "step": position})
    images, _ = next(iter(loader))
    return images[0].permute(1, 2, 0).double().numpy()
