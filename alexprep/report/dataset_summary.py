"""Numbers and pixels of a data set's report: source sizes, class counts, augmented images.

Every shard mixes the classes, so the first samples of some shards are a fair sample of the split.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexprep.errors import PrepareError
from pipelines.augment import AugmentSpec
from pipelines.config import LoaderConfig
from pipelines.format import Count, Manifest, Sample, Split, parse_index
from pipelines.imagestats import ImageStats
from pipelines.loader import Loader, open_loader
from pipelines.order import global_order

# Samples whose JSON is read: takes half a second, and no share is off by more than a point.
SURVEYED = 20_000
MAX_METADATA = 1 << 20  # bytes of a sample's JSON, which has some hundred
EXAMPLES = 6  # images
EPOCHS = 6  # in which they are shown


@dataclass(kw_only=True, slots=True)
class Survey:
    """Sizes of some samples of a split.

    sizes: (width, height) of the source -> images; jpg_bytes: size of each stored JPEG, (N,).
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
    shards = shards[:: max(1, len(shards) // 64)]
    count = -(-SURVEYED // max(len(shards), 1))
    result = Survey()
    for shard in shards:
        index = root / shard.index
        with (root / shard.name).open("rb") as file:
            for sample in parse_index(index.read_bytes(), index)[:count]:
                result.sizes[_source_size(file, sample)] += 1
                result.jpg_bytes.append(sample.jpg.size)
    return result


def _source_size(file: BufferedReader, sample: Sample) -> tuple[int, int]:
    file.seek(sample.json.offset)
    try:
        size = msgspec.json.decode(file.read(min(sample.json.size, MAX_METADATA)), type=_SourceSize)
        return size.width, size.height
    except (ValueError, RecursionError) as error:
        raise PrepareError(
            f"{file.name}, key {sample.key}, offset {sample.json.offset}: the JSON has no source "
            f"size ({error}). Run `alexprep verify` to list all damage."
        ) from error


class _SourceSize(msgspec.Struct):
    width: Count
    height: Count


class SplitCounts(NamedTuple):
    """Size of a split, and the fewest, median and most images of a class."""

    images: int
    shards: int
    bytes: int
    fewest: int
    median: int
    most: int


def split_counts(split: Split) -> SplitCounts:
    """Count a split of at least one class."""
    counts = np.array(split.counts)
    spread = (int(counts.min()), int(np.median(counts)), int(counts.max()))
    return SplitCounts(split.samples, len(split.shards), split.bytes, *spread)


class Augmented(NamedTuple):
    """A training image as stored, and as the first epochs show it to the network."""

    label: int
    stored_HWC: NDArray[np.float64]  # noqa: N815 - the shape belongs to the name
    drawn_NHWC: NDArray[np.float64]  # noqa: N815


def augmented_images(
    root: Path, manifest: Manifest, split: str, stats: ImageStats | None
) -> list[Augmented]:
    """EXAMPLES images of different classes, as stored and as EPOCHS epochs of seed 0 augment them.

    The mean is added back, so that the network's input can be looked at. Without statistics the
    images are cropped and mirrored, but their colours are not shifted.
    """
    size = manifest.size
    # Of whole images the central squares, which the statistics are of.
    bare = AugmentSpec(source=size, square=True, mean="none", lighting=0, divide=1, crop=size)
    plain = replace(bare, mirror=False)
    spec = AugmentSpec(source=size, square=True, crop=size * 7 // 8)
    mean_HWC = np.zeros((spec.crop, spec.crop, 3))
    if stats is None:
        spec = replace(bare, crop=spec.crop)
    else:
        edge = (size - spec.crop) // 2
        mean_HWC = stats.mean_image_HWC[edge : edge + spec.crop, edge : edge + spec.crop]
    config = LoaderConfig(batch=1, backend="torch", threads=1, readers=1, prefetch=1)
    images: list[Augmented] = []
    with (
        open_loader(root, split, config, plain, train=True) as stored,
        open_loader(root, split, config, spec, train=True, stats=stats) as augmented,
    ):
        for position, label in list(_first_of_classes(stored)):
            # Every epoch has its own order: follow the image through them by its index.
            index = int(global_order(stored.samples, 0, 0)[position])
            drawn = [
                _image(augmented, epoch, _position(stored.samples, epoch, index)) + mean_HWC
                for epoch in range(EPOCHS)
            ]
            images.append(Augmented(label, _image(stored, 0, position), np.stack(drawn)))
    return images


def _first_of_classes(loader: Loader) -> Iterator[tuple[int, int]]:
    """(position in the first epoch, label) of the first images of different classes."""
    classes: set[int] = set()
    for position, (_, labels) in enumerate(loader):
        label = int(labels[0])
        if label not in classes:
            classes.add(label)
            yield position, label
        if len(classes) == min(EXAMPLES, len(loader.classes)):
            return


def _position(samples: int, epoch: int, index: int) -> int:
    """Position of the split's image `index` in the order of an epoch."""
    return int(np.flatnonzero(global_order(samples, 0, epoch) == index)[0])


def _image(loader: Loader, epoch: int, position: int) -> NDArray[np.float64]:
    """The image at a position of an epoch, (H, W, C); the loader must have a batch size of 1."""
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "step": position})
    images, _ = next(iter(loader))
    return images[0].permute(1, 2, 0).double().numpy()
