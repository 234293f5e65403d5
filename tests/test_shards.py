"""Damage of every kind is an error that names the place, at its turn, in the consumer."""

import os
import re
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader
from pipelines.format import Manifest, parse_index
from pipelines.jpeg import check_scan
from pipelines.shards import SplitReader
from tests.tarsets import drawn_items, write_dataset

RAW = AugmentSpec(source=64, crop=48, mean="none", lighting=0, divide=1)
SHARD = "train/drawn-train-000001.tar"
INDEX = "index/drawn-train-000001.idx"
KEY = "item_00027"
SEED = 0  # that shard comes second
BACKENDS = ("dali", "torch")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return write_dataset(
        root, {"train": drawn_items(np.random.default_rng(0), 40)}, size=64, shards=2
    )


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def sample_of(root):
    samples = parse_index((root / INDEX).read_bytes(), root / INDEX)
    return next(sample for sample in samples if sample.key == KEY)


def overwrite(root, offset, data):
    with (root / SHARD).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def consume(root, backend="dali", check="size"):
    """How many batches were given before the error, and the error."""
    before, given, caught = set(threading.enumerate()), 0, None
    config = LoaderConfig(batch=4, backend=backend, check=check, order="shards", seed=SEED)
    loader = open_loader(root, config=config, augment=RAW)
    try:
        for _ in loader:
            given += 1
    except DataError as error:
        caught = error
    loader.close()
    assert set(threading.enumerate()) == before
    return given, str(caught)


def turn(root):
    """The batch that holds the damaged sample."""
    config = LoaderConfig(batch=4, order="shards", seed=SEED)
    with open_loader(root, config=config, augment=RAW) as loader:
        schedule, reader = loader._schedule, loader._reader
        index = reader.keys().index(KEY)
        return next(s for s in range(10) if index in schedule.order_of(0)[schedule.positions(s)])


DAMAGES = {
    "junk": lambda jpg: b"\x5a" * len(jpg),
    "no tables": lambda jpg: jpg[:160] + b"\xff" * 100 + jpg[260:],
    "cut": lambda jpg: jpg[: len(jpg) // 2] + bytes(len(jpg) - len(jpg) // 2),
    "an end alone": lambda jpg: bytes(len(jpg) - 2) + jpg[-2:],
    "another size": lambda jpg: jpg.replace(b"\x00\x40\x00\x40", b"\x00\x48\x00\x40", 1),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_bad_jpeg_in_the_middle_is_named_when_its_batch_is_due(root, whole, backend, kind):
    sample = sample_of(root)
    data = (root / SHARD).read_bytes()
    jpg = data[sample.jpg.offset : sample.jpg.offset + sample.jpg.size]
    overwrite(root, sample.jpg.offset, DAMAGES[kind](jpg))
    given, message = consume(root, backend)
    assert given == turn(whole)
    assert f"{SHARD}, key {KEY}, offset {sample.jpg.offset}: " in message
    assert "alexprep verify" in message


@pytest.mark.parametrize("kind", ["junk", "cut", "an end alone", "another size"])
@pytest.mark.parametrize("first", [False, True], ids=["read after others", "read first"])
def test_a_jpeg_that_begins_as_the_one_before_it_is_checked_as_any_other(root, kind, first):
    sample = sample_of(root)
    reader = SplitReader(root, Manifest.load(root), "train", "size")
    index = reader.keys().index(KEY)
    jpg = reader.read(index).jpg.tobytes()
    assert jpg[:160] == reader.read(index - 1).jpg.tobytes()[:160]
    overwrite(root, sample.jpg.offset, DAMAGES[kind](jpg))
    if first:
        reader = SplitReader(root, Manifest.load(root), "train", "size")
    for _ in range(2):
        with pytest.raises(DataError, match=f"key {KEY}.*JPEG"):
            reader.read(index)
    assert len(reader.read(index - 1).jpg)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_changed_byte_is_found_by_the_hash_of_its_shard(root, backend):
    sample = sample_of(root)
    at = sample.jpg.offset + sample.jpg.size // 2
    byte = (root / SHARD).read_bytes()[at]
    overwrite(root, at, bytes([byte ^ 1]))
    _, message = consume(root, backend, check="auto")
    assert SHARD in message
    assert re.search(r"sha256 is [0-9a-f]{64}, the manifest says [0-9a-f]{64}", message)


def test_the_hash_also_names_the_sample_where_the_damage_can_be_told(root):
    sample = sample_of(root)
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, sample.jpg.size // 2 - 2, dtype=np.uint8).tobytes()
    overwrite(root, sample.jpg.offset + sample.jpg.size - len(noise) - 2, noise)
    _, message = consume(root, check="sha256")
    assert f"{SHARD}, key {KEY}, offset {sample.jpg.offset}: the JPEG is damaged" in message


def test_a_changed_shard_stays_refused_for_every_sample_and_after_closing(root):
    overwrite(root, sample_of(root).jpg.offset + 700, b"\x00")
    with open_loader(root, config=LoaderConfig(batch=4, check="sha256"), augment=RAW) as loader:
        for _ in range(3):
            with pytest.raises(DataError, match=r"sha256 is .*its bytes were changed"):
                list(loader)
    reader = SplitReader(root, Manifest.load(root), "train", "sha256")
    keys = reader.split.shards[0].samples
    for index in (keys, keys + 1, keys + 1):
        with pytest.raises(DataError, match="its bytes were changed"):
            reader.read(index)
    assert len(reader.read(0).jpg)


def test_no_whole_jpeg_is_taken_for_a_damaged_one(shared_data, tmp_path):
    with tarfile.open(shared_data / "ilsvrc-sample-500.tar") as tar:
        files = [member for member in tar if member.isfile()][:60]
        for member in files:
            check_scan(tar.extractfile(member).read())


def test_a_truncated_shard_is_refused_when_the_data_set_is_opened(root):
    size = (root / SHARD).stat().st_size
    os.truncate(root / SHARD, size // 2)
    with pytest.raises(DataError, match=f"{SHARD} has {size // 2} bytes, the manifest says {size}"):
        open_loader(root, augment=RAW)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_truncated_while_it_is_read_is_an_error_not_a_crash(root, backend):
    sample = sample_of(root)
    config = LoaderConfig(batch=4, backend=backend, check="size")
    with open_loader(root, config=config, augment=RAW) as loader:
        next(iter(loader))
        os.truncate(root / SHARD, sample.jpg.offset + 10)
        with pytest.raises(DataError, match=rf"{SHARD}, key item_\d+, offset \d+: the shard ends"):
            list(loader)


def test_a_missing_shard_is_refused_when_the_data_set_is_opened(root):
    (root / SHARD).unlink()
    with pytest.raises(DataError, match=f"{SHARD} is missing, the manifest names it"):
        open_loader(root, augment=RAW)


def test_a_shard_that_disappears_later_is_named(root):
    with open_loader(root, config=LoaderConfig(batch=4), augment=RAW) as loader:
        (root / SHARD).unlink()
        with pytest.raises(DataError, match=SHARD):
            list(loader)


def swap_two_lines(text):
    head, *lines = text.splitlines()
    lines[3], lines[4] = lines[4], lines[3]
    return "\n".join([head, *lines]) + "\n"


def double_a_line(text):
    lines = text.splitlines()
    return "\n".join([*lines[:5], lines[4], *lines[6:]]) + "\n"


def shift_one_offset(text):
    head, *lines = text.splitlines()
    words = lines[7].split(" ")
    words[1] = str(int(words[1]) + 512)
    return "\n".join([head, *lines[:7], " ".join(words), *lines[8:]]) + "\n"


def exchange_offsets(text):
    head, *lines = text.splitlines()
    one, two = lines[3].split(" "), lines[4].split(" ")
    one[1], two[1] = two[1], one[1]
    return "\n".join([head, *lines[:3], " ".join(one), " ".join(two), *lines[5:]]) + "\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shift_one_offset, f"{INDEX}, line 9: 'jpg 33280 .* is not the next sample of {SHARD}"),
        (exchange_offsets, f"{INDEX}, line 5: 'jpg .* is not the next sample"),
        (swap_two_lines, f"{INDEX}, line 5: 'jpg .* is not the next sample"),
        (double_a_line, f"{INDEX}, line 6: 'jpg .* is not the next sample"),
        (lambda text: text.replace("jpg 512 ", f"jpg {10**19} ", 1), f"{INDEX}, line 2: expected"),
        (lambda text: text.replace("v1.2 20", "v1.2 19"), "begins with 'v1.2 19' and has 20 lines"),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "has 19 lines"),
        (
            lambda text: text.replace("jpg 512 ", "jpg x ", 1),
            f"{INDEX}, line 2: .* got .jpg x ",
        ),
        (lambda text: text.replace("jpg 512 ", "jpg 99999999 ", 1), f"{INDEX}, line 2: 'jpg 9999"),
        (lambda _: "", "has 0 lines"),
    ],
)
def test_a_wrong_index_is_named_with_what_is_wrong(root, change, says):
    path = root / INDEX
    path.write_text(change(path.read_text()))
    _, message = consume(root)
    assert re.search(says, message), message
    assert "alexprep" in message


def test_a_missing_index_says_how_to_make_it(root):
    (root / INDEX).unlink()
    _, message = consume(root)
    assert f"{INDEX} is missing. Make it again with `alexprep index" in message


@pytest.mark.parametrize("digits", [b"0003", b"abcd", b"-001", b"9999"])
def test_a_label_of_no_class_is_named(root, digits):
    sample = sample_of(root)
    overwrite(root, sample.cls.offset, digits)
    _, message = consume(root)
    assert f"key {KEY}, offset {sample.jpg.offset}: the label is {digits!r}" in message


def test_after_an_error_the_loader_stays_where_it_was(root):
    sample = sample_of(root)
    good = (root / SHARD).read_bytes()[sample.jpg.offset : sample.jpg.offset + 100]
    overwrite(root, sample.jpg.offset, bytes(100))
    config = LoaderConfig(batch=4, check="size")
    with open_loader(root, config=config, augment=RAW) as loader:
        given = []
        with pytest.raises(DataError, match=KEY):
            given.extend(loader)
        assert loader.step == len(given)
        overwrite(root, sample.jpg.offset, good)
        assert len(given) + len(list(loader)) == len(loader)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_shards_than_files_may_be_open_are_read(tmp_path, rng):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 60)}, size=64, shards=60)
    reader = SplitReader(root, Manifest.load(root), "train")
    reader._most_files = 16
    before = open_files()
    for _ in range(2):
        assert len({reader.read(index).jpg.tobytes() for index in range(60)}) == 60
        assert open_files() <= before + 16
    reader.close()
    assert open_files() == before


def test_a_read_takes_few_calls_of_python(whole):
    # Each costs some 50 ns and holds Python's lock: they, not the disk, limit what feeds a GPU.
    reader = SplitReader(whole, Manifest.load(whole), "train", "size")
    reader.read(0)
    calls = []
    sys.setprofile(lambda _frame, event, _argument: calls.append(event))
    try:
        reader.read(1)
    finally:
        sys.setprofile(None)
    # 60 of the functions of Python and C that edc7d49 called are 30.
    assert sum(event in ("call", "c_call") for event in calls) <= 34
