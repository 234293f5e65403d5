"""Check one shard against everything that is said of it: manifest, index, contract."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import simplejpeg  # pyright: ignore[reportMissingTypeStubs]

from alexprep.tar import TarMember, TarStream
from pipelines.errors import DataError
from pipelines.format import FIXES, MEMBERS, Member, Sample, Shard, format_index, parse_index

MOST_NAMED = 20
BASELINE, SCAN, APP1, APP2 = 0xC0, 0xDA, 0xE1, 0xE2
ABOUT = {"wnid": str, "width": int, "height": int, "sha256": str, "fixes": str}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckTask:
    """One shard for a worker, and what its samples must agree with."""

    root: Path
    shard: Shard
    size: int
    wnids: tuple[str, ...]
    cls_width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What one shard holds, and everything that is wrong with it, in the order it was met."""

    samples: int
    keys: tuple[str, ...]
    labels: Mapping[int, int]
    fixes: Mapping[str, int]
    largest_jpg: int
    faults: tuple[str, ...]


def check_shard(task: CheckTask) -> Findings:
    """Read a shard once: hashes, members, labels, JPEGs; then its index. Runs in a worker."""
    path = task.root / task.shard.name
    faults: list[str] = []
    samples: list[Sample] = []
    labels, fixes = Counter[int](), Counter[str]()
    largest = 0
    if not path.is_file():
        return _nothing(f"{path} is missing")
    with TarStream(path, md5=True) as tar:
        try:
            for number, members in enumerate(_triples(tar)):
                key = members[0].name.partition(".")[0]
                complaints = list(_sample_faults(key, members, task, labels, fixes))
                faults += [f"{path}, sample {number} ({key}): {text}" for text in complaints]
                places = [Member(member.offset, len(member.data)) for member in members]
                if len(places) == len(MEMBERS):
                    samples.append(Sample(key, *places))
                    largest = max(largest, len(members[0].data))
        except DataError as error:
            faults.append(str(error))
        else:
            faults = [*_file_faults(task.shard, path, tar, len(samples)), *faults]
            faults += _index_faults(task, samples)
    more = len(faults) - MOST_NAMED
    if more > 0:
        faults = [*faults[:MOST_NAMED], f"{path}: and {more:,} more"]
    return Findings(
        samples=len(samples),
        keys=tuple(sample.key for sample in samples),
        labels=labels,
        fixes=fixes,
        largest_jpg=largest,
        faults=tuple(faults),
    )


def _nothing(fault: str) -> Findings:
    return Findings(samples=0, keys=(), labels={}, fixes={}, largest_jpg=0, faults=(fault,))


def _triples(tar: TarStream) -> Iterator[list[TarMember]]:
    """Members in groups of a sample: a new one begins where the name before the dot changes."""
    group: list[TarMember] = []
    for member in tar:
        if group and member.name.partition(".")[0] != group[0].name.partition(".")[0]:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _file_faults(shard: Shard, path: Path, tar: TarStream, samples: int) -> Iterator[str]:
    for what, wanted, got in (
        ("bytes", shard.bytes, tar.bytes),
        ("sha256", shard.sha256, tar.sha256),
        ("md5", shard.md5, tar.md5),
        ("samples", shard.samples, samples),
    ):
        if wanted != got:
            yield f"{path}: {what} is {got}, the manifest says {wanted}"


def _sample_faults(
    key: str,
    members: list[TarMember],
    task: CheckTask,
    labels: Counter[int],
    fixes: Counter[str],
) -> Iterator[str]:
    kinds = [member.name.partition(".")[2] for member in members]
    if kinds != list(MEMBERS):
        yield f"has the members {', '.join(kinds)}, not {', '.join(MEMBERS)}"
        return
    jpg, cls, about = (member.data for member in members)
    yield from _jpeg_faults(jpg, task.size)
    label = int(cls) if cls.isdigit() and cls.isascii() else -1
    if len(cls) != task.cls_width or not 0 <= label < len(task.wnids):
        yield f"has the label {cls[:20]!r}; there are {len(task.wnids)} classes"
        return
    labels[label] += 1
    raw = _about(about)
    if raw is None:
        yield f"has json that is not {', '.join(ABOUT)}: {about[:80]!r}"
        return
    fixes.update(raw["fixes"].split())
    if raw["wnid"] != task.wnids[label]:
        yield f"has the label of {task.wnids[label]} and the wnid {raw['wnid']!r}"


def _about(data: bytes) -> dict[str, Any] | None:
    """The json of a sample, if it has the fields the contract gives it."""
    try:
        raw: Any = json.loads(data)
    except ValueError:
        return None
    if not isinstance(raw, dict):
        return None
    fields = cast(dict[str, Any], raw)
    typed = fields.keys() == ABOUT.keys() and all(
        isinstance(fields[name], kind) for name, kind in ABOUT.items()
    )
    return fields if typed and all(fix in FIXES for fix in fields["fixes"].split()) else None


def _jpeg_faults(jpg: bytes, size: int) -> Iterator[str]:
    """Baseline, 4:2:0, three components, no EXIF, no ICC, of the size, and decodes."""
    found = set(_markers(jpg))
    if BASELINE not in found:
        yield "is not a baseline JPEG"
    if found & {APP1, APP2}:
        yield "carries EXIF or an ICC profile"
    try:
        height, width, colours, sampling = simplejpeg.decode_jpeg_header(jpg)
        if (height, width, colours, sampling) != (size, size, "YCbCr", "420"):
            yield (f"is {colours} {sampling} of {width}x{height}, not YCbCr 420 of {size}x{size}")
        simplejpeg.decode_jpeg(jpg, "RGB")
    except ValueError as error:
        yield f"does not decode ({str(error).strip().rstrip('.')})"


def _markers(jpg: bytes) -> Iterator[int]:
    """The markers from the beginning to the first scan."""
    at = 2
    while at + 4 <= len(jpg) and jpg[at] == 0xFF and jpg[at + 1] != SCAN:
        yield jpg[at + 1]
        at += 2 + int.from_bytes(jpg[at + 2 : at + 4], "big")


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
        listed = parse_index(data.decode(errors="replace"), path)
    except DataError as error:
        yield str(error)
        return
    if listed == samples:
        yield f"{path} names members otherwise than the tar does"
    if len(listed) != len(samples):
        yield f"{path} lists {len(listed)} samples, the tar has {len(samples)}"
    for line, (entry, sample) in enumerate(zip(listed, samples, strict=False), start=2):
        if entry != sample:
            yield f"{path}, line {line}: lists {entry}, the tar has {sample}"
