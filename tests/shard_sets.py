"""The small data set that tests of sharding make, and what they read back: as tarfile sees it."""

import json
import tarfile

from alexprep.dataset.shard import RunOptions, ShardConfig, shard

SMALL = ShardConfig(size=48, shards={"train": 3, "validation": 2})
HERE = RunOptions(workers=1)


def make_small(source, root):
    """A finished data set: its folder and manifest."""
    return root, shard(source, root, SMALL, HERE)


def samples_of(path):
    """[(key, jpg, cls, json)] of a tar, as tarfile reads it."""
    with tarfile.open(path) as archive:
        files = [(member.name, archive.extractfile(member).read()) for member in archive]
    rows = []
    for (jpg, image), (cls, label), (notes, about) in zip(files[::3], files[1::3], files[2::3]):  # noqa: B905
        key = jpg.removesuffix(".jpg")
        assert (cls, notes) == (f"{key}.cls", f"{key}.json")
        rows.append((key, image, label, json.loads(about)))
    return rows


def all_samples(root, split):
    return [row for path in sorted((root / split).glob("*.tar")) for row in samples_of(path)]
