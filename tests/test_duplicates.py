"""Equal images: counted, named, left out of training or refused."""

import hashlib
import shutil
from collections import defaultdict

import pytest
from archives import contents
from click.testing import CliRunner
from shard_sets import all_samples

from alexprep.cli import cli
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.verify import format_verified, verify
from alexprep.errors import PrepareError
from alexprep.report import write_report

RUN = RunOptions(workers=1)
CONFIG = ShardConfig(size=48, shards={"train": 3, "validation": 2})
DROP = ShardConfig(size=48, shards={"train": 3, "validation": 2}, on_duplicate="drop-train")


@pytest.fixture
def doubled(source):
    """Three files of training in validation, one under two labels, two twice in a class."""
    train, held_out = source / "train", source / "val"
    for n in (1, 2, 3):
        shutil.copy(train / f"ant/ant_train_{n}.JPEG", held_out / f"ant/leak_{n}.JPEG")
    shutil.copy(train / "bee/bee_train_1.JPEG", train / "cat/bee_as_cat.JPEG")
    for n in (2, 3):
        shutil.copy(train / f"cat/cat_train_{n}.JPEG", train / f"cat/copy_{n}.JPEG")
    return source


COUNTS = {"across_splits": 3, "across_classes": 1, "within_class": 2}


def expected_counts(source):
    """The same by reading the files."""
    places = defaultdict(list)
    for path in sorted(source.rglob("*.JPEG")):
        split, wnid = path.relative_to(source).parts[:2]
        places[hashlib.sha256(path.read_bytes()).digest()].append((split, wnid))
    groups = [group for group in places.values() if len(group) > 1]
    return {
        "across_splits": sum(len({split for split, _ in group}) > 1 for group in groups),
        "across_classes": sum(len({wnid for _, wnid in group}) > 1 for group in groups),
        "within_class": sum(len(set(group)) < len(group) for group in groups),
    }


def test_duplicates_are_counted_in_the_manifest_and_named(doubled, tmp_path, capsys):
    root = tmp_path / "set"
    manifest = shard(doubled, root, CONFIG, RUN)
    assert manifest.duplicates == expected_counts(doubled) == COUNTS
    assert "Warning: 3 images are in more than one split." in capsys.readouterr().err
    result = verify(root, workers=1)
    assert result.faults == ()
    text = format_verified(result, root)
    for n in (1, 2, 3):
        assert any(
            f"train/ant_train_{n} (ant)" in line and f"validation/leak_{n} (ant)" in line
            for line in text.splitlines()
        )
    assert "train/bee_train_1 (bee)" in text
    assert "train/bee_as_cat (cat)" in text
    assert "2 images are more than once in a class of a split." in text
    page = tmp_path / "report.html"
    write_report(root, page)
    assert "3 images are in more than one split." in page.read_text()
    assert shard(doubled, root, CONFIG, RUN) == manifest  # a finished data set is recognized


def test_a_manifest_with_other_counts_is_a_fault(doubled, tmp_path):
    root = tmp_path / "set"
    shard(doubled, root, CONFIG, RUN)
    path = root / "manifest.json"
    path.write_text(path.read_text().replace('"across_splits": 3', '"across_splits": 2'))
    assert any("duplicates are {" in fault for fault in verify(root, workers=1).faults)


def test_without_duplicates_the_manifest_says_nothing_of_them(source, tmp_path):
    shard(source, tmp_path / "set", CONFIG, RUN)
    assert "duplicate" not in (tmp_path / "set/manifest.json").read_text()


def test_a_run_that_is_resumed_counts_them_all(doubled, tmp_path):
    root = tmp_path / "set"
    whole = shard(doubled, root, CONFIG, RUN)
    before = contents(root)
    other = tmp_path / "other"
    last = doubled / "val/cat/cat_val_1.JPEG"
    good = last.read_bytes()
    last.write_bytes(good[:100].ljust(len(good), b"x"))  # found when it is encoded
    with pytest.raises(PrepareError, match="cat_val_1"):
        shard(doubled, other, CONFIG, RUN)
    assert list((other / ".alexprep/records").iterdir())
    last.write_bytes(good)
    assert shard(doubled, other, CONFIG, RUN).duplicates == whole.duplicates
    assert contents(other) == before


def test_drop_train_leaves_copies_out_of_training_and_lists_them(doubled, tmp_path):
    root = tmp_path / "set"
    everything = shard(doubled, tmp_path / "all", CONFIG, RUN)
    manifest = shard(doubled, root, DROP, RUN)
    assert manifest.duplicates == {}
    hashes = [row[3]["sha256"] for split in manifest.splits for row in all_samples(root, split)]
    assert len(hashes) == len(set(hashes))
    assert manifest.splits["validation"].samples == everything.splits["validation"].samples
    assert manifest.splits["train"].samples == everything.splits["train"].samples - 6
    reasons = {left.path: left.reason for left in manifest.left_out}
    assert len(reasons) == 6
    assert reasons["train/ant/ant_train_2.JPEG"] == "has the same bytes as val/ant/leak_2.JPEG"
    assert "train/cat/copy_2.JPEG" in reasons
    assert manifest.config["on_duplicate"] == "drop-train"
    result = verify(root, workers=1, rebuild=2, source=doubled)
    assert (result.faults, result.warnings) == ((), ())


def test_keep_and_fail_write_what_they_always_did_where_nothing_is_double(source, tmp_path):
    shard(source, tmp_path / "keep", CONFIG, RUN)
    fail = ShardConfig(size=48, shards={"train": 3, "validation": 2}, on_duplicate="fail")
    shard(source, tmp_path / "fail", fail, RunOptions(workers=2))
    assert contents(tmp_path / "keep") == contents(tmp_path / "fail")


def test_fail_names_the_copies_before_anything_is_written(doubled, tmp_path):
    command = ["shard", str(doubled), str(tmp_path / "set"), "--on-duplicate", "fail"]
    result = CliRunner().invoke(cli, [*command, "--workers", "1"])
    assert result.exit_code == 1
    assert "holds images more than once. 3 images are in more than one split." in result.output
    assert "ant_train_1.JPEG = " in result.output
    assert not (tmp_path / "set").exists()


def test_a_class_is_not_emptied(source, tmp_path):
    for path in (source / "train/ant").iterdir():
        shutil.copy(path, source / f"val/ant/copy_of_{path.name}")
    with pytest.raises(
        PrepareError, match=r"leaves 1 classes of .* without training images, the first is 'ant'"
    ):
        shard(source, tmp_path / "set", DROP, RUN)
