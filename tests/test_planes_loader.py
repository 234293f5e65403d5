"""Training from stored planes: the same batches as from JPEGs, and a store that resumes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alexprep.cli import cli
from alexprep.dataset.decode import store_planes
from alexprep.errors import PrepareError
from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader, planestore
from pipelines.format import Manifest
from pipelines.planesfile import HEADER_BYTES, planes_path
from tests.tarsets import drawn_items, measured, write_dataset

SIZE = 64
RAW = AugmentSpec(source=SIZE, crop=56, mean="none", lighting=0, divide=1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """37 training and 11 validation images in 4 shards each, measured and stored as planes."""
    rng = np.random.default_rng(6)
    root = tmp_path_factory.mktemp("drawn")
    splits = {
        "train": drawn_items(rng, 37, classes=7),
        "validation": drawn_items(rng, 11, classes=7, prefix="held"),
    }
    write_dataset(root, splits, size=SIZE, shards=4, classes=7)
    measured(root)
    summary = store_planes(root, workers=1)
    assert (summary.files, summary.written, summary.images) == (8, 8, 48)
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(drawn, tmp_path / "drawn")


def batches(root, split="train", epochs=2, augment=None, **config):
    spec = augment or AugmentSpec(source=SIZE, crop=56)
    with open_loader(root, split, LoaderConfig(batch=8, seed=3, **config), spec) as loader:
        for _ in range(epochs):
            yield from ((images.clone(), labels) for images, labels in loader)


def assert_equal(one, two):
    for (images, labels), (others, other_labels) in zip(one, two, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
        assert images.stride() == others.stride()


FLOATS = [
    *product(("image", "image_at_crop", "channel", "none"), ("float32",), (0, 1)),
    *(("image", "bfloat16", 0), ("image_at_crop", "bfloat16", 1), ("channel", "float16", 1)),
]


@pytest.mark.parametrize(("mean", "dtype", "channels_last"), FLOATS)
def test_crops_are_those_from_jpegs_bit_for_bit(drawn, mean, dtype, channels_last):
    spec = AugmentSpec(source=SIZE, crop=55, mean=mean, divide=1.1, sd=(58.0, 57.0, 57.5))
    config = {"augment": spec, "dtype": dtype, "channels_last": bool(channels_last)}
    expected = batches(drawn, backend="dali", **config)
    assert_equal(batches(drawn, backend="planes", **config), expected)


@pytest.mark.parametrize("order", ["global", "window", "shards"])
def test_bytes_and_orders_are_those_of_pillow(drawn, order):
    config = {"augment": RAW, "dtype": "uint8", "order": order, "window": 2}
    expected = batches(drawn, backend="torch", **config)
    assert_equal(batches(drawn, backend="planes", **config), expected)


@pytest.mark.parametrize("mean", ["image", "image_at_crop", "channel"])
def test_ten_views_are_those_from_jpegs(drawn, mean):
    spec = AugmentSpec(source=SIZE, crop=50, mean=mean)
    config = {"split": "validation", "epochs": 1, "views": 10, "augment": spec}
    expected = batches(drawn, backend="dali", **config)
    assert_equal(batches(drawn, backend="planes", **config), expected)


def test_a_sequence_begun_on_jpegs_goes_on_from_planes(drawn):
    spec = AugmentSpec(source=SIZE, crop=56)
    whole = list(batches(drawn, backend="dali"))
    with open_loader(drawn, "train", LoaderConfig(batch=8, seed=3, backend="dali"), spec) as first:
        for _ in range(3):
            next(iter(first))
        state = first.state_dict()
    config = LoaderConfig(batch=8, seed=3, backend="planes", threads=1, readers=3)
    with open_loader(drawn, "train", config, spec) as second:
        second.load_state_dict(state)
        resumed = [(images.clone(), labels) for images, labels in second]
    assert_equal(resumed, whole[3 : len(resumed) + 3])


def test_more_files_than_may_be_open_are_opened_in_turns(drawn, monkeypatch):
    monkeypatch.setattr(planestore, "most_open_files", lambda: 1)
    assert_equal(batches(drawn, backend="planes"), batches(drawn, backend="dali"))


def test_auto_takes_planes_where_they_are_and_says_so(root):
    with open_loader(root, "train", LoaderConfig(batch=8)) as loader:
        assert loader.backend.startswith("planes")
    next((root / "planes").glob("*train*")).unlink()
    with open_loader(root, "train", LoaderConfig(batch=8)) as loader:
        assert loader.backend.startswith("dali")
    with open_loader(root, "validation", LoaderConfig(batch=8)) as loader:
        assert loader.backend.startswith("planes")


def first_path(root):
    return planes_path(root, Manifest.load(root).split("train", root).shards[0])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
        (lambda path: path.write_bytes(b""), "no file of planes|not a file of planes"),
        (lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]), "not a file of planes"),
    ],
)
def test_a_damaged_store_is_refused_before_the_first_batch(root, damage, reason):
    path = first_path(root)
    damage(path)
    with pytest.raises(DataError, match=reason):
        open_loader(root, "train", LoaderConfig(batch=8, backend="planes"))


def test_a_changed_byte_is_found_when_its_file_is_first_read(root):
    path = first_path(root)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="were changed"):
        list(batches(root, backend="planes"))


def test_a_store_of_another_data_set_is_refused(root, tmp_path):
    other = tmp_path / "other"
    rng = np.random.default_rng(7)
    write_dataset(other, {"train": drawn_items(rng, 37, classes=7)}, size=SIZE, shards=4, classes=7)
    measured(other)
    shutil.copytree(root / "planes", other / "planes")
    for path in (other / "planes").glob("*validation*"):
        path.unlink()
    with pytest.raises(DataError, match="made of another"):
        open_loader(other, "train", LoaderConfig(batch=8))


def test_a_file_cut_while_it_is_read_ends_with_one_line(root):
    loader = open_loader(root, "train", LoaderConfig(batch=8, backend="planes", prefetch=1))
    with loader:
        next(iter(loader))
        for path in (root / "planes").iterdir():
            os.truncate(path, HEADER_BYTES)
        # What was read before is still given out.
        with pytest.raises(DataError, match=r"ends|cut|bytes"):
            _ = [list(loader) for _ in range(20)]


def test_what_is_whole_is_kept_and_what_is_not_is_written_again(root):
    paths = sorted((root / "planes").iterdir())
    bytes_before = {path: path.read_bytes() for path in paths}
    paths[0].unlink()
    paths[1].write_bytes(bytes_before[paths[1]][:-1])
    (root / "planes" / "x.planes.partial").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in paths[2:]}
    result = CliRunner().invoke(cli, ["planes", str(root), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "48 images in 8 files of planes (2 new)" in result.output
    assert {path: path.read_bytes() for path in (root / "planes").iterdir()} == bytes_before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_call_with_nothing_to_do_says_so(drawn):
    result = CliRunner().invoke(cli, ["planes", str(drawn)])
    assert result.exit_code == 0, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("Nothing to do: 48 images in 8 files of planes, ")
    assert line.endswith("are stored already.")


def test_a_killed_call_leaves_whole_files_only_and_the_next_one_ends_it(root):
    shutil.rmtree(root / "planes")
    command = [sys.executable, "-m", "alexprep", "planes", str(root), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((root / "planes").glob("*.planes")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store_planes(root, workers=1).files == 8
    assert_equal(batches(root, backend="planes"), batches(root, backend="dali"))


def test_too_small_a_disk_is_one_line_before_anything_is_written(root, monkeypatch):
    shutil.rmtree(root / "planes")
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    result = CliRunner().invoke(cli, ["planes", str(root)])
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "the disk has 0.00 GB free" in result.output
    assert list((root / "planes").iterdir()) == []


def test_shard_stores_planes_in_the_same_call(source, tmp_path):
    command = ["shard", str(source), str(tmp_path / "set"), "--planes", "--workers", "1"]
    result = CliRunner().invoke(cli, [*command, "--size", "49"])
    assert result.exit_code == 2
    assert "--planes needs an even --size" in result.output
    result = CliRunner().invoke(cli, [*command, "--size", "48"])
    assert result.exit_code == 0, result.output
    again = store_planes(tmp_path / "set", workers=1)
    assert again.written == 0
    assert len(list((tmp_path / "set/planes").iterdir())) == again.files > 1


def test_data_sets_that_planes_cannot_hold_are_refused_with_the_shard(tmp_path, rng):
    write_dataset(
        tmp_path, {"train": drawn_items(rng, 4, classes=2)}, size=SIZE, shards=1, classes=2
    )
    manifest = Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text(replace(manifest, size=63).to_json())
    with pytest.raises((PrepareError, DataError), match="63"):
        store_planes(tmp_path, workers=1)
    assert [path.name for path in (tmp_path / "planes").iterdir()] == []
