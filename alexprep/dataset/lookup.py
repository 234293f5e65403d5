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
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexprep.dataset.checksums import hash_file
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
    shards = [shard.name for shard in manifest.shards]
    keys = _possible_keys(name)
    path = root / "index" / f"by-hash-{hash_file(root / MANIFEST)[:16]}.npy"
    stored = _load_entries(path)
    # What is found is right: the tar has the key. What is not may be due to a changed bit, for to
    # check a sum over the list would take as long as to read it.
    with suppress(DataError):
        sample = None if stored is None else _read_first(root, shards, stored, keys)
        if sample is not None:
            return sample
    entries = _list_keys(root, shards)
    if stored is None or not np.array_equal(stored, entries):
        _store(path, entries)
    sample = _read_first(root, shards, entries, keys)
    if sample is not None:
        return sample
    raise DataError(
        f"{root} has no sample {name!r}. A key is the name of the source file without its "
        "extension, such as n01440764_10026."
    )


def _read_first(
    root: Path, shards: list[str], entries: NDArray[Any], keys: list[str]
) -> SampleFiles | None:
    """The first of `keys` that is listed; DataError if its shard does not have it there."""
    for key in keys:
        row = bisect_left(entries["key"], _hash(key))
        if row == len(entries) or int(entries["key"][row]) != _hash(key):
            continue
        _, shard, offset = (int(number) for number in entries[row])
        if shard >= len(shards) or not BLOCK <= offset < 1 << 63:
            raise DataError(f"{root / 'index'}/by-hash-*.npy is damaged.")
        return _read(root / shards[shard], key, offset)
    return None


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


def _load_entries(path: Path) -> NDArray[Any] | None:
    """ENTRY of every sample, sorted by the hash of its key; None if the file is none of these."""
    try:
        entries = np.load(path, mmap_mode="r")
    # NumPy parses the header of a file as an expression of Python's, without running it.
    except (OSError, ValueError, EOFError, SyntaxError, TokenError, TypeError, OverflowError):
        return None
    return entries if (entries.dtype, entries.ndim) == (ENTRY, 1) else None


def _store(path: Path, entries: NDArray[Any]) -> None:
    data = io.BytesIO()
    np.save(data, entries)
    with suppress(OSError):  # no right to write, or no room: then it is made anew each time
        write_whole(path, data.getvalue())


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
