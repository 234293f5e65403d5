"""Which sample goes into which shard: a function of (source, config), decided before reading."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from alexprep.dataset.codec import CODEC
from alexprep.errors import PrepareError
from alexprep.sources.listing import TRAIN, Samples, Source
from pipelines.format import Shard, cls_width, format_version, shard_name

SMALLEST_SHARD = 4_000_000
# 1,281,167 = 1024 x 1251 + 143; validation shards come in divisors of 80, so that as many readers
# as divide it get the same work (50,000 = 80 x 625).
TRAIN_SHARDS = tuple(2**power for power in range(11))
OTHER_SHARDS = (1, 2, 4, 5, 8, 10, 16, 20, 40, 80)


OnDuplicate = Literal["keep", "drop-train", "fail"]
# Fields that manifests of the first version do not have.
ADDED = frozenset({"validation", "classes", "image_column", "label_column"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """All that the bytes of a data set depend on, beside its source and the codec.

    `shards` is a number for every split, or one for each; None leaves it to the number of samples.
    EXIF orientation is dropped unless `apply_orientation`: the images of everybody's ImageNet so
    far lie as they were stored. `validation` moves so many training images, "10%" or a number, to a
    split of that name (see `splits.held_out`). `classes` keeps these alone, labelled in this order.
    `image_column` and `label_column` are those of parquet files. `on_duplicate` "drop-train" leaves
    out training images that another split or an earlier training image has, "fail" refuses a source
    that has an image twice; both read the source once more, to hash it. `keep_aspect`
    stores images whole, `size` pixels on their shorter side, in place of their central squares.
    """

    size: int = 256
    quality: int = 95
    shards: int | Mapping[str, int] | None = None
    seed: int = 0
    apply_orientation: bool = False
    validation: str | int | None = None
    classes: Sequence[str] | None = None
    image_column: str | None = None
    label_column: str | None = None
    on_duplicate: OnDuplicate = "keep"
    keep_aspect: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ValueError(f"ShardConfig.size must be in 1..4096 pixels, got {self.size}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"ShardConfig.quality must be in 1..100, got {self.quality}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"ShardConfig.seed must be in 0..2**63 - 1, got {self.seed}.")
        numbers = self.shards.values() if isinstance(self.shards, Mapping) else [self.shards]
        if any(number is not None and not 1 <= number <= 999_999 for number in numbers):
            raise ValueError(f"ShardConfig.shards must be in 1..999,999, got {self.shards}.")
        if self.on_duplicate not in get_args(OnDuplicate):
            raise ValueError(
                f"ShardConfig.on_duplicate must be keep, drop-train or fail, got "
                f"{self.on_duplicate!r}."
            )
        if self.validation is not None:
            held_out_share(self.validation)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            double = Counter(self.classes).most_common(1)[0][0]
            raise ValueError(f"ShardConfig.classes names {double!r} twice.")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as the manifest keeps it: without what is as it always was."""
        fields = asdict(self)
        if self.on_duplicate != "drop-train":  # the others write the same bytes
            del fields["on_duplicate"]
        if not self.keep_aspect:
            del fields["keep_aspect"]
        if self.classes is not None:
            fields["classes"] = list(self.classes)
        return {k: v for k, v in fields.items() if v is not None or k not in ADDED}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """One shard to write: its samples in order, and all a worker on any machine has to know."""

    name: str
    out: str
    samples: Samples
    wnids: tuple[str, ...]
    cls_width: int
    config: ShardConfig
    skip: bool
    known: Shard | None
    """What the manifest of a finished data set says of it."""
    holder: str = ""
    """Of a task for a cluster: who holds the output, by which a worker knows that it sees it."""
    codec: Mapping[str, str] = field(default_factory=lambda: dict(CODEC))
    """Of the process that plans: a worker may have another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """The shards of every split, as the order of samples and the places where it is cut."""

    source: Source
    config: ShardConfig
    order: Mapping[str, NDArray[np.intp]]
    cuts: Mapping[str, NDArray[np.int64]]

    @property
    def shards(self) -> dict[str, int]:
        return {split: len(cuts) - 1 for split, cuts in self.cuts.items()}

    def identity(self) -> dict[str, Any]:
        """What a data set must agree in to be continued: its bytes follow from this."""
        return {
            "version": format_version(keep_aspect=self.config.keep_aspect),
            "codec": dict(CODEC),
            "config": self.config.to_dict() | {"shards": self.shards},
            "source": self.source.identity(),
        }

    def names(self, split: str) -> list[str]:
        return [shard_name(self.source.name, split, number) for number in range(self.shards[split])]

    def samples(self, split: str, number: int) -> Samples:
        """The samples of one shard, in the order they stand in it."""
        begin, end = self.cuts[split][number : number + 2]
        return self.source.splits[split].select(self.order[split][begin:end])

    def tasks(
        self, out: str, known: Mapping[str, Shard], *, skip: bool, holder: str = ""
    ) -> Iterator[ShardTask]:
        """Every shard of every split; made one by one, as they are handed out."""
        wnids = tuple(wnid for wnid, _ in self.source.classes)
        for split in self.order:
            for number, name in enumerate(self.names(split)):
                yield ShardTask(
                    name=name,
                    out=out,
                    samples=self.samples(split, number),
                    wnids=wnids,
                    cls_width=cls_width(len(wnids)),
                    config=self.config,
                    skip=skip,
                    known=known.get(name),
                    holder=holder,
                )


def held_out_share(validation: str | int) -> tuple[float, int]:
    """(share, number) of the images to hold out, one of them 0; ValueError for anything else."""
    text = str(validation).strip()
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else 0.0
        number = 0 if text.endswith("%") else int(text)
    except ValueError:
        share, number = 0.0, 0
    if not (0 < share < 1 or number > 0):
        raise ValueError(
            f"ShardConfig.validation must be a share such as 10% or a number of images, got "
            f"{validation!r}."
        )
    return share, number


def make_plan(source: Source, config: ShardConfig) -> ShardPlan:
    """Permute each split and cut it into shards that differ by one sample at most."""
    order: dict[str, NDArray[np.intp]] = {}
    cuts: dict[str, NDArray[np.int64]] = {}
    for split, samples in source.splits.items():
        count = len(samples.key)
        shards = _asked_for(config, split, source) or default_shards(split, count, config)
        if shards > count:
            raise PrepareError(
                f"{source.name} has {count:,} {split} images, too few for {shards:,} shards. "
                "Ask for fewer with --shards."
            )
        order[split] = permutation(count, config.seed, split)
        cuts[split] = np.arange(shards + 1, dtype=np.int64) * count // shards
    return ShardPlan(source=source, config=config, order=order, cuts=cuts)


def _asked_for(config: ShardConfig, split: str, source: Source) -> int | None:
    if not isinstance(config.shards, Mapping):
        return config.shards
    if unknown := sorted(set(config.shards) - set(source.splits)):
        raise PrepareError(
            f"--shards names the split {unknown[0]!r}; {source.name} has "
            f"{', '.join(sorted(source.splits))}."
        )
    return config.shards.get(split)


def default_shards(split: str, count: int, config: ShardConfig) -> int:
    """As many shards as full ILSVRC has, or fewer where they would be under about 4 MB.

    A sample is reckoned at half a byte a pixel (33 KB for 256 x 256 at quality 95, as measured) and
    3 KB of tar headers and padding, so that the number does not depend on the pictures.
    """
    choices = TRAIN_SHARDS if split == TRAIN else OTHER_SHARDS
    smallest = SMALLEST_SHARD // (config.size**2 // 2 + 3_000)
    return max(number for number in choices if number == 1 or number * smallest <= count)


def permutation(count: int, seed: int, split: str) -> NDArray[np.intp]:
    """A permutation of 0..count-1 that depends on seed and split alone.

    It ranks the raw 64-bit output of Philox, which numpy keeps the same from release to release
    (its Generator may change, NEP 19); of two equal numbers the earlier comes first.
    """
    digest = hashlib.sha256(f"{seed}/{split}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)
    return np.argsort(raw, kind="stable")
