import json

import numpy as np
import pytest

from alexprep.dataset.lookup import read_sample
from pipelines.errors import DataError
from tests.tarsets import drawn_items, write_dataset


@pytest.fixture(scope="module")
def items():
    return drawn_items(np.random.default_rng(5), 40, size=32)


@pytest.fixture
def root(tmp_path, items):
    splits = {"train": items[:30], "validation": items[30:]}
    return write_dataset(tmp_path / "set", splits, size=32, shards=3)


def test_every_key_brings_out_its_own_sample(root, items):
    for item in items:
        found = read_sample(root, item.key)
        assert (found.key, found.jpg, found.cls) == (item.key, item.jpg, b"%04d" % item.label)
        assert json.loads(found.json)["wnid"] == f"n{item.label:08d}"
        assert (root / ("train" if item in items[:30] else "validation") / found.shard).is_file()


def test_a_second_look_up_reads_neither_indexes_nor_other_shards(root, items):
    first = read_sample(root, items[7].key)
    for path in root.glob("index/*.idx"):
        path.unlink()
    for path in root.glob("*/*.tar"):
        if path.name != first.shard:
            path.unlink()
    assert read_sample(root, items[7].key) == first


def test_a_key_that_is_not_there_is_answered_with_what_a_key_is(root):
    with pytest.raises(DataError, match=r"has no sample 'n01.JPEG'.* as n01440764_10026"):
        read_sample(root, "n01.JPEG")


def test_keys_of_a_data_set_written_anew_are_listed_anew(root, items, tmp_path):
    read_sample(root, items[0].key)
    write_dataset(root, {"train": items[::-1]}, size=32, shards=2)
    assert read_sample(root, items[0].key).jpg == items[0].jpg


def test_a_shard_that_is_not_as_indexed_is_named(root, items):
    shard = read_sample(root, items[0].key).shard
    path = next(root.glob(f"*/{shard}"))
    path.write_bytes(path.read_bytes().replace(items[0].key.encode(), items[0].key[::-1].encode()))
    with pytest.raises(DataError, match=r"at byte \d+, as its index says.*alexprep verify"):
        read_sample(root, items[0].key)


def test_damaged_tables_are_written_anew(root, items):
    first = read_sample(root, items[0].key)
    for path in root.glob("index/*.npy"):
        whole = path.read_bytes()
        for bit in (*range(0, 8 * 128, 37), *range(8 * 128, 8 * len(whole), 61)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert read_sample(root, items[0].key) == first
        path.write_bytes(b"not an array")
        assert read_sample(root, items[0].key) == first
        assert path.read_bytes() == whole
