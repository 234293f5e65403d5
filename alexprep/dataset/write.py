"""Write one shard: read, encode, append, index, publish, and report.

A shard is a function of its task alone. Its record, published after it, is what an interrupted run
knows it by.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from alexprep.dataset.codec import Encoded, ImageError, encode
from alexprep.dataset.plan import ShardConfig, ShardTask
from alexprep.dataset.target import STATE, LocalTarget, Target, open_target, write_bytes
from alexprep.errors import PrepareError
from alexprep.sources.items import Items, Unreadable, text
from alexprep.tar import TarWriter, scan_tar
from pipelines.format import Member, Sample, Shard, format_index

RECORDS = f"{STATE}/records"


class Fault(NamedTuple):
    """A file that is no whole image: where, its hash, why, and the label it would have had."""

    path: str
    sha256: str
    reason: str
    label: int


class Outcome(NamedTuple):
    """What became of one source file: its square, or None and the reason."""

    encoded: Encoded | None
    sha256: str
    source_bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What became of one task. `shard` is None if faults kept it from being published.

    `mended` holds the keys of samples by what was mended; `found`: an earlier run had written it.
    """

    shard: Shard | None
    largest_jpg: int
    source_bytes: int
    mended: dict[str, list[str]]
    faults: list[Fault]
    found: bool = False

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Record | None":
        """A record read back; None if it is damaged, so that its shard is written again."""
        try:
            fields: dict[str, Any] = json.loads(raw) | {"found": True}
            fields["shard"] = Shard(**fields["shard"])
            fields["faults"] = [Fault(*fault) for fault in fields["faults"]]
            return cls(**fields)
        except (ValueError, TypeError, KeyError):
            return None


def record_name(shard: str) -> str:
    """Path of a shard's record under the target's root."""
    return f"{RECORDS}/{Path(shard).stem}.json"


def write_shard(task: ShardTask) -> Record:
    """Do one task, or find that it has been done. Runs in a worker, on any machine."""
    target = open_target(task.out)
    found = find_shard(target, task.name, task.known)
    return found or publish_shard(target, task, outcomes(task.samples.items, task.config))


def outcomes(items: Items, config: ShardConfig) -> Iterator[Outcome]:
    """Read and encode items in order."""
    with closing(items.read()) as files:
        for data, sha256 in hashed(files):
            yield outcome(data, sha256, config)


def hashed(files: Iterable[bytes | Unreadable]) -> Iterator[tuple[bytes | Unreadable, str]]:
    """Each file with its sha256: a thread reads and hashes the next while one is worked on."""
    rest = iter(files)

    def following() -> tuple[bytes | Unreadable, str] | None:
        data = next(rest, None)
        if data is None:
            return None
        return data, "" if isinstance(data, Unreadable) else hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(1) as aside:
        coming = aside.submit(following)
        while (file := coming.result()) is not None:
            coming = aside.submit(following)
            yield file


def outcome(data: bytes | Unreadable, sha256: str, config: ShardConfig) -> Outcome:
    """Encode one source file, or say why it cannot be."""
    if isinstance(data, Unreadable):
        return Outcome(None, sha256, 0, data.reason)
    try:
        encoded = encode(
            data,
            size=config.size,
            quality=config.quality,
            apply_orientation=config.apply_orientation,
        )
    except ImageError as error:
        return Outcome(None, sha256, len(data), str(error))
    return Outcome(encoded, sha256, len(data), "")


def publish_shard(target: Target, task: ShardTask, results: Iterable[Outcome]) -> Record:
    """Write a shard from the outcomes of its samples and make it visible, if it may be."""
    with target.staging() as folder:
        staged, index = folder / Path(task.name).name, folder / "index"
        try:
            with staged.open("wb", buffering=0) as file:
                record, samples = _write(file, task, results)
            index.write_text(format_index(samples))
            if record.shard is None:
                return record
            target.publish(index, record.shard.index)
            target.publish(staged, task.name)
            write_bytes(target, record_name(task.name), record.to_json())
        except OSError as error:
            raise PrepareError(
                f"Cannot write {task.name} to {task.out}: {error.strerror or error}. Finished "
                "shards are kept: make room there and run the same command again."
            ) from error
    return record


def _write(
    file: IO[bytes], task: ShardTask, results: Iterable[Outcome]
) -> tuple[Record, list[Sample]]:
    index = list[Sample]()
    largest = source_bytes = 0
    mended: dict[str, list[str]] = {}
    faults: list[Fault] = []
    with ThreadPoolExecutor(1) as aside:
        tar = TarWriter(file, aside)
        for place, result in enumerate(results):
            label = int(task.samples.label[place])
            source_bytes += result.source_bytes
            if result.encoded is None:
                path = task.samples.items.path(place)
                faults.append(Fault(path, result.sha256, result.reason, label))
                continue
            key = text(task.samples.key[place])
            for fix in result.encoded.fixes:
                mended.setdefault(fix, []).append(key)
            largest = max(largest, len(result.encoded.jpg))
            index.append(tar.add(key, _members(result.encoded, label, result.sha256, task)))
        shard = tar.close(task.name) if index and (task.skip or not faults) else None
    record = Record(
        shard=shard,
        largest_jpg=largest,
        source_bytes=source_bytes,
        mended=mended,
        faults=faults,
    )
    return record, index


def _members(encoded: Encoded, label: int, sha256: str, task: ShardTask) -> tuple[bytes, ...]:
    about = {
        "wnid": task.wnids[label],
        "width": encoded.width,
        "height": encoded.height,
        "sha256": sha256,
        "fixes": " ".join(encoded.fixes),
    }
    return encoded.jpg, b"%0*d" % (task.cls_width, label), json.dumps(about).encode()


def find_shard(target: Target, name: str, known: Shard | None) -> Record | None:
    """The record of a shard that an earlier run published, if the shard is as it was then.

    Without a record, `known` (from the manifest of a finished data set) says how it was.
    """
    raw = target.read(record_name(name))
    record = Record.from_json(raw) if raw is not None else None
    if record is None and known is not None:
        record = Record(
            shard=known, largest_jpg=0, source_bytes=0, mended={}, faults=[], found=True
        )
    if record is None or record.shard is None or not _is_whole(target, record.shard):
        return None
    return record


def _is_whole(target: Target, shard: Shard) -> bool:
    """Whether tar and index are what was published; by size where hashing means a download."""
    if target.size(shard.name) != shard.bytes or target.size(shard.index) is None:
        return False
    if not isinstance(target, LocalTarget):
        return True
    if target.sha256(shard.name) != shard.sha256:
        return False
    return target.read(shard.index) == tar_index(target.root / shard.name).encode()


def tar_index(path: Path) -> str:
    """The DALI index of a tar of ours, from its headers."""
    with path.open("rb") as file:
        entries = scan_tar(path, file.fileno())
    members = [Member(entry.offset, entry.size) for entry in entries]
    keys = [entry.name.decode().removesuffix(".jpg") for entry in entries[::3]]
    return format_index(
        Sample(key, *members[3 * place : 3 * place + 3]) for place, key in enumerate(keys)
    )
