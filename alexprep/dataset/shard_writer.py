"""Write one shard: read, encode, append, index, publish, and record it.

A shard is a function of its task alone. Its record, published after it, tells the run that resumes
an interrupted one that the shard is finished, and what the manifest has to say about it.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from alexprep.dataset.codec import CODEC, Encoded, ImageError, encode
from alexprep.dataset.duplicates import UNKNOWN
from alexprep.dataset.shard_plan import ShardConfig, ShardTask
from alexprep.dataset.store import RECORDS, LocalStore, Store, open_store, write_bytes
from alexprep.errors import PrepareError
from alexprep.schema import convert
from alexprep.sources.items import Items, Unreadable, text
from alexprep.tar import TarWriter, scan_tar
from pipelines.format import Member, Sample, Shard, format_index
from pipelines.prefetch import prefetch


class Fault(NamedTuple):
    """A file that cannot be encoded: where, its hash, why, and the label it would have had."""

    path: str
    sha256: str
    reason: str
    label: int


class Outcome(NamedTuple):
    """The encoded image of one source file, or None and the reason."""

    encoded: Encoded | None
    sha256: str
    source_bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What came of one task. `shard` is None if faults kept it from being published.

    `mended` holds the keys of samples by what was fixed in them, `digests` the SHA-256 of every
    source file of the task in base 64, zeros for those at fault.
    """

    shard: Shard | None
    largest_jpg: int
    source_bytes: int
    mended: dict[str, list[str]]
    faults: list[Fault]
    digests: str = ""  # records of earlier releases have none

    def to_bytes(self) -> bytes:
        """A line of JSON and its CRC-32: a damaged record must not reach the manifest."""
        body = json.dumps(asdict(self)).encode()
        return b"%b\n%08x" % (body, zlib.crc32(body))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "ShardRecord | None":
        """A record read back; None if it is damaged, so that its shard is written again."""
        body, separator, crc = raw.partition(b"\n")
        if separator and crc != b"%08x" % zlib.crc32(body):  # the first release wrote no CRC
            return None
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
            fields.pop("found", None)  # which the first release wrote, too
            return convert(fields, cls)
        except (ValueError, RecursionError):
            return None


def record_name(shard: str) -> str:
    """Path of a shard's record under the store's root."""
    return f"{RECORDS}/{Path(shard).stem}.json"


def write_shard(task: ShardTask) -> ShardRecord:
    """Write a shard, unless an earlier run has. Runs in a worker, on any machine."""
    store = open_store(task.out)
    _check_holder(store, task)
    differences = [
        f"{name} {CODEC[name]}, not {version}"
        for name, version in task.codec.items()
        if CODEC[name] != version
    ]
    if differences:
        raise PrepareError(
            f"the codec is {', '.join(differences)}: it would write other bytes. Install the same "
            "versions as on the machine that runs `alexprep shard`, and run it again."
        )
    record = find_shard(store, task.name, task.known)
    return record or publish_shard(store, task, outcomes(task.samples.items, task.config))


def _check_holder(store: Store, task: ShardTask) -> None:
    """A worker of a cluster must see the folder of the run, and write for no run that has ended."""
    if task.holder != (store.holder() if task.holder else ""):
        raise PrepareError(
            f"{task.out} is not the folder that the run writes to, or that run has ended. Mount "
            "the same folder there on all workers, and run the same command again."
        )


def outcomes(items: Items, config: ShardConfig) -> Iterator[Outcome]:
    """Read and encode items in order; a thread reads and hashes the next one meanwhile."""
    with closing(items.read()) as files:

        def read_next(_: int) -> tuple[bytes | Unreadable, str]:
            data = next(files)
            return data, "" if isinstance(data, Unreadable) else hashlib.sha256(data).hexdigest()

        with closing(prefetch(range(len(items)), read_next, workers=1, depth=1)) as contents:
            for data, sha256 in contents:
                yield outcome(data, sha256, config)


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
            keep_aspect=config.keep_aspect,
        )
    except ImageError as error:
        return Outcome(None, sha256, len(data), str(error))
    return Outcome(encoded, sha256, len(data), "")


def publish_shard(store: Store, task: ShardTask, results: Iterable[Outcome]) -> ShardRecord:
    """Write a shard from the outcomes of its samples and make it visible, if it may be."""
    with store.staging() as folder:
        staged, index = folder / Path(task.name).name, folder / "index"
        try:
            with staged.open("wb", buffering=0) as file:
                record, samples = _write(file, task, results)
            index.write_text(format_index(samples))
            if record.shard is None:
                return record
            _check_holder(store, task)
            # In this order: a visible tar has its index, and a record has both.
            store.publish(index, record.shard.index)
            store.publish(staged, task.name)
            write_bytes(store, record_name(task.name), record.to_bytes())
        except OSError as error:
            raise PrepareError(
                f"Cannot write {task.name} to {task.out}: {error.strerror or error}. Finished "
                "shards are kept: free some space there and run the same command again."
            ) from error
    return record


def _write(
    file: IO[bytes], task: ShardTask, results: Iterable[Outcome]
) -> tuple[ShardRecord, list[Sample]]:
    index = list[Sample]()
    largest = source_bytes = 0
    mended: dict[str, list[str]] = {}
    faults: list[Fault] = []
    digests = bytearray()
    with ThreadPoolExecutor(1) as hash_pool:
        tar = TarWriter(file, hash_pool)
        for number, result in enumerate(results):
            label = int(task.samples.label[number])
            source_bytes += result.source_bytes
            # One for every item, at fault or not: they are told apart by their position in the
            # plan.
            digests += bytes.fromhex(result.sha256) if result.encoded else UNKNOWN
            if result.encoded is None:
                path = task.samples.items.path(number)
                if task.holder and not result.sha256:
                    # Another worker may be able to: which files are left out must not depend on
                    # which worker does a shard.
                    raise PrepareError(
                        f"{path} {result.reason}. Give the workers' user the right to read it, or "
                        "run without --scheduler."
                    )
                faults.append(Fault(path, result.sha256, result.reason, label))
                continue
            key = text(task.samples.key[number])
            for fix in result.encoded.fixes:
                mended.setdefault(fix, []).append(key)
            largest = max(largest, len(result.encoded.jpg))
            index.append(tar.add(key, _members(result.encoded, label, result.sha256, task)))
        shard = tar.close(task.name) if index and (task.skip or not faults) else None
    record = ShardRecord(
        shard=shard,
        largest_jpg=largest,
        source_bytes=source_bytes,
        mended=mended,
        faults=faults,
        digests=base64.b64encode(digests).decode(),
    )
    return record, index


def _members(encoded: Encoded, label: int, sha256: str, task: ShardTask) -> tuple[bytes, ...]:
    metadata = {
        "wnid": task.wnids[label],
        "width": encoded.width,
        "height": encoded.height,
        "sha256": sha256,
        "fixes": " ".join(encoded.fixes),
    }
    return encoded.jpg, b"%0*d" % (task.cls_width, label), json.dumps(metadata).encode()


def find_shard(store: Store, name: str, known: Shard | None) -> ShardRecord | None:
    """The record of a shard that an earlier run published, if the shard is unchanged.

    Without a record, `known` (from the manifest of a finished data set) says what it was.
    """
    raw = store.read(record_name(name))
    record = ShardRecord.from_bytes(raw) if raw is not None else None
    if record is None and known is not None:
        record = ShardRecord(shard=known, largest_jpg=0, source_bytes=0, mended={}, faults=[])
    if record is None or record.shard is None or not _is_unchanged(store, record.shard):
        return None
    return record


def _is_unchanged(store: Store, shard: Shard) -> bool:
    """Whether tar and index are as published; by size where hashing them means a download."""
    if store.size(shard.name) != shard.bytes or store.size(shard.index) is None:
        return False
    if not isinstance(store, LocalStore):
        return True
    if store.sha256(shard.name) != shard.sha256:
        return False
    return store.read(shard.index) == tar_index(store.root / shard.name).encode()


def tar_index(path: Path) -> str:
    """The DALI index of a tar of ours, from its headers."""
    with path.open("rb") as file:
        entries = scan_tar(path, file.fileno())
    members = [Member(entry.offset, entry.size) for entry in entries]
    keys = [entry.name.decode().removesuffix(".jpg") for entry in entries[::3]]
    return format_index(
        Sample(key, *members[3 * row : 3 * row + 3]) for row, key in enumerate(keys)
    )
