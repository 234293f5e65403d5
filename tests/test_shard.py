import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from archives import contents, draw_ilsvrc, tar_bytes, write_archives
from drawing import draw_classes, jpeg, photograph
from PIL import Image

from alexprep.codec import encode
from alexprep.drawing import DrawConfig, draw_source
from alexprep.errors import PrepareError
from alexprep.ilsvrc import TRAIN_TAR
from alexprep.shard import RunOptions, ShardConfig, shard
from alexprep.shard_forecast import forecast
from alexprep.shard_plan import default_shards, permutation
from alexprep.tarwrite import tar_header
from pipelines.format import MANIFEST, MTIME, Manifest, parse_index

SMALL = ShardConfig(size=48, shards={"train": 3, "validation": 2})
HERE = RunOptions(workers=1)


@pytest.fixture
def source(tmp_path, rng):
    return draw_classes(tmp_path / "zoo", rng, each=8)


@pytest.fixture
def made(source, tmp_path):
    """A finished data set: its folder and manifest."""
    return tmp_path / "made", shard(source, tmp_path / "made", SMALL, HERE)


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


def test_every_image_is_in_one_shard_with_its_label_and_story(made, source):
    root, _ = made
    rows = all_samples(root, "train")
    paths = {path.stem: path for path in (source / "train").rglob("*.JPEG")}
    assert sorted(key for key, *_ in rows) == sorted(paths)
    for key, image, label, about in rows:
        data = paths[key].read_bytes()
        result = encode(data, size=48, quality=95)
        with Image.open(paths[key]) as opened:
            width, height = opened.size
        assert image == result.jpg
        assert label == b"%04d" % ("ant", "bee", "cat").index(about["wnid"])
        assert about == {
            "wnid": paths[key].parent.name,
            "width": width,
            "height": height,
            "sha256": hashlib.sha256(data).hexdigest(),
            "fixes": "",
        }


def test_members_are_plain_ustar_files_of_nobody_at_no_time(made):
    root, _ = made
    for path in root.glob("*/*.tar"):
        assert path.stat().st_size % 10240 == 0
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.isreg()
                assert not member.pax_headers
                assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
                assert (member.mode, member.mtime) == (0o644, MTIME)
                assert member.offset_data - member.offset == 512


@pytest.mark.parametrize(("name", "size"), [("a.jpg", 0), ("b" * 100, 8**11 - 1), ("c.json", 513)])
def test_headers_are_those_of_tarfile_but_for_the_device_numbers(name, size):
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, MTIME
    theirs = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    ours = bytearray(tar_header(name.encode(), size))
    # tarfile leaves devmajor and devminor of files empty, GNU tar writes zeros.
    theirs[329:345], theirs[148:156] = ours[329:345], ours[148:156]
    assert ours == theirs


def test_an_index_points_at_every_member(made):
    root, manifest = made
    for split in manifest.splits.values():
        for there in split.shards:
            tar = (root / there.name).read_bytes()
            index = parse_index((root / there.index).read_text(), root / there.index)
            rows = samples_of(root / there.name)
            assert len(index) == len(rows) == there.samples
            for entry, (key, jpg, cls, _) in zip(index, rows, strict=True):
                assert entry.key == key
                assert tar[entry.jpg.offset : entry.jpg.offset + entry.jpg.size] == jpg
                assert tar[entry.cls.offset : entry.cls.offset + entry.cls.size] == cls
                assert entry.jpg.offset % 512 == 0


def test_the_manifest_says_what_is_there(made):
    root, manifest = made
    assert Manifest.load(root) == manifest
    assert manifest.classes == (("ant", "ant"), ("bee", "bee"), ("cat", "cat"))
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 24,
        "validation": 24,
    }
    assert manifest.splits["train"].counts == (8, 8, 8)
    assert manifest.left_out == ()
    for split in manifest.splits.values():
        for there in split.shards:
            data = (root / there.name).read_bytes()
            assert there.bytes == len(data)
            assert there.sha256 == hashlib.sha256(data).hexdigest()
            assert there.md5 == hashlib.md5(data).hexdigest()
    longest = max(len(jpg) for name in manifest.splits for _, jpg, *_ in all_samples(root, name))
    assert manifest.largest_jpg == longest


def test_only_tars_lie_in_the_split_folders_and_nothing_is_left_over(made):
    root, _ = made
    assert {path.suffix for path in root.glob("*/*")} == {".tar", ".idx"}
    assert {path.suffix for path in root.glob("train/*")} == {".tar"}
    assert sorted(path.name for path in root.iterdir()) == [
        *("_info.json", "index", "manifest.json", "synsets.txt", "train", "validation"),
        *("wids-train.json", "wids-validation.json"),
    ]


def test_shards_are_balanced_within_one_sample_and_mixed(source, tmp_path):
    manifest = shard(source, tmp_path / "made", ShardConfig(size=16, shards=5), HERE)
    sizes = [there.samples for there in manifest.splits["train"].shards]
    assert sorted(sizes) == [4, 5, 5, 5, 5]
    first = {
        about["wnid"]
        for *_, about in samples_of(tmp_path / "made" / manifest.splits["train"].shards[0].name)
    }
    assert len(first) > 1


def test_the_same_bytes_come_from_1_2_and_4_workers_a_second_run_and_a_sequential_one(
    source, tmp_path
):
    for name, options in {
        "one": HERE,
        "two": RunOptions(workers=2),
        "four": RunOptions(workers=4),
        "again": HERE,
        "sequential": RunOptions(workers=2, sequential=True),
    }.items():
        shard(source, tmp_path / name, SMALL, options)
    first = contents(tmp_path / "one")
    assert len(first) == 2 * 5 + 5
    for name in ("two", "four", "again", "sequential"):
        assert contents(tmp_path / name) == first


def test_a_sequential_run_of_archives_gives_the_same_bytes(tmp_path, rng):
    root = write_archives(tmp_path / "archives", *draw_ilsvrc(rng))
    shard(root, tmp_path / "a", SMALL, HERE)
    shard(root, tmp_path / "b", SMALL, RunOptions(workers=1, sequential=True))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_is_another_order_of_the_same_samples(source, tmp_path):
    orders = []
    for seed in (0, 1):
        config = dataclasses.replace(SMALL, seed=seed)
        shard(source, tmp_path / str(seed), config, HERE)
        orders.append([key for key, *_ in all_samples(tmp_path / str(seed), "train")])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_permutation_is_pinned():
    # Everybody's shards of a seed have this order: other numbers are another data set.
    assert permutation(8, 0, "train").tolist() == [1, 4, 3, 6, 2, 0, 7, 5]
    assert permutation(8, 2**63 - 1, "validation").tolist() == [2, 1, 4, 6, 0, 7, 3, 5]


def test_ilsvrc_gets_1024_and_80_shards_and_smaller_sets_fewer():
    config = ShardConfig()
    assert default_shards("train", 1_281_167, config) == 1024
    assert default_shards("validation", 50_000, config) == 80
    assert default_shards("train", 500, config) == 4
    assert default_shards("train", 5, config) == 1
    # 64-pixel images are small: 50,000 of them are 32 shards of 4 MB and more
    assert default_shards("train", 50_000, ShardConfig(size=64)) == 32


def test_labels_are_eight_digits_wide_above_9999_classes(tmp_path, rng):
    data = jpeg(photograph(rng, 16, 16))
    for number in range(10_184):
        folder = tmp_path / "fall09" / f"n{number:08d}"
        folder.mkdir(parents=True)
        (folder / f"n{number:08d}_1.JPEG").write_bytes(data)
    manifest = shard(tmp_path / "fall09", tmp_path / "made", ShardConfig(size=8, shards=2), HERE)
    assert manifest.cls_width == 8
    labels = sorted(label for _, _, label, _ in all_samples(tmp_path / "made", "train"))
    assert labels == [b"%08d" % number for number in range(10_184)]


def test_one_split_alone_can_be_made(source, tmp_path):
    manifest = shard(
        source,
        tmp_path / "made",
        ShardConfig(size=16),
        RunOptions(workers=1, splits=["validation"]),
    )
    assert list(manifest.splits) == ["validation"]
    with pytest.raises(PrepareError, match="zoo has no test split; it has train, validation"):
        shard(source, tmp_path / "none", SMALL, RunOptions(workers=1, splits=["test"]))


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
    from alexprep.shard_target import open_target  # noqa: PLC0415

    with (
        open_target(str(tmp_path / "made")).locked(),
        pytest.raises(PrepareError, match="Another run is writing"),
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
    assert "bee_train_2.JPEG is no image: it begins with b'just text'" in str(caught.value)
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
    with pytest.raises(
        PrepareError, match=r"is written, but validation has no image left of 1.*bee"
    ):
        shard(source, tmp_path / "made", SMALL, RunOptions(workers=1, on_error="skip"))
    assert Manifest.load(tmp_path / "made").splits["validation"].counts == (8, 0, 8)


def test_a_split_that_loses_all_its_images_is_an_error_and_leaves_no_empty_tar(source, tmp_path):
    for path in (source / "val").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    with pytest.raises(PrepareError, match="validation has no image left of 3"):
        shard(source, tmp_path / "made", SMALL, RunOptions(workers=1, on_error="skip"))
    assert not list((tmp_path / "made").glob("validation/*"))


def test_mended_files_are_counted_and_named(tmp_path):
    list(
        draw_source(tmp_path / "drawn", DrawConfig(train=3, validation=2, longest=90, gray_every=3))
    )
    manifest = shard(tmp_path / "drawn", tmp_path / "made", ShardConfig(size=32), HERE)
    assert manifest.fixes == {"cmyk": 1, "exif": 1, "gray": 10, "png": 1}
    assert manifest.mended["cmyk"] == ("n00000003_train_00000",)
    rows = {key: about["fixes"] for key, *_, about in all_samples(tmp_path / "made", "train")}
    assert rows["n00000004_train_00000"] == "png"
    assert rows["n00000005_train_00000"] == "exif"


def test_names_that_no_tar_of_ours_can_hold_are_made_into_ones_that_it_can(tmp_path, rng):
    names = ["n01440764_1.2.JPEG", "x" * 150 + ".JPEG", "größe 3.JPEG", "no_extension", ".JPEG.x"]
    images = {name: jpeg(photograph(rng)) for name in names}
    inner = tar_bytes(images, format=tarfile.PAX_FORMAT)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / TRAIN_TAR).write_bytes(tar_bytes({"n01440764.tar": inner}))
    shard(tmp_path / "a", tmp_path / "made", ShardConfig(size=16), HERE)
    rows = all_samples(tmp_path / "made", "train")
    assert {about["sha256"] for *_, about in rows} == {
        hashlib.sha256(data).hexdigest() for data in images.values()
    }
    for key, *_ in rows:
        assert key.isascii()
        assert "." not in key
        assert len(key) <= 95


def test_a_class_whose_name_is_no_ascii_keeps_it(tmp_path, rng):
    folder = tmp_path / "tiere" / "größe ß"
    folder.mkdir(parents=True)
    (folder / "Ä b.JPEG").write_bytes(jpeg(photograph(rng)))
    manifest = shard(tmp_path / "tiere", tmp_path / "made", ShardConfig(size=16), HERE)
    assert manifest.classes == (("größe ß", "größe ß"),)
    (row,) = all_samples(tmp_path / "made", "train")
    assert row[3]["wnid"] == "größe ß"
    assert row[0].isascii()


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


def test_a_dry_run_foretells_the_bytes_and_writes_nothing(source, tmp_path):
    told = forecast(source, tmp_path / "made", SMALL, RunOptions(workers=2))
    assert not (tmp_path / "made").exists()
    manifest = shard(source, tmp_path / "made", SMALL, HERE)
    written = sum(there.bytes for split in manifest.splits.values() for there in split.shards)
    # tars are padded to 10 KB each, which the forecast leaves out
    assert told.bytes == pytest.approx(written, abs=5 * 10240 + written * 0.05)
    assert (told.images, told.shards) == (
        {"train": 24, "validation": 24},
        {"train": 3, "validation": 2},
    )
    assert told.seconds == pytest.approx(48 / told.images_per_second / 2)
    assert "train: 24 images in 3 shards of 8" in told.text()
    assert json.loads(json.dumps(told.to_dict()))["workers"] == 2


def test_a_worker_imports_neither_torch_nor_what_draws_progress():
    code = (
        "import sys, alexprep.shard_write; "
        "print([name for name in ('torch', 'nvidia.dali', 'rich', 'dask', 'pyarrow', 'webdataset')"
        " if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_real_images_become_shards_that_hold_them_all(shared_data, tmp_path):
    with tarfile.open(shared_data / "ilsvrc-sample-500.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    manifest = shard(
        tmp_path / "ilsvrc-sample-500", tmp_path / "made", options=RunOptions(workers=2)
    )
    assert manifest.splits["train"].samples == 500
    assert len(manifest.splits["train"].shards) == 4
    assert manifest.fixes == {"gray": 9}
    assert np.all(np.array(manifest.splits["train"].counts) == 1)
