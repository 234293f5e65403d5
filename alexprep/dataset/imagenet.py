"""`alexprep check-imagenet`: a user's own ILSVRC2012 compared with what others published of it.

Nobody may pass ImageNet on, so everybody's copy has to be checked against numbers. Sources: counts
and labels: the development kit; CMYK and PNG files: the preprocessing of TensorFlow's and of
Inception's authors; MD5: torchvision and TFDS; mean colour: pytorch/vision#1439; colour axes:
input_meta of akrizhevsky/cuda-convnet2.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from alexprep.dataset.stats_report import RELEASE_2014_AXES, RELEASE_2014_STDEVS
from alexprep.errors import shown
from alexprep.sources.ilsvrc import MD5, hash_archives
from alexprep.sources.synsets import ilsvrc2012, wnid_by_id
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from pipelines.shards import SplitReader

CMYK = frozenset(
    {
        *("n01739381_1309", "n02077923_14822", "n02447366_23489", "n02492035_15739"),
        *("n02747177_10752", "n03018349_4028", "n03062245_4620", "n03347037_9675"),
        *("n03467068_12171", "n03529860_11437", "n03544143_17228", "n03633091_5218"),
        *("n03710637_5125", "n03961711_5286", "n04033995_2932", "n04258138_17003"),
        *("n04264628_27969", "n04336792_7448", "n04371774_5854", "n04596742_4225"),
        *("n07583066_647", "n13037406_4650", "ILSVRC2012_val_00019877"),
    }
)
# ILSVRC2012_ID of the first validation images: the first lines of the ground truth.
VALIDATION_IDS = (
    *(490, 361, 171, 822, 297, 482, 13, 704, 599, 164),
    *(649, 11, 73, 286, 554, 6, 648, 399, 749, 545),
)


def _wnids() -> tuple[str, ...]:
    return tuple(synset.wnid for synset in ilsvrc2012())


def _validation_wnids() -> dict[str, str]:
    numbered = enumerate(VALIDATION_IDS, start=1)
    return {f"ILSVRC2012_val_{number:08d}": wnid_by_id()[ident] for number, ident in numbered}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is published of ILSVRC2012.

    `per_class`: fewest and most images of a class, by split. `fixed`: keys of the files that need a
    conversion, by its name in the manifest. `validation`: wnid of some validation images by key.
    `mean`: RGB in 0..1 of the centre `crop` of training images with a shorter side of 256;
    another resize and JPEG move it by less than `mean_tolerance`, half a grey level.
    `stdevs`: of the training pixels along the colour `axes`, in grey levels. They depend on the
    resize: the two published sets differ by 2 to 13%, so that `stdevs_tolerance` is 15%; an axis
    may turn by 8 degrees.
    """

    wnids: tuple[str, ...] = field(default_factory=_wnids)
    images: Mapping[str, int] = field(
        default_factory=lambda: {"train": 1_281_167, "validation": 50_000}
    )
    per_class: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"train": (732, 1300), "validation": (50, 50)}
    )
    fixed: Mapping[str, frozenset[str]] = field(
        default_factory=lambda: {"cmyk": CMYK, "png": frozenset({"n02105855_2933"})}
    )
    validation: Mapping[str, str] = field(default_factory=_validation_wnids)
    md5: Mapping[str, str] = field(default_factory=lambda: MD5)
    crop: int = 224
    mean: tuple[float, float, float] = (0.4845, 0.4541, 0.4025)
    mean_tolerance: float = 0.002
    stdevs: tuple[float, ...] = RELEASE_2014_STDEVS
    stdevs_tolerance: float = 0.15
    axes: tuple[tuple[float, ...], ...] = RELEASE_2014_AXES
    axes_cosine: float = 0.99


class Comparison(NamedTuple):
    """One fact: whether the data set agrees with it, and the line that says so."""

    verdict: Literal["ok", "differs", "unknown"]
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:8}{self.text}"


def check_imagenet(
    root: Path, source: Path | None = None, facts: Facts | None = None
) -> list[Comparison]:
    """Every fact beside the data set at `root`, and beside the archives in `source`.

    "unknown" where what it needs is missing: statistics, a split, the archives. DataError if there
    is no data set.
    """
    manifest = Manifest.load(root)
    facts = facts or Facts()
    return [
        *_count_facts(manifest, facts),
        *_fix_facts(manifest, facts),
        _label_fact(root, manifest, facts),
        *_colour_facts(root, manifest, facts),
        *_archive_facts(source, facts),
    ]


def _compare(name: str, actual: str, published: str, *, equal: bool) -> Comparison:
    if equal:
        return Comparison("ok", f"{name}: {actual}")
    return Comparison("differs", f"{name}: {actual}, published {published}")


def _count_facts(manifest: Manifest, facts: Facts) -> Iterator[Comparison]:
    # With classes in another order every label after the first difference means another class.
    wnids = tuple(wnid for wnid, _ in manifest.classes)
    moved = sum(a != b for a, b in zip(wnids, facts.wnids, strict=False))
    yield _compare(
        "classes",
        f"{len(wnids):,}" + (f", {moved:,} with another label" if moved else ""),
        f"{len(facts.wnids):,} in ASCII order of their wnids",
        equal=wnids == facts.wnids,
    )
    for split, images in facts.images.items():
        if split not in manifest.splits:
            yield Comparison("unknown", f"{split} images: the data set has no {split} split")
            continue
        counts = manifest.splits[split].counts
        yield _compare(
            f"{split} images", f"{sum(counts):,}", f"{images:,}", equal=sum(counts) == images
        )
        actual = (min(counts, default=0), max(counts, default=0))
        yield _compare(
            f"{split} images per class",
            "{:,} to {:,}".format(*actual),
            "{:,} to {:,}".format(*facts.per_class[split]),
            equal=actual == facts.per_class[split],
        )
    skipped = [entry.path for entry in manifest.left_out]
    yield _compare(
        "unreadable images",
        f"{len(skipped):,}" + (f" ({shown(skipped)})" if skipped else ""),
        "0",
        equal=not skipped,
    )


def _fix_facts(manifest: Manifest, facts: Facts) -> Iterator[Comparison]:
    has_all = facts.images.keys() <= manifest.splits.keys()
    for fix, keys in facts.fixed.items():
        name, count = f"{fix.upper()} files", manifest.fixes.get(fix, 0)
        if not has_all:
            yield Comparison("unknown", f"{name}: a split is missing")
            continue
        actual = set(manifest.mended.get(fix, ()))
        missing, extra = sorted(keys - actual), sorted(actual - keys)
        text = f"{count:,}"
        text += f", without {shown(missing)}" if missing else ""
        text += f", also {shown(extra)}" if extra else ""
        equal = not missing and not extra and count == len(keys)
        yield _compare(name, text, f"{len(keys):,}", equal=equal)


def _label_fact(root: Path, manifest: Manifest, facts: Facts) -> Comparison:
    name = f"labels of {len(facts.validation)} validation images"
    if "validation" not in manifest.splits:
        return Comparison("unknown", f"{name}: the data set has no validation split")
    wnids = _stored_wnids(root, manifest, facts.validation)
    wrong = [
        f"{key} is {wnids.get(key, 'missing')}, published {wnid}"
        for key, wnid in facts.validation.items()
        if wnids.get(key) != wnid
    ]
    if wrong:
        return Comparison("differs", f"{name}: {len(wrong)} wrong, the first: {wrong[0]}")
    return Comparison("ok", name)


def _stored_wnids(root: Path, manifest: Manifest, keys: Mapping[str, str]) -> dict[str, str]:
    """The classes of these validation images, by their labels in the tars."""
    reader = SplitReader(root, manifest, "validation", check="size")
    with closing(reader):
        return {
            key: manifest.classes[reader.read(index).label][0]
            for index, key in enumerate(reader.keys())
            if key in keys
        }


def _colour_facts(root: Path, manifest: Manifest, facts: Facts) -> Iterator[Comparison]:
    mean, spread = f"mean colour of the centre {facts.crop}", "standard deviation along the axes"
    try:
        stats = ImageStats.load(root, manifest, "train")
    except DataError as error:
        for name in (mean, spread, "colour axes"):
            yield Comparison("unknown", f"{name}: {error}")
        return
    edge = (manifest.size - facts.crop) // 2
    if manifest.size != 256:
        yield Comparison("unknown", f"{mean}: published for a side of 256, not {manifest.size}")
    else:
        centre = stats.mean_image_HWC[edge : edge + facts.crop, edge : edge + facts.crop]
        actual = centre.mean((0, 1)) / 255
        off = float(np.abs(actual - facts.mean).max())
        yield _compare(
            mean, _numbers(actual, 4), _numbers(facts.mean, 4), equal=off <= facts.mean_tolerance
        )
    ratio = np.abs(stats.stdevs / np.array(facts.stdevs) - 1)
    yield _compare(
        spread,
        _numbers(stats.stdevs, 2),
        f"{_numbers(facts.stdevs, 2)} to {facts.stdevs_tolerance:.0%}",
        equal=bool((ratio <= facts.stdevs_tolerance).all()),
    )
    axes = np.array(facts.axes) / np.linalg.norm(facts.axes, axis=1, keepdims=True)
    cosines = np.abs((axes * stats.eigenvectors.T).sum(1))  # the sign of an axis says nothing
    yield _compare(
        "colour axes",
        f"cosines {_numbers(cosines, 4)} with the published ones",
        f"at least {facts.axes_cosine}",
        equal=bool((cosines >= facts.axes_cosine).all()),
    )


def _numbers(values: ArrayLike, digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in np.asarray(values, float).tolist())


def _archive_facts(source: Path | None, facts: Facts) -> Iterator[Comparison]:
    if source is None:
        yield Comparison("unknown", "MD5 of the archives: give their folder with --source")
        return
    hashes = hash_archives(source, facts.md5)
    for name, md5 in facts.md5.items():
        if name in hashes:
            yield _compare(f"MD5 of {name}", hashes[name], md5, equal=hashes[name] == md5)
        else:
            yield Comparison("unknown", f"MD5 of {name}: it is not in {source}")
