import json
import shutil

import numpy as np
import pytest

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.verify import format_verified, verify
from alexprep.dataset.verify_shard import CheckTask, check_shard
from alexprep.errors import PrepareError
from pipelines.errors import DataError
from pipelines.format import Manifest
from tests.drawing import draw_classes, jpeg, photograph
from tests.tarsets import Item, drawn_items, write_dataset

CONFIG = ShardConfig(size=48, shards={"train": 3, "validation": 2})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = draw_classes(folder / "zoo", np.random.default_rng(11), each=10)
    shard(source, folder / "set", CONFIG, RunOptions(workers=1))
    return source, folder / "set"


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "set")


def faults(root):
    return verify(root, workers=1).faults


def edit(path, change):
    """Apply `change` to the JSON in a file."""
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw, indent=1, sort_keys=True) + "\n")


def test_a_data_set_as_it_was_written_has_no_faults(root):
    found = verify(root, workers=2)
    assert (found.shards, found.images, found.faults) == (5, 60, ())
    assert "60 images, all as the manifest says" in format_verified(found, root)


def test_statistics_beside_the_shards_are_no_fault(root):
    for name in ("stats.json", "stats.npz", "mean.png"):
        (root / name).write_bytes(b"x")
    assert faults(root) == ()


def test_every_byte_counts(root):
    path = next((root / "train").iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    first, second = faults(root)
    assert f"{path}: sha256 is" in first
    assert f"{path}: md5 is" in second


def test_all_faults_are_named_and_counted(root):
    first, second, _ = sorted((root / "train").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:5000])
    (root / "validation" / "stray.txt").write_text("x")
    (root / "synsets.txt").write_text("x")
    text = format_verified(verify(root, workers=1), root)
    for part in (
        "stray.txt is not in the manifest",
        "synsets.txt does not say what the manifest says",
        f"{first} is missing",
        f"{second} is cut off",
        "train: label 0 has",
    ):
        assert part in text
    assert text.splitlines()[-1].endswith(" faults.")


def test_an_index_entry_that_points_elsewhere_is_named_with_its_line(root):
    path = sorted((root / "index").iterdir())[0]
    text = path.read_text()
    lines = text.splitlines()
    lines[3] = lines[3].replace("jpg ", "jpg 1", 1)
    path.write_text("\n".join(lines) + "\n")
    (only,) = faults(root)
    assert f"{path}, line 4: lists" in only
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert any("expected 'v1.2" in fault for fault in faults(root))
    path.unlink()
    assert faults(root) == (f"{path} is missing",)


def test_counts_in_the_manifest_are_checked(root):
    def change(raw):
        raw["splits"]["train"]["counts"][1] += 1
        raw["largest_jpg"] += 1
        raw["fixes"] = {"gray": 5}

    edit(root / "manifest.json", change)
    text = "\n".join(faults(root))
    assert "train: label 1 has 10 images, the manifest says 11" in text
    assert "the largest jpg has" in text
    assert "mended images are {}, the manifest says {'gray': 5}" in text


def test_a_manifest_of_another_version_is_refused(root):
    edit(root / "manifest.json", lambda raw: raw.update(version=99))
    with pytest.raises(DataError, match="version 99"):
        verify(root, workers=1)


@pytest.mark.parametrize(
    ("odd", "complaint"),
    [
        (lambda rng: jpeg(photograph(rng, 32, 32), progressive=True), "is not a baseline JPEG"),
        (lambda rng: jpeg(photograph(rng, 32, 32), exif=b"Exif\0\0II*\0"), "carries EXIF"),
        (lambda rng: jpeg(photograph(rng, 32, 32), icc_profile=b"x" * 200), "an ICC profile"),
        (lambda rng: jpeg(photograph(rng, 32, 32), subsampling=0), "YCbCr 444 of 32x32"),
        (lambda rng: jpeg(photograph(rng, 40, 32), subsampling=2), "of 40x32"),
        (lambda rng: jpeg(photograph(rng, 32, 32, "L")), "is Gray"),
        (lambda rng: jpeg(photograph(rng, 32, 32), subsampling=2)[:-300], "does not decode"),
        (lambda rng: b"no image at all", "does not decode"),
    ],
)
def test_a_jpeg_that_breaks_the_contract_is_named(tmp_path, rng, odd, complaint):
    items = [*drawn_items(rng, 5, size=32), Item("odd", odd(rng), 1)]
    root = write_dataset(tmp_path / "set", {"train": items}, size=32, shards=1)
    text = "\n".join(faults(root))
    assert complaint in text
    assert "sample 5 (odd)" in text


def test_labels_and_json_are_held_against_the_classes(tmp_path, rng):
    good = drawn_items(rng, 1, size=32)[0]
    items = [good, Item("far", good.jpg, 3), Item("wide", good.jpg, 12345)]
    root = write_dataset(tmp_path / "set", {"train": items}, size=32, shards=1, classes=3)
    text = "\n".join(faults(root))
    assert "(far): has the label b'0003'; there are 3 classes" in text
    assert "(wide): has the label b'12345'" in text
    edit(root / "manifest.json", lambda raw: raw["classes"].__setitem__(0, ["n7", "seven"]))
    assert "has the label of n7 and the wnid 'n00000000'" in "\n".join(faults(root))


def test_a_key_that_is_there_twice_is_named(tmp_path, rng):
    items = drawn_items(rng, 2, size=32)
    root = write_dataset(tmp_path / "set", {"train": items, "test": items}, size=32, shards=1)
    assert f"key '{items[0].key}' is there 2 times" in "\n".join(faults(root))


def test_shards_made_again_from_the_source_are_the_same_bytes(made):
    source, root = made
    found = verify(root, workers=2, rebuild=3, source=source)
    assert len(found.rebuilt) == 3
    assert found.faults == ()
    assert "5 shards, 3 made again" in format_verified(found, root)


def test_a_source_whose_pixels_changed_is_found_by_rebuilding(made, tmp_path, rng):
    source = shutil.copytree(made[0], tmp_path / "zoo")
    for path in source.rglob("*.JPEG"):  # as many bytes as before, other pixels
        data = jpeg(photograph(rng, 70, 70), quality=30)
        path.write_bytes(data.ljust(path.stat().st_size, b"\0"))
    found = verify(made[1], workers=1, rebuild=5, source=source)
    names = {s.name for split in Manifest.load(made[1]).splits.values() for s in split.shards}
    assert set(found.rebuilt) == names
    assert len(found.faults) == 5
    assert "made again, has sha256" in found.faults[0]


def test_another_source_or_none_is_refused(made, tmp_path, rng):
    with pytest.raises(PrepareError, match="give --source"):
        verify(made[1], workers=1, rebuild=1)
    other = draw_classes(tmp_path / "zoo", rng, each=2)
    with pytest.raises(PrepareError, match=r"is not what .* was made from"):
        verify(made[1], workers=1, rebuild=1, source=other)


def test_every_changed_byte_of_an_index_is_a_fault(root):
    path = min((root / "index").glob("*.idx"))
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        changed = bytearray(good)
        changed[position] ^= 2
        path.write_bytes(changed)
        check = check_shard_of(root, path)
        assert check, (position, bytes(changed[position - 20 : position + 20]))
    path.write_bytes(good)
    assert not check_shard_of(root, path)


def check_shard_of(root, index):
    manifest = Manifest.load(root)
    (shard,) = (
        s
        for split in manifest.splits.values()
        for s in split.shards
        if s.index.endswith(index.name)
    )
    wnids = tuple(wnid for wnid, _ in manifest.classes)
    task = CheckTask(
        root=root, shard=shard, size=manifest.size, wnids=wnids, cls_width=manifest.cls_width
    )
    return check_shard(task).faults


def test_a_manifest_that_counts_too_few_classes_is_a_fault(root):
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    split = next(iter(manifest["splits"].values()))
    classes = len(split["counts"])
    del split["counts"][-1]
    path.write_text(json.dumps(manifest))
    assert any(f"counts {classes - 1} classes, it has {classes}" in fault for fault in faults(root))
