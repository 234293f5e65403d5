import dataclasses
import hashlib
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from archives import WNIDS, contents, draw_ilsvrc, tar_bytes, write_archives
from drawing import jpeg, photograph
from PIL import Image
from shard_sets import HERE, SMALL, all_samples, samples_of

from alexprep.dataset.codec import encode
from alexprep.dataset.forecast import forecast
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.shard_plan import default_shards, permutation
from alexprep.errors import PrepareError
from alexprep.sources.ilsvrc import TRAIN_TAR
from alexprep.synthetic import DrawConfig, draw_source
from alexprep.tar import build_header
from pipelines.format import MTIME, Manifest, parse_index


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
    ours = bytearray(build_header(name.encode(), size))
    # tarfile leaves devmajor and devminor of files empty, GNU tar writes zeros.
    theirs[329:345], theirs[148:156] = ours[329:345], ours[148:156]
    assert ours == theirs


def test_an_index_points_at_every_member(made):
    root, manifest = made
    for split in manifest.splits.values():
        for there in split.shards:
            tar = (root / there.name).read_bytes()
            index = parse_index((root / there.index).read_bytes(), root / there.index)
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
        *("README.md", "SHA256SUMS", "_info.json", "croissant.json", "index", "manifest.json"),
        *("synsets.txt", "train", "validation"),
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
    assert len(first) == 2 * 5 + 8
    for name in ("two", "four", "again", "sequential"):
        assert contents(tmp_path / name) == first


def test_a_sequential_run_of_archives_gives_the_same_bytes(tmp_path, rng):
    root = write_archives(tmp_path / "archives", *draw_ilsvrc(rng))
    four = dataclasses.replace(SMALL, classes=WNIDS)
    shard(root, tmp_path / "a", four, HERE)
    shard(root, tmp_path / "b", four, RunOptions(workers=1, sequential=True))
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
        "import sys, alexprep.dataset.shard_writer; "
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
