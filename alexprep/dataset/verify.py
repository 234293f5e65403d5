"""`alexprep verify`: compare everything that a data set says of itself with what it holds.

A worker reads a shard once: hashes, members, labels, JPEGs, then its index and its planes. What no
shard tells alone (counts, keys, duplicates, statistics) is checked here from their findings.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray
from PIL import Image

from alexprep.dataset.card_files import card_warnings
from alexprep.dataset.checksums import checksum_faults, checksum_warnings
from alexprep.dataset.croissant import CROISSANT, croissant_faults
from alexprep.dataset.duplicates import (
    DIGEST_BYTES,
    UNKNOWN,
    count_duplicates,
    describe_duplicates,
    equal_groups,
    join,
)
from alexprep.dataset.manifest import MAX_NAMED, sidecars
from alexprep.dataset.rebuild import plan_again, rebuild_shards
from alexprep.errors import PrepareError, counted
from alexprep.machine import cores
from alexprep.progress import ProgressBar
from alexprep.sources.content import is_litter
from alexprep.tar import TarMember, TarStream
from alexprep.workers import run_tasks
from pipelines.errors import DataError
from pipelines.format import (
    FIXES,
    MEMBERS,
    Manifest,
    Member,
    Sample,
    Shard,
    format_index,
    parse_index,
)
from pipelines.imagestats import ImageStats, stats_paths
from pipelines.jpeg import APP1, APP2, BASELINE, segments
from pipelines.planesfile import FOLDER, PlanesFile, planes_path

MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was checked, which shards were rebuilt, and every fault in the order of the shards.

    `warnings` name images that are there more than once, which is the source's fault, and a card
    that was edited by hand, which may be right.
    """

    shards: int
    images: int
    rebuilt: tuple[str, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckTask:
    """One shard for a worker, and what its samples must agree with."""

    root: Path
    shard: Shard
    size: int
    wnids: tuple[str, ...]
    cls_width: int
    planes: bool = False
    keep_aspect: bool = False


@dataclass(kw_only=True, slots=True)
class Findings:
    """What one shard holds, sample by sample, and everything that is wrong with it.

    `labels` has -1 and `digests` zeros for a sample without; `fixes` holds keys by what was fixed.
    """

    keys: list[str] = field(default_factory=list[str])
    labels: list[int] = field(default_factory=list[int])
    digests: bytearray = field(default_factory=bytearray)
    fixes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list[str]))
    largest_jpg: int = 0
    faults: list[str] = field(default_factory=list[str])


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    """KEY.json of a sample, as pipelines.format has it."""

    wnid: str
    width: int
    height: int
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    fixes: str


def verify(
    root: Path, *, workers: int | None = None, rebuild: int = 0, source: Path | None = None
) -> Verified:
    """Check every hash, count, index entry, label and JPEG of the data set at `root`.

    With `rebuild`, as many random shards are also rebuilt from `source` and compared byte for byte.
    Faults are in the result; DataError if there is no manifest to compare with, PrepareError if
    `source` is not what the data set was made from.
    """
    manifest = Manifest.load(root)
    if rebuild and source is None:
        raise PrepareError(
            f"Rebuilding shards of {root} needs their source: name it with --source."
        )
    # Another source or codec is found out before hours of hashing.
    plan = plan_again(manifest, source, root) if rebuild and source is not None else None
    findings = _check_shards(root, manifest, workers or cores())
    faults = [*_file_faults(root, manifest), *_statistics_faults(root, manifest)]
    faults += croissant_faults(root / CROISSANT, manifest)
    for split in manifest.splits:
        faults += [fault for shard in findings[split] for fault in shard.faults]
        faults += _split_faults(split, manifest, findings[split])
    shards = [shard for split in findings.values() for shard in split]
    faults += _data_set_faults(manifest, shards)
    counts, warnings = _duplicates(manifest, findings)
    warnings += [*card_warnings(root, manifest), *checksum_warnings(root)]
    if manifest.duplicates and dict(manifest.duplicates) != counts:
        faults.append(f"duplicates are {counts}, the manifest says {dict(manifest.duplicates)}")
    if not faults:  # of what is at fault already the checksum is another too
        faults += checksum_faults(root, manifest)
    rebuilt: tuple[str, ...] = ()
    if plan is not None:
        rebuilt, differences = rebuild_shards(plan, manifest, rebuild, workers or cores())
        faults += differences
    return Verified(
        shards=len(shards),
        images=sum(len(shard.keys) for shard in shards),
        rebuilt=rebuilt,
        faults=tuple(faults),
        warnings=tuple(warnings),
    )


def format_verified(result: Verified, root: Path) -> str:
    """A line for every fault and warning, then one that sums up."""
    rebuilt = f", {len(result.rebuilt)} rebuilt" if result.rebuilt else ""
    total = f"{root}: {result.shards:,} shards{rebuilt}, {result.images:,} images"
    verdict = ", all as the manifest says."
    if result.faults:
        verdict = f", {counted(len(result.faults), 'fault')}."
    warnings = [f"Warning: {warning}" for warning in result.warnings]
    return "\n".join([*result.faults, *warnings, total + verdict])


def _check_shards(root: Path, manifest: Manifest, workers: int) -> dict[str, list[Findings]]:
    """The findings of each split's shards, in order."""
    # Planes are optional for a whole split: where one shard has them, the others need them too.
    has_planes = {
        split: any(planes_path(root, shard).is_file() for shard in contents.shards)
        for split, contents in manifest.splits.items()
    }
    wnids = tuple(wnid for wnid, _ in manifest.classes)
    tasks = [
        CheckTask(
            root=root.absolute(),
            shard=shard,
            size=manifest.size,
            wnids=wnids,
            cls_width=manifest.cls_width,
            planes=has_planes[split],
            keep_aspect=manifest.keep_aspect,
        )
        for split, contents in manifest.splits.items()
        for shard in contents.shards
    ]
    findings: dict[int, Findings] = {}
    with (
        ProgressBar("verify", sum(task.shard.samples for task in tasks)) as progress,
        closing(run_tasks(check_shard, tasks, workers=workers)) as results,
    ):
        for index, result in results:
            shard = tasks[index].shard
            findings[index] = result
            progress.advance(shard.samples, bytes=shard.bytes, errors=len(result.faults))
    ordered = iter(sorted(findings.items()))
    return {
        split: [shard for _, shard in islice(ordered, len(contents.shards))]
        for split, contents in manifest.splits.items()
    }


def _file_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    """Files that the manifest does not name, and sidecars that differ from it."""
    known = {
        path for shard in manifest.shards for path in (root / shard.name, planes_path(root, shard))
    }
    for folder in (*manifest.splits, FOLDER):
        for path in sorted((root / folder).glob("**/*")):
            if path.is_file() and path not in known and not is_litter(path.name):
                yield f"{path} is not in the manifest"
    for name, text in sidecars(manifest).items():
        path = root / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.read_text(errors="replace") != text:
            yield f"{path} does not agree with the manifest"


def _statistics_faults(root: Path, manifest: Manifest) -> Iterator[str]:
    """Statistics that are damaged, of other shards, or whose three files do not agree."""
    for split, contents in manifest.splits.items():
        paths = stats_paths(root, split)
        if not any(path.is_file() for path in (paths.json, paths.npz, paths.png)):
            continue
        try:
            stats = ImageStats.load(root, manifest, split)
        except DataError as error:
            yield str(error)
            continue
        if stats.images != contents.samples:
            yield f"{paths.json} is of {stats.images} images, the manifest says {contents.samples}"
        mean = np.rint(stats.mean_image_HWC).astype(np.uint8)
        pixels = _pixels(paths.png)
        if pixels is None or not np.array_equal(pixels, mean):
            yield f"{paths.png} is not the mean image of {paths.npz.name}"


def _pixels(path: Path) -> NDArray[np.uint8] | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None


def _split_faults(name: str, manifest: Manifest, findings: Sequence[Findings]) -> Iterator[str]:
    labels = Counter(label for shard in findings for label in shard.labels)
    counts, classes = manifest.splits[name].counts, len(manifest.classes)
    if len(counts) != classes:
        yield f"{name}: the manifest counts {len(counts)} classes, it has {classes}"
    for label, count in enumerate(counts):
        if labels[label] != count:
            yield f"{name}: label {label} has {labels[label]} images, the manifest says {count}"


def _data_set_faults(manifest: Manifest, findings: Sequence[Findings]) -> Iterator[str]:
    """What only all shards together show: keys, fixes, the largest JPEG, what was left out."""
    keys = Counter(key for shard in findings for key in shard.keys)
    yield from (f"key {key!r} occurs {count} times" for key, count in keys.items() if count > 1)
    yield from _fix_faults(manifest, findings)
    largest = max((shard.largest_jpg for shard in findings), default=0)
    if largest != manifest.largest_jpg:
        yield f"the largest jpg has {largest} bytes, the manifest says {manifest.largest_jpg}"
    yield from _left_out_faults(manifest)


def _fix_faults(manifest: Manifest, findings: Sequence[Findings]) -> Iterator[str]:
    fixed: dict[str, list[str]] = defaultdict(list)
    for shard in findings:
        for fix, fixed_keys in shard.fixes.items():
            fixed[fix] += fixed_keys
    fixes = {fix: len(fixed_keys) for fix, fixed_keys in sorted(fixed.items())}
    if fixes != dict(manifest.fixes):
        yield f"fixed images are {fixes}, the manifest says {dict(manifest.fixes)}"
    for fix in sorted(fixed.keys() | manifest.mended.keys()):
        expected = sorted(fixed[fix]) if len(fixed[fix]) <= MAX_NAMED else []
        if expected != list(manifest.mended.get(fix, ())):
            yield f"mended in the manifest does not list the images that are fixed as {fix!r}"


def _left_out_faults(manifest: Manifest) -> Iterator[str]:
    """The files are gone; what can be checked is that the list may have been written by `shard`."""
    rows = [(entry.path, entry.sha256, entry.reason) for entry in manifest.left_out]
    if rows != sorted(set(rows)):
        yield "left_out in the manifest is not sorted, or has a file twice"
    for entry in manifest.left_out:
        is_hash = len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef")
        if not entry.path or not entry.reason or (entry.sha256 and not is_hash):
            yield f"left_out in the manifest has {entry.path!r} with sha256 {entry.sha256[:80]!r}"


def _duplicates(
    manifest: Manifest, findings: Mapping[str, Sequence[Findings]]
) -> tuple[dict[str, int], list[str]]:
    """How many images are there more than once, and the first of them by name."""
    shards = [(split, shard) for split in findings for shard in findings[split]]
    numbers = {split: number for number, split in enumerate(findings)}
    images = join(
        [
            (bytes(shard.digests), numbers[split], np.array(shard.labels, np.intp))
            for split, shard in shards
        ]
    )
    groups = equal_groups(images)
    counts = count_duplicates(images, groups)
    if not groups:
        return counts, []
    # Indices of `images` run over all shards in this order.
    names = [f"{split}/{key}" for split, shard in shards for key in shard.keys]
    wnids = [wnid for wnid, _ in manifest.classes]

    def shown(index: int) -> str:
        label = int(images.label[index])
        return f"{names[index]} ({wnids[label] if label >= 0 else 'no label'})"

    lines = [
        f"the same image is {' and '.join(shown(index) for index in group.tolist()[:4])}"
        + (f" and {len(group) - 4:,} more" if len(group) > 4 else "")
        for group in sorted(groups, key=lambda group: int(group[0]))[:MOST_NAMED]
    ]
    return counts, [*lines, *describe_duplicates(counts)]


def check_shard(task: CheckTask) -> Findings:
    """Read a shard once, then its index and planes; runs in a worker."""
    path = task.root / task.shard.name
    if not path.is_file():
        return Findings(faults=[f"{path} is missing"])
    check = _ShardCheck(task)
    faults: list[str] = []
    with TarStream(path, md5=True) as tar:
        try:
            # A sample is the members that stand together under one name before the first dot.
            for number, (key, members) in enumerate(groupby(tar, _key)):
                faults += [
                    f"{path}, sample {number} ({key}): {fault}"
                    for fault in check.sample(key, list(members))
                ]
        except DataError as error:
            faults.append(str(error))
        else:
            faults = [*_hash_faults(task.shard, path, tar, len(check.samples)), *faults]
            faults += _index_faults(task, check.samples)
    if task.planes:
        faults += _planes_faults(task)
    if len(faults) > MOST_NAMED:
        suffix = f"{path}: and {len(faults) - MOST_NAMED:,} more"
        faults = [*faults[:MOST_NAMED], suffix]
    check.findings.faults = faults
    return check.findings


class _ShardCheck:
    """Checks the samples of one shard in order, and remembers what the whole data set needs."""

    def __init__(self, task: CheckTask) -> None:
        self.task = task
        self.samples: list[Sample] = []
        self.findings = Findings()

    def sample(self, key: str, members: list[TarMember]) -> Iterator[str]:
        """Its faults, as what follows "the sample"."""
        kinds = [member.name.partition(".")[2] for member in members]
        if len(members) == len(MEMBERS):
            spans = [Member(member.offset, len(member.data)) for member in members]
            self.samples.append(Sample(key, *spans))
            findings = self.findings
            findings.keys.append(key)
            findings.labels.append(-1)
            findings.digests += UNKNOWN
            findings.largest_jpg = max(findings.largest_jpg, len(members[0].data))
        if kinds != list(MEMBERS):
            yield f"has the members {', '.join(kinds)}, not {', '.join(MEMBERS)}"
            return
        jpg, cls, notes = (member.data for member in members)
        yield from _jpeg_faults(jpg, self.task.size, keep_aspect=self.task.keep_aspect)
        yield from self._label_faults(cls)
        yield from self._metadata_faults(key, notes)

    def _label_faults(self, cls: bytes) -> Iterator[str]:
        wnids = self.task.wnids
        label = int(cls) if cls.isdigit() and cls.isascii() else -1
        if len(cls) != self.task.cls_width or not 0 <= label < len(wnids):
            yield f"has the label {cls[:20]!r}; there are {len(wnids)} classes"
        else:
            self.findings.labels[-1] = label

    def _metadata_faults(self, key: str, notes: bytes) -> Iterator[str]:
        try:
            metadata = msgspec.json.decode(notes, type=Metadata)
            if unknown := set(metadata.fixes.split()) - set(FIXES):
                raise ValueError(f"unknown fixes {sorted(unknown)}")
        except (ValueError, RecursionError) as error:
            yield f"has no JSON of {', '.join(Metadata.__struct_fields__)} ({error})"
            return
        self.findings.digests[-DIGEST_BYTES:] = bytes.fromhex(metadata.sha256)
        for fix in metadata.fixes.split():
            self.findings.fixes[fix].append(key)
        label = self.findings.labels[-1]
        if label >= 0 and metadata.wnid != self.task.wnids[label]:
            yield f"has the label of {self.task.wnids[label]} and the wnid {metadata.wnid!r}"


def _key(member: TarMember) -> str:
    return member.name.partition(".")[0]


def _hash_faults(shard: Shard, path: Path, tar: TarStream, samples: int) -> Iterator[str]:
    for name, expected, actual in (
        ("bytes", shard.bytes, tar.bytes),
        ("sha256", shard.sha256, tar.sha256),
        ("md5", shard.md5, tar.md5),
        ("samples", shard.samples, samples),
    ):
        if expected != actual:
            yield f"{path}: {name} is {actual}, the manifest says {expected}"


def _jpeg_faults(jpg: bytes, size: int, *, keep_aspect: bool) -> Iterator[str]:
    """Baseline, 4:2:0, three components, no EXIF, no ICC, of the size, and decodes."""
    markers = {marker for marker, _ in segments(jpg)}
    if BASELINE not in markers:
        yield "is not a baseline JPEG"
    if markers & {APP1, APP2}:
        yield "carries EXIF or an ICC profile"
    try:
        *sides, colours, sampling = simplejpeg.decode_jpeg_header(jpg)
        height, width = map(int, sides)
        fits = min(height, width) == size if keep_aspect else height == width == size
        if not fits or (colours, sampling) != ("YCbCr", "420"):
            expected = f"a shorter side of {size}" if keep_aspect else f"{size}x{size}"
            yield f"is {colours} {sampling} of {width}x{height}, not YCbCr 420 of {expected}"
        simplejpeg.decode_jpeg(jpg, "RGB")
    except ValueError as error:
        yield f"does not decode ({str(error).strip().rstrip('.')})"


def _index_faults(task: CheckTask, samples: list[Sample]) -> Iterator[str]:
    """The index must be, byte for byte, what the tar's headers give; else say where it differs."""
    path = task.root / task.shard.index
    if not path.is_file():
        yield f"{path} is missing"
        return
    data = path.read_bytes()
    if data == format_index(samples).encode():
        return
    try:
        listed = parse_index(data, path)
    except DataError as error:
        yield str(error)
        return
    if listed == samples:
        yield f"{path} has other names of members than the tar"
    if len(listed) != len(samples):
        yield f"{path} lists {len(listed)} samples, the tar has {len(samples)}"
    for line, (entry, sample) in enumerate(zip(listed, samples, strict=False), start=2):
        if entry != sample:
            yield f"{path}, line {line}: lists {entry}, the tar has {sample}"


def _planes_faults(task: CheckTask) -> Iterator[str]:
    """The hash in the header covers all planes and labels, and names the tar they are of."""
    try:
        with closing(PlanesFile(task.root, task.shard, task.size)) as file:
            file.check_body()
    except DataError as error:
        yield str(error)
