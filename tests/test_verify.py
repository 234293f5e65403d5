import json
import shutil
import tempfile

import numpy as np
import pytest
from PIL import Image

from alexprep.dataset.decode import store_planes
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.dataset.verify import CheckTask, check_shard, format_verified, verify
from alexprep.errors import PrepareError
from alexprep.lock import hold_lock
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


def test_statistics_are_no_fault_until_a_byte_of_them_changes(root):
    for split in ("train", "validation"):
        compute_stats(root, split, workers=1)
    assert faults(root) == ()
    edit(root / "stats.json", lambda raw: raw["mean_0_255"].__setitem__(0, 1.0))
    (fault,) = faults(root)
    assert fault.startswith(f"{root}/stats.json is damaged (it has other numbers than stats.npz)")
    compute_stats(root, workers=1)
    png = root / "mean-validation.png"
    Image.new("RGB", (48, 48)).save(png)
    assert faults(root) == (f"{png} is not the mean image of stats-validation.npz",)
    png.write_bytes(b"x")
    assert faults(root) == (f"{png} is not the mean image of stats-validation.npz",)
    for name in ("stats.json", "stats.npz"):
        good = (root / name).read_bytes()
        (root / name).write_bytes(b"x")
        assert len(faults(root)) == 2
        (root / name).write_bytes(good)


def test_statistics_of_other_shards_are_a_fault(root, made):
    compute_stats(root, workers=1)
    edit(root / "stats.json", lambda raw: raw["shards"].popitem())
    (fault,) = faults(root)
    assert f"{root}/stats.json was taken from other shards" in fault


def test_planes_are_checked_where_a_split_has_some(root):
    store_planes(root, workers=1)
    assert faults(root) == ()
    first, second, third = sorted((root / "planes").glob("*-train-*"))
    data = bytearray(first.read_bytes())
    data[5000] ^= 1
    first.write_bytes(data)
    second.unlink()
    third.write_bytes(third.read_bytes()[:-1])
    stray = root / "planes/zoo-train-000009.planes"
    stray.write_bytes(b"")
    lines = faults(root)
    assert len(lines) == 4
    assert lines[0] == f"{stray} is not in the manifest"
    assert f"{first}: its bytes were changed" in lines[1]
    assert f"{second} is missing. Make it with `alexprep planes" in lines[2]
    assert f"{third} has " in lines[3]
    for path in (first, third, stray):
        path.unlink()
    assert faults(root) == ()


def test_lists_of_fixed_and_skipped_files_are_checked(tmp_path, rng):
    source = draw_classes(tmp_path / "zoo", rng, each=4)
    for name in ("train/ant/ant_train_1.JPEG", "train/bee/bee_train_2.JPEG"):
        (source / name).write_bytes(jpeg(photograph(rng, 60, 60, "L")))
    for name in ("train/ant/ant_train_2.JPEG", "train/bee/bee_train_3.JPEG"):
        (source / name).write_bytes(b"no image")
    root = tmp_path / "set"
    manifest = shard(source, root, CONFIG, RunOptions(workers=1, on_error="skip"))
    assert manifest.mended == {"gray": ("ant_train_1", "bee_train_2")}
    assert len(manifest.left_out) == 2
    assert faults(root) == ()
    good = (root / "manifest.json").read_text()
    for change, expected in (
        (
            lambda raw: raw["mended"]["gray"].pop(),
            "mended in the manifest does not list the images that are fixed as 'gray'",
        ),
        (
            lambda raw: raw["mended"].update(cmyk=["x"]),
            "mended in the manifest does not list the images that are fixed as 'cmyk'",
        ),
        (
            lambda raw: raw["mended"].clear(),
            "mended in the manifest does not list the images that are fixed as 'gray'",
        ),
        (lambda raw: raw["left_out"].reverse(), "left_out in the manifest is not sorted"),
        (lambda raw: raw["left_out"].append(raw["left_out"][-1]), "or has a file twice"),
        (lambda raw: raw["left_out"][0].update(sha256="beef"), "left_out in the manifest has"),
        (lambda raw: raw["left_out"][1].update(reason=""), "left_out in the manifest has"),
    ):
        edit(root / "manifest.json", change)
        (fault,) = faults(root)
        assert expected in fault
        (root / "manifest.json").write_text(good)


def test_rebuilt_shards_of_a_killed_call_are_removed_by_the_next(made, tmp_path, monkeypatch):
    source, root = made
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "alexprep-verify-0123/train").mkdir(parents=True)
    (tmp_path / "alexprep-verify-89ab.lock").touch()  # killed before it made its folder
    in_use = tmp_path / "alexprep-verify-4567"
    in_use.mkdir()
    with hold_lock(tmp_path / "alexprep-verify-4567.lock", in_use, PrepareError, remove=True):
        assert verify(root, workers=1, rebuild=1, source=source).faults == ()
    assert list(tmp_path.iterdir()) == [in_use]


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
        "synsets.txt does not agree with the manifest",
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
        raw["mended"] = {}

    edit(root / "manifest.json", change)
    text = "\n".join(faults(root))
    assert "train: label 1 has 10 images, the manifest says 11" in text
    assert "the largest jpg has" in text
    assert "fixed images are {}, the manifest says {'gray': 5}" in text


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
    assert f"key '{items[0].key}' occurs 2 times" in "\n".join(faults(root))


def test_shards_made_again_from_the_source_are_the_same_bytes(made):
    source, root = made
    found = verify(root, workers=2, rebuild=3, source=source)
    assert len(found.rebuilt) == 3
    assert found.faults == ()
    assert "5 shards, 3 rebuilt" in format_verified(found, root)


def test_a_source_whose_pixels_changed_is_found_by_rebuilding(made, tmp_path, rng):
    source = shutil.copytree(made[0], tmp_path / "zoo")
    for path in source.rglob("*.JPEG"):  # as many bytes as before, other pixels
        data = jpeg(photograph(rng, 70, 70), quality=30)
        path.write_bytes(data.ljust(path.stat().st_size, b"\0"))
    found = verify(made[1], workers=1, rebuild=5, source=source)
    names = {s.name for split in Manifest.load(made[1]).splits.values() for s in split.shards}
    assert set(found.rebuilt) == names
    assert len(found.faults) == 5
    assert "rebuilt, has sha256" in found.faults[0]


def test_another_source_or_none_is_refused(made, tmp_path, rng):
    with pytest.raises(PrepareError, match="name it with --source"):
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
