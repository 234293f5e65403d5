"""`alexprep cat`: one sample by its key, in a time that hardly grows with the data set.

The first look-up lists the samples of all shards, from the indexes, in ROOT/index/by-hash-*.npy:
the hash of a key, its shard and the offset of its JPEG, sorted; the file name has a hash of the
manifest. Later ones read some 20 entries and one place of one shard. Where ROOT cannot be written
to, the list is made anew each time.
"""

import hashlib
import io
import os
from bisect import bisect_left
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
    entries = _load_entries(root, shards)
    for key in _possible_keys(name):
        row = bisect_left(entries["key"], _hash(key))
        if row == len(entries) or int(entries["key"][row]) != _hash(key):
            continue
        _, shard, offset = (int(number) for number in entries[row])
        if shard >= len(shards) or not BLOCK <= offset < 1 << 63:
            raise DataError(f"{root / 'index'}/by-hash-*.npy is damaged. Remove it.")
        return _read(root / shards[shard], key, offset)
    raise DataError(
        f"{root} has no sample {name!r}. A key is the name of the source file without its "
        "extension, such as n01440764_10026."
    )


def _possible_keys(name: str) -> list[str]:
    """A key, or what has become of a file's name: without folders and ending, and made plain."""
    base = os.fsencode(name)
    keys = (key.decode() for key in (stem_key(base), stem_key(stem(base))))
    return list(dict.fromkeys((name, *keys)))


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
            f"{path} has no sample {key!r} at byte {offset}, as its index says. "
            f"Run `alexprep verify {path.parents[1]}`."
        )
    return SampleFiles(path.name, key, files["jpg"], files["cls"], files["json"])


def _hash(key: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "little"
    )


def _load_entries(root: Path, names: list[str]) -> NDArray[Any]:
    """ENTRY of every sample, sorted by the hash of its key."""
    stamp = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()[:16]
    path = root / "index" / f"by-hash-{stamp}.npy"
    if not path.is_file():
        entries, data = _list_keys(root, names), io.BytesIO()
        np.save(data, entries)
        try:
            write_whole(path, data.getvalue())
        except OSError:
            return entries
    try:
        entries = np.load(path, mmap_mode="r")
        if (entries.dtype, entries.ndim) != (ENTRY, 1):
            raise ValueError("it holds no table of keys")
    # NumPy parses the header of a file as an expression of Python's, without running it.
    except (ValueError, EOFError, SyntaxError, TokenError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove it.") from error
    return entries


def _list_keys(root: Path, names: list[str]) -> NDArray[Any]:
    rows: list[tuple[int, int, int]] = []
    for number, name in enumerate(names):
        path = root / "index" / f"{Path(name).stem}.idx"
        if not path.is_file():
            raise DataError(
                f"{path} is missing. Make it again with `alexprep index {root / name}`."
            )
        samples = parse_index(path.read_bytes(), path)
        rows += [(_hash(sample.key), number, sample.jpg.offset) for sample in samples]
    return np.array(sorted(rows), ENTRY)
