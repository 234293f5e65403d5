"""The files of a data set and of a run, field by field, for docs/reference/format.md.

`FIELDS` is compared with the dataclasses when the page is generated, and with a data set and a run
that were really written by tests/test_format_page.py. A type is a JSON type, `array of TYPE`,
`object of TYPE` (name -> value) or the name of another table; `optional` fields may be absent.
"""

from dataclasses import fields

from alexprep.dataset.codec import CODEC
from alexprep.dataset.shard import ShardConfig
from docs.generate.tables import table
from pipelines.format import FIXES, MEMBERS, Left, Manifest, Shard, Split
from pipelines.imagestats import SHAPES

FIELDS: dict[str, dict[str, tuple[str, str]]] = {
    "KEY.json": {
        "wnid": ("string", "class, as in `classes` of the manifest"),
        "width": ("integer", "width of the source image in pixels, before any EXIF rotation"),
        "height": ("integer", "height of the source image"),
        "sha256": ("string", "hash of the source file, 64 hexadecimal digits"),
        "fixes": ("string", "space-separated conversions (see below); empty for most images"),
    },
    "manifest": {
        "version": ("integer", "format version: 1, or 2 where images keep their aspect ratio"),
        "name": ("string", "prefix of the tars' names; `imagenet1k` for ILSVRC2012"),
        "alexprep": ("string", "*release that wrote the data set*"),
        "codec": ("codec", "*libraries that decoded, resized and encoded*"),
        "config": ("config", "*options of `alexprep shard`*"),
        "source": ("source", "*what the data set was converted from*"),
        "classes": ("array of [string, string]", "wnid (or folder name) and names, by label"),
        "cls_width": ("integer", "digits of a label: 4 up to 9,999 classes, else 8"),
        "size": ("integer", "side of the images in pixels, the shorter one in version 2"),
        "largest_jpg": ("integer", "size of the largest image in bytes"),
        "fixes": ("object of integer", "*number of images with each conversion*"),
        "left_out": ("array of left_out", "*source files that were skipped*"),
        "splits": ("object of split", "splits by name"),
        "mended": ("object of array of string", "*keys of converted images, up to 1000 a kind*"),
    },
    "split": {
        "shards": ("array of shard", "in order"),
        "counts": ("array of integer", "number of samples of each label"),
    },
    "shard": {
        "name": ("string", "path of the tar below ROOT"),
        "samples": ("integer", "number of samples"),
        "bytes": ("integer", "size of the tar"),
        "sha256": ("string", "hash of the tar"),
        "md5": ("string", "hash of the tar"),
    },
    "left_out": {
        "path": ("string", "file in the source"),
        "sha256": ("string", "hash of what could be read of it"),
        "reason": ("string", 'completes the sentence "the file ..."'),
    },
    "config": {
        "size": ("integer", "side of the images in pixels"),
        "quality": ("integer", "JPEG quality"),
        "shards": ("object of integer", "number of shards of each split"),
        "seed": ("integer", "random seed of the permutation"),
        "apply_orientation": ("boolean", "whether images were rotated by their EXIF orientation"),
        "validation": ("optional string or integer", "training images held out for validation"),
        "classes": ("optional array of string", "the classes that were kept"),
        "image_column": ("optional string", "Parquet column of images"),
        "label_column": ("optional string", "Parquet column of labels"),
        "on_duplicate": ("optional string", "`drop-train` if copies were left out of training"),
        "keep_aspect": ("optional boolean", "true: images are whole; absent: central squares"),
    },
    "codec": {
        "jpeg": ("string", "library and release that decodes and encodes JPEG"),
        "resize": ("string", "library, release and filter"),
        "subsampling": ("string", "`4:2:0`"),
        "webp_tiff": (
            "optional string",
            "library and release that decodes WebP and compressed TIFF",
        ),
        "damaged_jpeg": (
            "optional string",
            "library and release that decodes a JPEG that libjpeg complains of",
        ),
        "png_gif_bmp_ppm_tiff": (
            "optional string",
            "library and release that decodes PNG, GIF, BMP, PPM and uncompressed TIFF",
        ),
    },
    "source": {
        "kind": ("string", "layout of the source"),
        "name": ("string", "name of the source"),
        "images": ("object of integer", "number of files in each split"),
        "sha256": ("string", "hash of the keys, labels and sizes of all files"),
        "warnings": ("optional array of string", "what was unusual about the source"),
        "duplicates": (
            "optional object of integer",
            "source files in the data set more than once, if any: `within_class`, "
            "`across_classes`, `across_splits`",
        ),
    },
    "_info.json": {
        "name": ("string", "split"),
        "num_samples": ("integer", "number of samples"),
        "filenames": ("array of string", "paths of the tars below ROOT"),
        "shard_lengths": ("array of integer", "number of samples of each tar"),
    },
    "wids-SPLIT.json": {
        "__kind__": ("string", "`wids-shard-index-v1`"),
        "wids_version": ("integer", "1"),
        "name": ("string", "data set and split"),
        "shardlist": ("array of shardlist", "the tars"),
    },
    "shardlist": {
        "url": ("string", "path of the tar below ROOT"),
        "md5sum": ("string", "hash of the tar"),
        "nsamples": ("integer", "number of samples"),
        "filesize": ("integer", "size of the tar"),
    },
    "stats.json": {
        "version": ("integer", "1"),
        "npz_sha256": ("string", "hash of `stats.npz`"),
        "split": ("string", "split that was measured"),
        "images": ("integer", "number of images"),
        "height": ("integer", "of the images, in pixels"),
        "width": ("integer", "of the images, in pixels"),
        "mean_0_255": ("array of number", "R, G, B"),
        "sd_0_255": ("array of number", "R, G, B"),
        "covariance_0_255_squared": ("array of array of number", "rows and columns R, G, B"),
        "eigenvalues_0_255_squared": ("array of number", "largest first"),
        "stdevs_0_255": ("array of number", "square roots of the eigenvalues"),
        "eigenvectors_RGB_in_columns": ("array of array of number", "rows R, G, B"),
        "shards": ("object of string", "sha256 of every tar that was read"),
    },
    "step": {
        "kind": ("string", "`step`"),
        "step": ("integer", "steps since the start of the run"),
        "epoch": ("integer", "epoch, from 0"),
        "at": ("integer", "steps in this epoch so far"),
        "of": ("integer", "steps in an epoch"),
        "loss": ("number", "mean cross-entropy in nats since the previous record"),
        "lr": ("number", "largest learning rate of any layer's weights"),
        "images_per_second": ("number", "training throughput, all replicas"),
        "waiting": ("number", "share of the time without data, 0 to 1"),
    },
    "epoch": {
        "kind": ("string", "`epoch`"),
        "step": ("integer", "steps since the start of the run"),
        "epoch": ("integer", "epoch, from 0"),
        "epochs": ("integer", "number of epochs of the run"),
        "loss": ("number", "mean cross-entropy of the epoch in nats"),
        "validation_loss": ("number", "mean cross-entropy of the validation split in nats"),
        "top1": ("number", "top-1 error, 0 to 1"),
        "top5": ("number", "top-5 error, 0 to 1"),
        "images_per_second": ("number", "training throughput, all replicas"),
        "waiting": ("number", "share of the time without data, 0 to 1"),
        "bound": ("string", "`data` if `waiting` exceeds 0.05, else `compute`"),
        "seconds": ("number", "duration of training"),
        "validation_seconds": ("number", "duration of validation"),
    },
}
FIX_MEANINGS = {
    "cmyk": "converted from CMYK (Adobe's inverted values), as Pillow does",
    "gray": "grayscale: three equal channels",
    "exif": "EXIF orientation ignored (applied with `--apply-orientation`), or damaged EXIF",
    "progressive": "progressive JPEG: stored as baseline",
    "16bit": "16 bits per channel: the upper 8 are kept",
    "palette": "palette converted to RGB",
    "alpha": 'alpha channel dropped, as Pillow\'s `convert("RGB")` does',
    "damaged": "libjpeg warns (stray bytes, no end marker), but the whole image decodes",
} | {kind: f"the file is {kind.upper()}" for kind in ("png", "gif", "bmp", "tiff", "webp", "ppm")}
MEMBER_MEANINGS = {
    "jpg": "image",
    "cls": "label in ASCII digits, zero-padded to `cls_width` of the manifest: `0007`",
    "json": "metadata: one JSON object in ASCII",
}
# (offset, bytes, value or None where it depends on the member, meaning)
HEADER: list[tuple[int, int, bytes | None, str]] = [
    (0, 100, None, "name: `KEY.jpg`, `KEY.cls` or `KEY.json` in ASCII, then zeros"),
    (100, 8, b"0000644\0", "mode"),
    (108, 8, b"0000000\0", "uid"),
    (116, 8, b"0000000\0", "gid"),
    (124, 12, None, "size of the data: 11 octal digits and a zero byte"),
    (136, 12, b"12032156400\0", "mtime: 1 October 2012"),
    (
        148,
        8,
        None,
        "checksum of the header with these 8 bytes as spaces: 6 octal digits, zero, space",
    ),
    (156, 1, b"0", "regular file"),
    (157, 100, b"", "link name: zeros"),
    (257, 6, b"ustar\0", "magic"),
    (263, 2, b"00", "version"),
    (265, 64, b"", "user and group names: zeros"),
    (329, 8, b"0000000\0", "device"),
    (337, 8, b"0000000\0", "device"),
    (345, 167, b"", "prefix and padding: zeros"),
]
# Tables whose fields are those of a dataclass, in its order.
CODE = {
    "manifest": [field.name for field in fields(Manifest)],
    "split": [field.name for field in fields(Split)],
    "shard": [field.name for field in fields(Shard)],
    "left_out": [field.name for field in fields(Left)],
    "config": [field.name for field in fields(ShardConfig)],
    "codec": list(CODEC),
}


def fields_of(name: str) -> str:
    """The table of one JSON object. ValueError: its fields are not those of the code."""
    entries = FIELDS[name]
    if list(entries) != CODE.get(name, list(entries)):
        raise ValueError(f"docs/generate/format.py has other fields of {name} than the code.")
    rows = [(f"`{field}`", kind, meaning) for field, (kind, meaning) in entries.items()]
    return table(("field", "type", "meaning"), rows)


def fixes() -> str:
    """The conversions that `fixes` may name. KeyError: one has no meaning here."""
    return table(("name", "meaning"), [(f"`{name}`", FIX_MEANINGS[name]) for name in FIXES])


def members() -> str:
    """The files of one sample."""
    rows = [(f"`KEY.{kind}`", MEMBER_MEANINGS[kind]) for kind in MEMBERS]
    return table(("member", "content"), rows)


def header() -> str:
    """The 512 bytes before each member of a tar."""
    return table(
        ("offset", "bytes", "value", "meaning"),
        (
            (str(offset), str(size), f"`{repr(value)[2:-1]}`" if value else "", meaning)
            for offset, size, value, meaning in HEADER
        ),
    )


def arrays() -> str:
    """The arrays of stats.npz."""
    side = ("height", "width", "3")
    rows = [(f"`{name}`", " x ".join(map(str, shape or side))) for name, shape in SHAPES.items()]
    return table(("array of `stats.npz`", "shape"), rows)
