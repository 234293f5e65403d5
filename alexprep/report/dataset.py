"""The page of a data set: what the shards hold, what was mended, its colours, its images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alexprep import __version__
from alexprep.report import page as html
from alexprep.report.charts import counts_chart, sizes_chart
from alexprep.report.colours import colours, images
from alexprep.report.page import short
from alexprep.report.samples import Survey, survey
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats

# Rows of the table of classes and of the files left out; beyond, the page names the file to read.
ROWS = 2_000
SIZES = 1_500
FIXES = {
    "cmyk": "four inks, turned into RGB",
    "gray": "one channel, repeated to three",
    "exif": "carried an EXIF orientation",
    "progressive": "progressive JPEG, now baseline",
    "16bit": "16 bits a channel, now 8",
    "palette": "palette, now RGB",
    "alpha": "transparent, laid on white",
    "damaged": "damaged, decoded as far as it goes",
}


def dataset_page(root: Path) -> str:
    """The HTML of a finished data set; DataError if it is none."""
    manifest = Manifest.load(root)
    splits = {name: manifest.splits[name] for name in sorted(manifest.splits)}
    main = "train" if "train" in splits else next(iter(splits))
    stats, missing = _statistics(root, manifest, main)
    sections = [
        html.Section("splits", "Splits and classes", _splits(manifest, main)),
        html.Section("sources", "Source images", _sources(survey(root, manifest, main), manifest)),
        html.Section("fixes", "Mended and left out", _fixes(manifest)),
        html.Section("colours", "Colours", colours(stats) if stats else html.note(missing)),
        html.Section("images", "Images", images(root, manifest, main, stats)),
        html.Section("making", "How it was made", _making(manifest)),
    ]
    return html.page(
        f"{manifest.name}: the data set",
        f"{len(manifest.classes):,} classes at {manifest.size} x {manifest.size} pixels, "
        f"from {root}",
        _tiles(manifest),
        sections,
        foot=f"Written by alexprep {__version__}.",
    )


def _tiles(manifest: Manifest) -> list[html.Tile]:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    images = sum(shard.samples for shard in shards)
    total = sum(shard.bytes for shard in shards)
    mended = sum(manifest.fixes.values())
    return [
        *(
            html.Tile(name, f"{split.samples:,}", f"images in {len(split.shards):,} shards")
            for name, split in manifest.splits.items()
        ),
        html.Tile("classes", f"{len(manifest.classes):,}"),
        html.Tile("size", size_text(total), f"{size_text(total / max(images, 1))} an image"),
        html.Tile("mended", f"{mended:,}", f"{len(manifest.left_out):,} left out"),
    ]


def size_text(count: float) -> str:
    """Bytes with three digits that count."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _splits(manifest: Manifest, main: str) -> str:
    rows: list[Sequence[object]] = []
    for name, split in manifest.splits.items():
        counts = np.array(split.counts)
        total = sum(shard.bytes for shard in split.shards)
        rows.append(
            (
                name,
                f"{split.samples:,}",
                f"{len(split.shards):,}",
                size_text(total),
                f"{counts.min():,} / {int(np.median(counts)):,} / {counts.max():,}",
            )
        )
    head = ("split", "images", "shards", "size", "images a class: least / median / most")
    return html.table(head, rows, numbers=(1, 2, 3)) + _counts(manifest, main) + _classes(manifest)


def _counts(manifest: Manifest, main: str) -> str:
    """Bars for the splits whose classes differ in number, a sentence for the others."""
    # Panels go from the bottom up: the main split is to stand on top.
    upwards = [*(name for name in sorted(manifest.splits) if name != main), main]
    uneven = [name for name in upwards if len(set(manifest.splits[name].counts)) > 1]
    words = "".join(
        html.paragraph(f"{name}: every class has {_images(manifest.splits[name].counts[0])}.")
        for name in reversed(upwards)
        if name not in uneven
    )
    if not uneven:
        return words
    order = np.argsort([-count for count in manifest.splits[main].counts], kind="stable").tolist()
    names = [f"{short(names)} ({wnid})" for wnid, names in manifest.classes]
    return words + html.chart(
        "counts",
        counts_chart({name: manifest.splits[name].counts for name in uneven}, names, order),
        says=f"Bars: images of each of the {len(names)} classes in {', '.join(uneven)}.",
        caption=f"Images of each class, the most frequent of {main} first.",
        height=180 + 120 * len(uneven),
    )


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _classes(manifest: Manifest) -> str:
    splits = list(manifest.splits)
    rows = (
        (label, wnid, names, *(f"{manifest.splits[s].counts[label]:,}" for s in splits))
        for label, (wnid, names) in enumerate(manifest.classes[:ROWS])
    )
    numbers = tuple(range(3, 3 + len(splits)))
    listing = html.table(("label", "wnid", "names", *splits), rows, numbers=numbers)
    more = len(manifest.classes) - ROWS
    rest = html.paragraph(f"{more:,} more are in synsets.txt.") if more > 0 else ""
    return html.folded(f"All {len(manifest.classes):,} classes", listing + rest)


def _sources(found: Survey, manifest: Manifest) -> str:
    if not found.jpg_bytes:
        return html.note("This split has no images.")
    sides = found.sides
    low, middle, high = np.percentile(sides, [0, 50, 100], axis=0).astype(int).tolist()
    short_side, size = sides.min(axis=1), manifest.size
    rows = {
        "images looked at": f"{len(found.jpg_bytes):,}",
        "different sizes": f"{len(found.sizes):,}",
        "smallest, median, largest width": f"{low[0]:,}, {middle[0]:,}, {high[0]:,}",
        "smallest, median, largest height": f"{low[1]:,}, {middle[1]:,}, {high[1]:,}",
        f"shorter side below {size}: enlarged": f"{(short_side < size).mean():.1%}",
        f"shorter side is {size}: kept": f"{(short_side == size).mean():.1%}",
        f"shorter side above {size}: reduced": f"{(short_side > size).mean():.1%}",
        "stored JPEG, median": size_text(float(np.median(found.jpg_bytes))),
        "stored JPEG, largest of the data set": size_text(manifest.largest_jpg),
    }
    words = html.facts(rows)
    if len(found.sizes) == 1:
        width, height = next(iter(found.sizes))
        return html.paragraph(f"Every source image is {width} x {height} pixels.") + words
    common = dict(found.sizes.most_common(SIZES))
    drawn = html.chart(
        "sizes",
        sizes_chart(common, manifest.size),
        says=f"Dots: widths and heights of source images; median {middle[0]} x {middle[1]}.",
        caption=(
            "Width and height of the source images; the area of a dot is the number of images of "
            f"that size. Inside the dotted corner images were reduced to {manifest.size} pixels; "
            "outside, enlarged."
        ),
        height=420,
    )
    top = html.table(
        ("most common sizes", "images", "share"),
        (
            (f"{w} x {h}", f"{count:,}", f"{count / len(found.jpg_bytes):.1%}")
            for (w, h), count in found.sizes.most_common(6)
        ),
        numbers=(1, 2),
    )
    return html.pair(drawn, words + top)


def _fixes(manifest: Manifest) -> str:
    fixes = sorted(manifest.fixes.items(), key=lambda item: -item[1])
    body = html.paragraph("Nothing had to be mended: every source was an RGB baseline JPEG.")
    if fixes:
        rows = (
            (
                name,
                f"{count:,}",
                FIXES.get(name, f"was a {name.upper()} file"),
                _keys(manifest, name),
            )
            for name, count in fixes
        )
        body = html.table(("fix", "images", "what was done", "keys"), rows, numbers=(1,))
    left = manifest.left_out
    if not left:
        return body + html.paragraph("No file of the source was left out.")
    listing = html.table(
        ("file left out", "why"), ((entry.path, entry.reason) for entry in left[:ROWS])
    )
    return body + html.folded(f"{len(left):,} files were left out", listing)


def _keys(manifest: Manifest, fix: str) -> str:
    keys = manifest.mended.get(fix, ())
    if not keys:
        return "too many to name"
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3:,} more" if len(keys) > 3 else "")


def _statistics(root: Path, manifest: Manifest, split: str) -> tuple[ImageStats | None, str]:
    """The statistics, or the sentence that says why there are none."""
    try:
        return ImageStats.load(root, manifest, split), ""
    except DataError as error:
        return None, str(error)


def _making(manifest: Manifest) -> str:
    about: Mapping[str, object] = {
        "alexprep": manifest.alexprep,
        **{f"codec {name}": value for name, value in manifest.codec.items()},
        **{f"config {name}": _plain(value) for name, value in manifest.config.items()},
        **{f"source {name}": _plain(value) for name, value in manifest.source.items()},
    }
    shards = html.table(
        ("shard", "images", "bytes", "sha256"),
        (
            (
                shard.name,
                f"{shard.samples:,}",
                f"{shard.bytes:,}",
                html.Cell(f"<code>{shard.sha256[:16]}</code>"),
            )
            for split in manifest.splits.values()
            for shard in split.shards
        ),
        numbers=(1, 2),
    )
    count = sum(len(split.shards) for split in manifest.splits.values())
    return html.facts(about) + html.folded(f"All {count:,} shards", shards)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
