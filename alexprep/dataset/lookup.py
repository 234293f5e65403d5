"""`alexprep cat`: one sample by its key, in a time that does not grow with the data set.

The first look-up lists the keys of all shards, from the indexes, in two arrays beside them:

    ROOT/index/keys-<hash of the manifest>.npy     hash of the key, shard, offset; by bucket
    ROOT/index/buckets-<hash of the manifest>.npy  where each bucket begins

After that a look-up reads one bucket of about four entries and one place of one shard. Where ROOT
cannot be written to, the arrays are made anew each time.
"""

import hashlib
import io
import os
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.sources.content import stem
from alexprep.sources.listing import stem_key
from alexprep.tar import TarStream
from pipelines.atomic import write_whole
from pipelines.errors import DataError
from pipelines.format import BLOCK, MANIFEST, Manifest, parse_index

ENTRY = np.dtype([("key", "<u8"), ("shard", "<u4"), ("offset", "<u8")])
A_BUCKET = 4
Table = tuple[NDArray[Any], NDArray[np.uint32]]


class SampleFiles(NamedTuple):
    """One sample: where it is, and the content of its three files."""

    shard: str
    key: str
    jpg: bytes
    cls: bytes
    json: bytes


def read_sample(root: Path, name: str) -> SampleFiles:
    """The sample of a key, or of the source file that it was made from.

    DataError if there is none, or if its shard is not as indexed.
    """
    manifest = Manifest.load(root)
    shards = [shard.name for split in manifest.splits.values() for shard in split.shards]
    table = _table(root, shards)
    for key in _possible_keys(name):
        entry = _find(table, key)
        if entry is None:
            continue
        shard, offset = entry
        if shard >= len(shards) or not BLOCK <= offset < 1 << 63:
            raise DataError(f"{root / 'index'}/keys-*.npy is damaged. Remove it.")
        return _read(root / shards[shard], key, offset)
    raise DataError(
        f"{root} has no sample {name!r}. A key is the name of the source file without its ending, "
        "as n01440764_10026."
    )


def _possible_keys(name: str) -> list[str]:
    """A key, or what has become of a file's name: without folders and ending, and made plain."""
    base = os.fsencode(name)
    keys = (key.decode() for key in (stem_key(base), stem_key(stem(base))))
    return list(dict.fromkeys((name, *keys)))


def _find(table: Table, key: str) -> tuple[int, int] | None:
    """Number of the shard, and offset of the JPEG in it."""
    entries, begins = table
    number = _hash(key)
    bucket = number % (len(begins) - 1)
    for entry in entries[begins[bucket] : begins[bucket + 1]]:
        if int(entry["key"]) == number:
            return int(entry["shard"]), int(entry["offset"])
    return None


def _read(path: Path, key: str, offset: int) -> SampleFiles:
    """The members of `key`, the first of which has its data at `offset`."""
    files: dict[str, bytes] = {}
    with TarStream(path, begin=offset - BLOCK) as tar:
        for member in tar:
            name, _, kind = member.name.partition(".")
            if name != key:
                break
            files[kind] = member.data
    if files.keys() != {"jpg", "cls", "json"}:
        raise DataError(
            f"{path} has no sample {key!r} at byte {offset}, where its index has it. "
            f"Run `alexprep verify {path.parents[1]}`."
        )
    return SampleFiles(path.name, key, files["jpg"], files["cls"], files["json"])


def _hash(key: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "little"
    )


def _table(root: Path, names: list[str]) -> Table:
    stamp = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()[:16]
    keys, buckets = (root / "index" / f"{kind}-{stamp}.npy" for kind in ("keys", "buckets"))
    if not (keys.is_file() and buckets.is_file()):
        table = _list_keys(root, names)
        try:
            for path, array in zip((keys, buckets), table, strict=True):
                _write(path, array)
        except OSError:
            return table
    try:
        entries, begins = (np.load(path, mmap_mode="r") for path in (keys, buckets))
        if (entries.dtype, entries.ndim) != (ENTRY, 1) or len(begins) < 2:
            raise ValueError("it holds no table of keys")
        if (begins.dtype, begins.ndim) != (np.uint32, 1):
            raise ValueError("it holds no buckets")
    # NumPy parses the header of a file as an expression of Python's, without running it.
    except (ValueError, EOFError, SyntaxError, TokenError, TypeError, OverflowError) as error:
        raise DataError(f"{keys} or {buckets} is damaged ({error}). Remove both.") from error
    return entries, begins


def _list_keys(root: Path, names: list[str]) -> Table:
    rows: list[tuple[int, int, int]] = []
    for number, name in enumerate(names):
        path = root / "index" / f"{Path(name).stem}.idx"
        if not path.is_file():
            raise DataError(
                f"{path} is missing. Make it again with `alexprep index {root / name}`."
            )
        samples = parse_index(path.read_bytes(), path)
        rows += [(_hash(sample.key), number, sample.jpg.offset) for sample in samples]
    entries = np.array(rows, ENTRY)
    buckets = max(1, len(rows) // A_BUCKET)
    bucket = entries["key"] % np.uint64(buckets)
    order = np.argsort(bucket, kind="stable")
    begins = np.searchsorted(bucket[order], np.arange(buckets + 1, dtype=np.uint64))
    return entries[order], begins.astype(np.uint32)


def _write(path: Path, array: NDArray[Any]) -> None:
    data = io.BytesIO()
    np.save(data, array)
    write_whole(path, data.getvalue())
