"""The data set on disk: one contract for the writer and for every reader.

    ROOT/train/<name>-train-000000.tar ...    tars only in the split folders
    ROOT/index/<name>-train-000000.idx ...    DALI index v1.2 of each tar
    ROOT/manifest.json                        written last: a folder with a manifest is finished
    ROOT/_info.json, wids-<split>.json        what timm and wids look for
    ROOT/synsets.txt                          wnid <TAB> names, in label order
    ROOT/stats.json, stats.npz, mean.png      once `alexprep stats` has run

Images are squares of `size` pixels (format version 1), or with config.keep_aspect whole, `size`
pixels on their shorter side (version 2).

A tar is USTAR without pax headers: regular files, uid and gid 0, no owner names, mode 0644, one
fixed mtime, names of at most 100 ASCII bytes. A sample is three members that stand together in this
order: KEY.jpg (baseline, 4:2:0, no EXIF, no ICC, three components), KEY.cls (the label in ASCII
digits, zero-padded to one width for the data set) and KEY.json (wnid, width, height and sha256 of
the source file, and "fixes": names of what was repaired, with spaces between them, "" for most;
text because HF datasets takes the type of a column from the first samples, and no type from an
empty list). KEY has no dot and is unique in the data set.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DataError

VERSION = 1
WHOLE_VERSION = 2  # of data sets that keep the aspect ratio, which readers of squares must refuse
MANIFEST = "manifest.json"
BLOCK = 512
MAX_JSON = 256 << 20  # bytes; the manifest of a data set that lists a million files is below
# Names go into paths and commands. SPLIT/NAME-SPLIT-dddddd.tar is what `alexprep shard` writes.
SHARD_NAME = re.compile(r"([A-Za-z0-9_][\w.-]*)/[A-Za-z0-9_][\w.-]*-\1-\d{6,}\.tar", re.ASCII)
MTIME = (
    1_349_049_600  # 2012-10-01, the month the ILSVRC2012 results came out; any constant would do
)
MEMBERS = ("jpg", "cls", "json")
# Offset, size and name of each member. 18 digits are below 2**63; nobody reads the later names.
INDEX_LINE = re.compile(
    rb"jpg (\d{1,18}) (\d{1,18}) ([^ ]*)\.jpg"
    rb" cls (\d{1,18}) (\d{1,18}) [^ ]+ json (\d{1,18}) (\d{1,18}) [^ ]+"
)
FIXES = (
    *("cmyk", "gray", "exif", "progressive", "16bit", "palette", "alpha", "damaged"),
    *("png", "gif", "bmp", "tiff", "webp", "ppm"),
)


Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Member(NamedTuple):
    """Where one file of a sample lies: byte offset of its data in the tar, and its length."""

    offset: int
    size: int


class Sample(NamedTuple):
    """The three files of one sample in a tar."""

    key: str
    jpg: Member
    cls: Member
    json: Member


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar: its path under ROOT, and what `alexprep verify` compares."""

    name: str
    samples: Count
    bytes: Count
    sha256: str
    md5: str

    @property
    def index(self) -> str:
        """Path of the DALI index under ROOT."""
        return f"index/{PurePosixPath(self.name).stem}.idx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The shards of a split in order, and how many samples each label has."""

    shards: tuple[Shard, ...]
    counts: tuple[Count, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A source file that is not in the data set, and why."""

    path: str
    sha256: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a data set holds and how it was made.

    `fixes` counts the repaired samples by kind; `mended` lists their keys where they are few.
    """

    version: int = VERSION
    name: str
    alexprep: str
    codec: Mapping[str, str]
    config: Mapping[str, Any]
    source: Mapping[str, Any]
    classes: tuple[tuple[str, str], ...]
    cls_width: Annotated[int, msgspec.Meta(ge=1, le=18)]
    size: Annotated[int, msgspec.Meta(ge=1, le=65_535)]  # no JPEG is larger
    largest_jpg: Count
    fixes: Mapping[str, int]
    left_out: tuple[Left, ...]
    splits: Mapping[str, Split]
    mended: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @classmethod
    def load(cls, root: Path) -> Self:
        """Read ROOT/manifest.json; DataError if it is missing, damaged or of another version."""
        return cls.from_json(_read_json(root), str(root / MANIFEST))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Check the fields of a manifest; DataError naming `where` it was read and the field."""
        if raw.get("version") not in (VERSION, WHOLE_VERSION):
            raise DataError(
                f"{where} has format version {raw.get('version')}; this alexprep reads "
                f"{VERSION} and {WHOLE_VERSION}. Make the data set again with `alexprep shard`."
            )
        try:
            manifest = msgspec.convert(raw, cls)
            manifest._check_names()
            if manifest.version != format_version(keep_aspect=manifest.keep_aspect):
                raise ValueError(
                    f"version {manifest.version} with config.keep_aspect {manifest.keep_aspect}"
                )
        except ValueError as error:  # msgspec's own is one; it names the field
            raise DataError(
                f"{where} is not a manifest of alexprep ({error}). "
                "Make the data set again with `alexprep shard`."
            ) from error
        return manifest

    def _check_names(self) -> None:
        """ValueError for a shard that lies elsewhere than in its split's folder."""
        for split, contents in self.splits.items():
            for shard in contents.shards:
                match = SHARD_NAME.fullmatch(shard.name)
                if match is None or match[1] != split:
                    raise ValueError(
                        f"a shard of {split!r} is called {shard.name!r}, not "
                        "SPLIT/NAME-SPLIT-dddddd.tar in letters, digits, '_', '.' and '-'"
                    )

    @property
    def shards(self) -> list[Shard]:
        """Those of all splits, in order."""
        return [shard for split in self.splits.values() for shard in split.shards]

    @property
    def samples(self) -> int:
        return sum(split.samples for split in self.splits.values())

    @property
    def keep_aspect(self) -> bool:
        """Whether images are whole, `size` pixels on their shorter side, not squares of it."""
        return self.config.get("keep_aspect") is True

    @property
    def dimensions(self) -> str:
        """What its images measure, for people: "256x256 pixels"."""
        if self.keep_aspect:
            return f"{self.size} pixels on the shorter side"
        return f"{self.size}x{self.size} pixels"

    @property
    def duplicates(self) -> Mapping[str, int]:
        """How many source files it holds more than once, by kind; {} if none, or not counted."""
        counts = self.source.get("duplicates")
        return cast(Mapping[str, int], counts) if isinstance(counts, dict) else {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is probably wrong with the source; in `source`, where old readers take any field."""
        return tuple(map(str, self.source.get("warnings", ())))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    def split(self, name: str, root: Path | str) -> Split:
        """The split called `name`; DataError naming the ones there are."""
        if name not in self.splits:
            raise DataError(
                f"{root} has no split {name!r}; it has {', '.join(sorted(self.splits))}."
            )
        return self.splits[name]


def _read_json(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder. Make a data set with `alexprep shard SOURCE {root}`."
        )
    if not path.is_file():
        raise DataError(
            f"{root} has no {MANIFEST}, so it is not a finished data set. "
            f"Make or finish it with `alexprep shard SOURCE {root}`."
        )
    return decode_object(path.read_bytes(), str(path), "Run `alexprep shard` again.")


def decode_object(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """A JSON object from anywhere; DataError that names it if it is none, or much too large."""
    if len(data) > MAX_JSON:
        raise DataError(f"{where} has {len(data)} bytes, at most {MAX_JSON} are read. {remedy}")
    try:
        # Not msgspec's decoder: it refuses "\\udcff", as bytes of a file name that is not UTF-8
        # stand in the lists of a manifest.
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}). {remedy}") from error
    if not isinstance(raw, dict):
        raise DataError(f"{where} holds no JSON object. {remedy}")
    return cast(dict[str, Any], raw)


def format_version(*, keep_aspect: bool) -> int:
    """Of a data set of squares, or of whole images."""
    return WHOLE_VERSION if keep_aspect else VERSION


def most_index_bytes(samples: int) -> int:
    """An upper bound of the length of an index, for readers that do not trust where it is from."""
    return 512 * (samples + 1)  # a line is three names of at most 100 bytes and six numbers


def cls_width(classes: int) -> int:
    """Digits of a label: 4 up to 9,999 classes, 8 above (ImageNet Fall 2009 has 10,184)."""
    return 4 if classes <= 9_999 else 8


def shard_name(name: str, split: str, number: int) -> str:
    """Path of a tar under ROOT."""
    return f"{split}/{name}-{split}-{number:06d}.tar"


def padded(size: int) -> int:
    """Bytes that a file of `size` bytes takes in a tar, without its header."""
    return -(-size // BLOCK) * BLOCK


def format_index(samples: Iterable[Sample]) -> str:
    """The text of a DALI index, version 1.2 (DALI tools/wds2idx.py)."""
    lines = [
        " ".join(
            f"{kind} {member.offset} {member.size} {sample.key}.{kind}"
            for kind, member in zip(MEMBERS, sample[1:], strict=True)
        )
        for sample in samples
    ]
    return "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n"


def parse_index(data: bytes, path: Path) -> list[Sample]:
    """Samples of a DALI index that `format_index` wrote; DataError names the line at fault."""
    remedy = "Run `alexprep verify` and `alexprep shard` again."
    keys, numbers = _parse_lines(data, str(path), remedy)
    return [
        Sample(key.decode("utf-8", "replace"), *(Member(*pair) for pair in members))
        for key, members in zip(keys, numbers.tolist(), strict=True)
    ]


class ShardIndex(NamedTuple):
    """Where the JPEGs of one shard lie, in tar order: 30 bytes a sample.

    keys: bytes (N,); offsets, sizes: in bytes, (N,). The label follows each JPEG in the tar.
    """

    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def key(self, row: int) -> str:
        return self.keys[row].decode("ascii", "replace")

    @classmethod
    def parse(cls, data: bytes, shard: Shard, where: str) -> Self:
        """Read a DALI index; DataError if it is not that of `shard`."""
        remedy = f"Make it again with `alexprep index {shard.name}`."
        keys, numbers = _parse_lines(data, where, remedy)
        if len(keys) != shard.samples:
            raise DataError(
                f"{where} has {len(keys)} lines, the manifest gives {shard.name} {shard.samples} "
                f"samples. {remedy}"
            )
        offsets, sizes = numbers[..., 0], numbers[..., 1]
        # Every member of a tar follows from the one before. A line that stands twice or elsewhere
        # would give one image twice and another never, and no hash of a shard finds that.
        ends = (offsets + -(-sizes // BLOCK) * BLOCK).ravel()
        starts = np.concatenate([[BLOCK], ends[:-1] + BLOCK])[: len(ends)].reshape(-1, 3)
        wrong = (sizes[:, 0] <= 0) | (ends[2::3] > shard.bytes) | (starts != offsets).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            line = data.splitlines()[row + 1][:80].decode("ascii", "replace")
            raise DataError(
                f"{where}, line {row + 2}: {line!r} is not the next sample of {shard.name} "
                f"({shard.bytes} bytes). {remedy}"
            )
        # Copies: views would keep the numbers of the two other members in memory.
        return cls(np.array(keys, np.bytes_), offsets[:, 0].copy(), sizes[:, 0].copy())


def _parse_lines(data: bytes, where: str, remedy: str) -> tuple[list[bytes], NDArray[np.int64]]:
    """The key of each line, and offset and size of its three members: (N, 3, 2)."""
    head, *lines = data.splitlines() or [b""]
    if head != b"v1.2 %d" % len(lines):
        raise DataError(
            f"{where} begins with {head[:40].decode('ascii', 'replace')!r} and has {len(lines)} "
            f"lines; expected 'v1.2 {len(lines)}'. {remedy}"
        )
    keys: list[bytes] = []
    numbers: list[tuple[bytes, ...]] = []
    for number, line in enumerate(lines, start=2):
        match = INDEX_LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{where}, line {number}: expected jpg, cls and json, each with offset, size and "
                f"name, got {line[:80].decode('ascii', 'replace')!r}. {remedy}"
            )
        key, *digits = match.group(3, 1, 2, 4, 5, 6, 7)
        keys.append(key)
        numbers.append(tuple(digits))
    return keys, np.array(numbers, np.bytes_).astype(np.int64).reshape(-1, 3, 2)
