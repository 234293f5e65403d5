"""The card of a data set: README.md for the Hub, croissant.json for machines, SHA256SUMS.

All three follow from the manifest, the statistics and what `alexprep card` was told (license,
author, ...), so that they are the same bytes whoever makes them. The last line of README.md is a
comment with that information and the SHA-256 of both texts: a card edited by hand is recognized by
it and never overwritten unasked (alexprep.dataset.card_files). SHA256SUMS lists every other file;
the card itself may be edited.
"""

import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from alexprep.dataset.croissant import CROISSANT, croissant, settings
from pipelines.format import Manifest, Split
from pipelines.imagestats import ImageStats

README = "README.md"
COMMENT = re.compile(r"<!-- alexprep card (\{.*\}) -->\n\Z")
MAX_CLASSES, MAX_SKIPPED = 100, 20
# Of fields of a Publication, and what they stand for.
PATTERNS = {
    "license": (
        r"[a-z0-9][a-z0-9.+-]*",
        "an identifier of the Hugging Face Hub in lower case, such as cc-by-4.0, mit or other",
    ),
    "version": (r"[\w.+-]+", "a version such as 1.0.0"),
    "published": (r"\d{4}-\d\d-\d\d", "a date such as 2026-11-28"),
}
IMAGENET_WNID = re.compile(r"n\d{8}")
IMAGENET_TERMS = "https://www.image-net.org/download.php"
IMAGENET_PROMPT = (
    "The images are of ImageNet. By requesting access you agree to its terms of access "
    f"({IMAGENET_TERMS}): non-commercial research and education only."
)
IMAGENET_LICENSE = (
    "The images are of ImageNet. Its terms of access allow non-commercial research and education "
    "only, the images belong\nto their owners, and whoever gets a copy must have agreed to the "
    "terms: keep a copy on the Hub private or gated.\n"
    f"See <{IMAGENET_TERMS}>."
)
HOW_TO_READ = """\
```python
from datasets import load_dataset

train = load_dataset("PATH", split="train", streaming=True)
```

The tars are also read by webdataset, wids, timm and DALI (with the files of `index/`)."""
CHECKS = (
    "`sha256sum -c SHA256SUMS` checks the files, `alexprep verify` every image. `croissant.json` "
    "describes the data set for\nmachines."
)
IMAGENET_CITATION = """\
@article{ILSVRC15,
  author = {Olga Russakovsky and Jia Deng and Hao Su and Jonathan Krause and Sanjeev Satheesh and
            Sean Ma and Zhiheng Huang and Andrej Karpathy and Aditya Khosla and
            Michael Bernstein and Alexander C. Berg and Li Fei-Fei},
  title = {{ImageNet Large Scale Visual Recognition Challenge}},
  journal = {International Journal of Computer Vision},
  year = {2015},
  volume = {115},
  number = {3},
  pages = {211-252},
}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What only the publisher of a data set knows.

    `license` is an identifier of the Hub, such as cc-by-4.0; None states ImageNet's terms for its
    images and "unknown" for others. `published` is a date, 2026-11-28.
    """

    license: str | None = None
    author: str | None = None
    description: str | None = None
    version: str = "1.0.0"
    url: str | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        for name, (pattern, expected) in PATTERNS.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                raise ValueError(f"Publication.{name} must be {expected}, got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not at their default."""
        return {name: v for name, v in asdict(self).items() if v != getattr(Publication(), name)}


class _Record(msgspec.Struct):
    """The comment at the end of a README.md that was generated."""

    readme: str
    croissant: str
    publication: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The two texts that describe a data set, whoever wrote them; None for a missing one."""

    readme: str | None
    croissant: str | None

    @classmethod
    def load(cls, root: Path) -> "Card":
        """The card of the data set in a folder."""
        texts = [
            path.read_text(errors="replace") if path.is_file() else None
            for path in (root / README, root / CROISSANT)
        ]
        return cls(readme=texts[0], croissant=texts[1])

    @property
    def edited(self) -> tuple[str, ...]:
        """Names of the files that are not as they were generated."""
        record = _record(self.readme)
        names: list[str] = []
        if self.readme is not None:
            body = COMMENT.sub("", self.readme)
            # Cards of the first release have the hash of the text alone.
            if record is None or record.readme not in (
                _readme_hash(body, record.publication),
                _sha256(body),
            ):
                names.append(README)
        if self.croissant is not None and (
            record is None or _sha256(self.croissant) != record.croissant
        ):
            names.append(CROISSANT)
        return tuple(names)

    @property
    def publication(self) -> Publication:
        """What the publisher said when it was generated; the defaults where that is lost."""
        record = _record(self.readme)
        try:
            return Publication(**record.publication) if record else Publication()
        except (TypeError, ValueError):
            return Publication()


def _record(readme: str | None) -> _Record | None:
    comment = COMMENT.search(readme or "")
    try:
        return msgspec.json.decode(comment[1], type=_Record) if comment else None
    except (ValueError, RecursionError):
        return None


def make_card(
    manifest: Manifest, publication: Publication = Publication(), stats: Sequence[ImageStats] = ()
) -> Card:
    """The card of a data set as alexprep writes it."""
    terms = publication.license is None and is_imagenet(manifest)
    machine = croissant(
        manifest,
        publication.to_dict() | {"version": publication.version},
        description=description(manifest, publication),
        license=IMAGENET_TERMS if terms else publication.license or "unknown",
        citation=IMAGENET_CITATION if is_imagenet(manifest) else None,
    )
    body = f"---\n{front_matter(manifest, publication)}---\n\n{_body(manifest, publication, stats)}"
    fields = publication.to_dict()
    record = _Record(_readme_hash(body, fields), _sha256(machine), fields)
    # No > in the JSON: nothing that the publisher writes ends the comment early.
    comment = msgspec.json.encode(record).decode().replace(">", "\\u003e")
    return Card(readme=f"{body}<!-- alexprep card {comment} -->\n", croissant=machine)


def is_imagenet(manifest: Manifest) -> bool:
    """Whether all classes are synsets of WordNet: then the images are ImageNet's."""
    return all(IMAGENET_WNID.fullmatch(wnid) for wnid, _ in manifest.classes)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that gives any text back: unquoted, PyYAML folds U+0085 and its like."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'
        return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def front_matter(manifest: Manifest, publication: Publication) -> str:
    """The YAML that the Hub and `datasets` read: license, files of each split, features."""
    header: dict[str, Any] = {"license": publication.license or "unknown"}
    if publication.license is None and is_imagenet(manifest):
        header = {
            "license": "other",
            "license_name": "imagenet-terms-of-access",
            "license_link": IMAGENET_TERMS,
            "extra_gated_prompt": IMAGENET_PROMPT,
        }
    header |= {
        "pretty_name": manifest.name,
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(manifest.samples)],
        "tags": ["webdataset", "alexprep"],
        "configs": [
            {
                "config_name": "default",
                # Without it `datasets` would take another data set of as many bytes and images
                # from its cache: of the files it looks at no more than these sizes.
                "description": f"Shards {_digest(manifest)}.",
                "data_files": [
                    {"split": name, "path": f"{name}/*.tar"} for name in manifest.splits
                ],
            }
        ],
        "dataset_info": _dataset_info(manifest),
    }
    return yaml.dump(header, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _digest(manifest: Manifest) -> str:
    """Tells the contents of all shards from others."""
    hashes = (shard.sha256 for shard in manifest.shards)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _dataset_info(manifest: Manifest) -> dict[str, Any]:
    names = {str(label): name for label, name in enumerate(label_names(manifest.classes))}
    size = sum(split.bytes for split in manifest.splits.values())
    source = {"wnid": "string", "width": "int64", "height": "int64", "sha256": "string"}
    return {
        "features": [
            {"name": "jpg", "dtype": "image"},
            # `datasets` could infer numbers from the tars, but not what they are called.
            {"name": "cls", "dtype": {"class_label": {"names": names}}},
            {
                "name": "json",
                "struct": [
                    {"name": name, "dtype": dtype}
                    for name, dtype in (source | {"fixes": "string"}).items()
                ],
            },
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ],
        "splits": [
            {"name": name, "num_bytes": split.bytes, "num_examples": split.samples}
            for name, split in manifest.splits.items()
        ],
        "download_size": size,
        "dataset_size": size,
    }


def label_names(classes: Sequence[tuple[str, str]]) -> list[str]:
    """A name for each label, all different: `datasets` refuses two classes of one name.

    ILSVRC has two cranes: those that share a name have their wnid in it too.
    """
    counts = Counter(names for _, names in classes)
    unique = [
        names if names and counts[names] == 1 else f"{names} ({wnid})".strip()
        for wnid, names in classes
    ]
    return unique if len(set(unique)) == len(unique) else [wnid for wnid, _ in classes]


def _size_category(images: int) -> str:
    bounds = ((1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"))
    bounds += ((10_000_000, "10M"), (100_000_000, "100M"))
    lower = ""
    for bound, label in bounds:
        if images < bound:
            return f"{lower}n<{label}"
        lower = f"{label}<"
    return "n>100M"


def description(manifest: Manifest, publication: Publication = Publication()) -> str:
    """What a data set is, in the publisher's words or in ours."""
    return publication.description or (
        f"{manifest.samples:,} images of {len(manifest.classes):,} classes as JPEG of "
        f"{manifest.dimensions} in WebDataset shards."
    )


def _body(manifest: Manifest, publication: Publication, stats: Sequence[ImageStats]) -> str:
    """The text below the front matter: paragraphs, those that say nothing left out."""
    rows = [_split_row(name, split) for name, split in manifest.splits.items()]
    paragraphs = [
        f"# {plain(manifest.name)}",
        description(manifest, publication),
        _table(
            "| split | images | images per class | shards | bytes |",
            "|---|---:|---:|---:|---:|",
            rows,
        ),
        f"A sample is three files of a tar: `KEY.jpg` (a baseline JPEG of {manifest.dimensions}), "
        "`KEY.cls` (the label in\ndigits) and `KEY.json` (class, width, height and SHA-256 of the "
        "source image).",
        HOW_TO_READ,
        "## Classes",
        f"{len(manifest.classes):,} classes; `synsets.txt` has them in label order.",
        _class_table(manifest) if len(manifest.classes) <= MAX_CLASSES else "",
        *(_statistics(stats) if stats else ()),
        *_origin(manifest, publication),
        *(f"Warning: {plain(warning)}" for warning in manifest.warnings),
        CHECKS,
        "## License",
        _license(manifest, publication),
        f"Published by {plain(publication.author)}." if publication.author else "",
    ]
    if is_imagenet(manifest):
        paragraphs += ["## Citation", f"```bibtex\n{IMAGENET_CITATION}\n```"]
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(filter(None, paragraphs))) + "\n"


def _table(head: str, rule: str, rows: Iterable[Iterable[str]]) -> str:
    return "\n".join([head, rule, *(f"| {' | '.join(cells)} |" for cells in rows)])


def _class_table(manifest: Manifest) -> str:
    head = f"| label | class | names | images of {' | images of '.join(manifest.splits)} |"
    return _table(head, "|---:|---|---|" + "---:|" * len(manifest.splits), _class_rows(manifest))


def _statistics(stats: Sequence[ImageStats]) -> list[str]:
    head = (
        "| split | images | mean | standard deviation | standard deviation along the colour axes |"
    )
    return [
        "## Statistics",
        "RGB in 0..255, over every pixel of the split; the mean image is in `stats.npz` and "
        "`mean.png`.",
        _table(head, "|---|---:|---|---|---|", map(_stats_row, stats)),
    ]


def _origin(manifest: Manifest, publication: Publication) -> list[str]:
    """What it was made from and how, what was repaired and what left out."""
    source = {"name": "", "kind": "", "sha256": ""} | dict(manifest.source)
    facts = [(plain(name), plain(value)) for name, value in _facts(manifest, publication)]
    fixes, duplicates = (
        ", ".join(f"{plain(name)} {count:,}" for name, count in sorted(counts.items()))
        for counts in (manifest.fixes, manifest.duplicates)
    )
    return [
        "## How it was made",
        f"By `alexprep shard` {plain(manifest.alexprep)} from {plain(source['name'])} "
        f"({plain(source['kind'])}, SHA-256 of its list of files\n`{plain(source['sha256'])}`). "
        "The bytes of the shards are a function of source, configuration and codec.",
        _table("| | |", "|---|---|", facts),
        f"Repaired images: {fixes}." if fixes else "No image needed a repair.",
        f"Files that are there more than once: {duplicates}." if duplicates else "",
        *_skipped(manifest),
    ]


def _skipped(manifest: Manifest) -> list[str]:
    files = manifest.left_out
    if not files:
        return ["Every image of the source is in the data set."]
    rows = [(plain(entry.path), plain(entry.reason)) for entry in files[:MAX_SKIPPED]]
    return [
        f"Files of the source that are not in the data set: {len(files):,}.",
        _table("| file | reason |", "|---|---|", rows),
        "The others are in `left_out` of `manifest.json`." if len(files) > MAX_SKIPPED else "",
    ]


def _license(manifest: Manifest, publication: Publication) -> str:
    if publication.license is not None:
        return publication.license
    if not is_imagenet(manifest):
        return "Not stated. `alexprep card --license ID` states it."
    return IMAGENET_LICENSE


def plain(value: object) -> str:
    """Text that Markdown and HTML show as it is, on one line of a table."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def _split_row(name: str, split: Split) -> list[str]:
    minimum, maximum = min(split.counts, default=0), max(split.counts, default=0)
    per_class = f"{minimum:,}" if minimum == maximum else f"{minimum:,} to {maximum:,}"
    return [
        name,
        f"{split.samples:,}",
        per_class,
        f"{len(split.shards):,}",
        f"{split.bytes:,}",
    ]


def _class_rows(manifest: Manifest) -> list[list[str]]:
    return [
        [
            str(label),
            plain(wnid),
            plain(names),
            *(f"{split.counts[label]:,}" for split in manifest.splits.values()),
        ]
        for label, (wnid, names) in enumerate(manifest.classes)
    ]


def _facts(manifest: Manifest, publication: Publication) -> list[tuple[str, str]]:
    return [("version of the data", publication.version), *settings(manifest).items()]


def _stats_row(stats: ImageStats) -> list[str]:
    numbers = (
        ", ".join(f"{value:.2f}" for value in getattr(stats, name).tolist())
        for name in ("mean", "sd", "stdevs")
    )
    return [stats.split, f"{stats.images:,}", *numbers]


def _readme_hash(body: str, publication: Mapping[str, str]) -> str:
    """Of all that README.md says, in its text and in the comment."""
    return _sha256(body + json.dumps(publication, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
