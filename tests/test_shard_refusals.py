"""What a run refuses, repairs, leaves out, and leaves alone."""

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from archives import contents
from drawing import jpeg, photograph
from shard_sets import HERE, SMALL, all_samples

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from pipelines.format import MANIFEST, Manifest


def test_a_finished_data_set_is_looked_at_and_left_alone(made, source):
    root, manifest = made
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert shard(source, root, SMALL, HERE) == manifest
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == {
        path: time for path, time in before.items() if path.suffix
    }


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "index", "remove index"])
def test_a_damaged_shard_of_a_finished_data_set_is_made_again(made, source, damage):
    root, manifest = made
    good = contents(root)
    there = manifest.splits["train"].shards[1]
    tar, index = root / there.name, root / there.index
    if damage == "flip":
        data = bytearray(tar.read_bytes())
        data[2000] ^= 1
        tar.write_bytes(data)
    elif damage == "cut":
        os.truncate(tar, 5000)
    elif damage == "remove":
        tar.unlink()
    elif damage == "index":
        index.write_text("v1.2 0\n")
    else:
        index.unlink()
    assert shard(source, root, SMALL, HERE) == manifest
    assert contents(root) == good


def test_another_config_into_the_same_folder_is_refused_with_the_difference(made, source):
    root, _ = made
    with pytest.raises(PrepareError, match=r"config.quality 95 where this run has 90"):
        shard(source, root, dataclasses.replace(SMALL, quality=90), HERE)
    with pytest.raises(PrepareError, match=r"config.shards.train 3 where this run has 6"):
        shard(source, root, dataclasses.replace(SMALL, shards={"train": 6, "validation": 2}), HERE)


def test_another_source_into_the_same_folder_is_refused_with_the_difference(made, source, rng):
    root, _ = made
    (source / "train/ant/new.JPEG").write_bytes(jpeg(photograph(rng)))
    with pytest.raises(PrepareError, match=r"source.images.train 24 where this run has 25"):
        shard(source, root, SMALL, HERE)


def test_a_folder_of_other_things_is_not_written_into(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").touch()
    with pytest.raises(PrepareError, match=r"not empty \(chapter1.txt is there\)"):
        shard(source, tmp_path / "thesis", SMALL, HERE)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]


def test_a_file_in_the_way_of_the_target_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrepareError, match=r"Cannot make the folder .*/file/out"):
        shard(source, tmp_path / "file" / "out", SMALL, HERE)


def test_two_runs_at_once_into_one_folder_are_refused(source, tmp_path):
    from alexprep.dataset.store import open_store  # noqa: PLC0415

    with (
        open_store(str(tmp_path / "made")).locked(),
        pytest.raises(
            PrepareError, match=r"made is in use by process \d+ on .*, since .*\. Wait for it"
        ),
    ):
        shard(source, tmp_path / "made", SMALL, HERE)


def spoil(source):
    """Make five files into things that are no images; their paths."""
    bad = {
        "train/ant/ant_train_1.JPEG": b"",
        "train/bee/bee_train_2.JPEG": b"just text",
        "train/cat/cat_train_3.JPEG": (source / "train/cat/cat_train_3.JPEG").read_bytes()[:900],
        "val/ant/ant_val_4.JPEG": bytes(3000),
    }
    for path, data in bad.items():
        (source / path).write_bytes(data)
    return bad


@pytest.mark.parametrize("sequential", [False, True])
def test_files_that_are_no_images_end_the_run_with_their_list(source, tmp_path, sequential):
    spoil(source)
    options = RunOptions(workers=1, sequential=sequential)
    with pytest.raises(PrepareError, match="cannot become a sample") as caught:
        shard(source, tmp_path / "made", dataclasses.replace(SMALL, shards=1), options)
    assert "train/ant/ant_train_1.JPEG is empty" in str(caught.value)
    assert "bee_train_2.JPEG is not an image: it begins with b'just text'" in str(caught.value)
    assert "--on-error skip" in str(caught.value)
    assert not (tmp_path / "made" / MANIFEST).exists()
    assert not list(tmp_path.glob("made/*/*.tar"))


@pytest.mark.parametrize("sequential", [False, True])
def test_files_that_are_no_images_can_be_left_out_and_are_listed(source, tmp_path, sequential):
    bad = spoil(source)
    options = RunOptions(workers=1, sequential=sequential, on_error="skip")
    manifest = shard(source, tmp_path / "made", SMALL, options)
    assert {left.path: left.sha256 for left in manifest.left_out} == {
        path: hashlib.sha256(data).hexdigest() for path, data in bad.items()
    }
    assert manifest.left_out[0].reason == "is empty"
    assert manifest.splits["train"].counts == (7, 7, 7)
    assert manifest.splits["validation"].counts == (7, 8, 8)
    keys = {key for split in manifest.splits for key, *_ in all_samples(tmp_path / "made", split)}
    assert not keys & {Path(path).stem for path in bad}
    assert len(keys) == 44


def test_shards_of_a_run_that_failed_are_kept_for_one_that_skips(source, tmp_path):
    spoil(source)
    with pytest.raises(PrepareError):
        shard(source, tmp_path / "made", SMALL, HERE)
    shard(source, tmp_path / "made", SMALL, RunOptions(workers=1, on_error="skip"))
    shard(source, tmp_path / "once", SMALL, RunOptions(workers=1, on_error="skip"))
    assert contents(tmp_path / "made") == contents(tmp_path / "once")


def test_a_class_that_loses_all_its_images_is_an_error_after_the_rest_is_written(source, tmp_path):
    for path in (source / "val/bee").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(PrepareError, match=r"is written, but validation has no image of 1.*bee"):
        shard(source, tmp_path / "made", SMALL, RunOptions(workers=1, on_error="skip"))
    assert Manifest.load(tmp_path / "made").splits["validation"].counts == (8, 0, 8)


def test_a_split_that_loses_all_its_images_is_an_error_and_leaves_no_empty_tar(source, tmp_path):
    for path in (source / "val").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    with pytest.raises(PrepareError, match="validation has no image of 3"):
        shard(source, tmp_path / "made", SMALL, RunOptions(workers=1, on_error="skip"))
    assert not list((tmp_path / "made").glob("validation/*"))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"size": 0}, "size must be in 1..4096 pixels, got 0"),
        ({"quality": 101}, "quality must be in 1..100, got 101"),
        ({"seed": -1}, "seed must be in 0"),
        ({"shards": 0}, "shards must be in 1"),
        ({"shards": {"train": 0}}, "shards must be in 1"),
    ],
)
def test_a_config_that_is_none_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        ShardConfig(**fields)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        RunOptions(workers=0)
    with pytest.raises(ValueError, match="fail or skip"):
        RunOptions(on_error="ignore")


def test_more_shards_than_images_or_of_no_split_are_refused(source, tmp_path):
    with pytest.raises(PrepareError, match="24 train images, too few for 99 shards"):
        shard(source, tmp_path / "made", ShardConfig(shards=99), HERE)
    with pytest.raises(PrepareError, match="names the split 'test'"):
        shard(source, tmp_path / "made", ShardConfig(shards={"test": 1}), HERE)
    assert not (tmp_path / "made").exists()
