"""Inputs that people report, and what becomes of them: what no other file tests.

a set of one class is not trained on                              row 43
odd JPEGs are read, or named                                      row 47
of several pictures in a file the first is used                   row 13
an official archive with something else in it is refused          row 32
names and an environment of any kind change no byte               rows 27, 39
a data set stays whole under what a file manager adds             row 50
validation images may lack a class, a split may not be empty      row 30
classes are kept by any source                                    demand B10
a JPEG without its end marker is used, one without rows is not    row 9
a sample is found by the name of its file                         row 27
a folder without images is refused                                demand B8, row 30
OUT on the Hugging Face Hub is refused with what to do            row 37
a data set that may only be read is measured and trained on       row 38
OUT with a ~ in quotes is in the home                             row 39
a JPEG of no height is named as such                              row 47
classes that are not the network's                                row 45: test_other_classes.py
"""

import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner
from PIL import Image

from alexprep.cli import cli
from alexprep.dataset.codec import ImageError, encode
from alexprep.dataset.lookup import read_sample
from alexprep.dataset.shard import ShardConfig, shard
from alexprep.dataset.verify import verify
from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from alexprep.sources.listing import SourceOptions
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from tests.archives import (
    WNIDS,
    draw_ilsvrc,
    shard_hashes,
    tar_bytes,
    write_2010,
    write_archives,
    write_class_tars,
    write_extracted,
    write_kaggle,
    write_parquet,
    write_sorted,
)
from tests.drawing import jpeg, photograph
from tests.forks import run_fork
from tests.tarsets import drawn_items, write_dataset

SMALL = ("--smoke", "--no-validation")


def call(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def tree(tmp_path, rng):
    """Two class folders of two photographs each."""
    for name in ("cat", "dog"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for n in range(2):
            data = jpeg(photograph(rng, 40, 48))
            (tmp_path / "source" / name / f"{name} no. {n}.jpg").write_bytes(data)
    return tmp_path / "source"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_used(rng, progressive, mode):
    data = jpeg(photograph(rng, 90, 120, mode=mode), 95, progressive=progressive)
    assert data.endswith(b"\xff\xd9")
    complete = encode(data, size=64, quality=95)
    for end in (1, 2):
        encoded = encode(data[:-end], size=64, quality=95)
        assert encoded.jpg == complete.jpg
        assert encoded.fixes == (*complete.fixes, "damaged")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_rows_is_no_image(rng, progressive):
    data = jpeg(photograph(rng, 90, 120), 95, progressive=progressive)
    for end in (10, 100, len(data) // 3):
        with pytest.raises(ImageError, match="is a damaged JPEG"):
            encode(data[:-end], size=64, quality=95)


def test_a_progressive_jpeg_that_ends_between_two_scans_is_no_image(rng):
    data = jpeg(photograph(rng, 90, 120), 95, progressive=True)
    begin = data.rfind(b"\xff\xda")
    begin = data.rfind(b"\xff\xc4", 0, begin) if b"\xff\xc4" in data[begin - 60 : begin] else begin
    with pytest.raises(ImageError, match="is a damaged JPEG"):
        encode(data[:begin], size=64, quality=95)


def test_a_jpeg_of_no_height_is_named_as_such(rng):
    data = bytearray(jpeg(photograph(rng, 90, 120)))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">H", data, frame + 5, 0)
    with pytest.raises(ImageError, match="has no pixels: its size is 90 x 0"):
        encode(bytes(data), size=64, quality=95)


@pytest.mark.parametrize("name", ["cat no. 1.jpg", "cat no. 1", "cat/cat no. 1.jpg"])
def test_a_sample_is_found_by_the_name_of_its_file(tree, tmp_path, name):
    shard(tree, tmp_path / "set")
    sample = read_sample(tmp_path / "set", name)
    assert sample.key.startswith("cat_no__1-")
    result = call("cat", tmp_path / "set", name, "--json")
    assert f"{name} is sample {sample.key}" in result.stderr
    assert json.loads(result.stdout)["wnid"] == "cat"
    with pytest.raises(DataError, match=r"has no sample 'cat no. 7.jpg'"):
        read_sample(tmp_path / "set", "cat no. 7.jpg")


def test_an_empty_class_folder_is_refused(tree, tmp_path):
    (tree / "cow").mkdir()
    with pytest.raises(PrepareError, match=r"cow has no files, so .*remove the folder"):
        shard(tree, tmp_path / "set")


def test_the_hub_is_refused_as_out_with_what_to_do(tree):
    result = call("shard", tree, "hf://datasets/me/photos")
    assert result.exit_code == 1
    assert "hf upload-large-folder me/photos FOLDER --repo-type dataset" in result.output


def test_a_tilde_in_quotes_is_the_home(tree, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert call("shard", tree, "~/set").exit_code == 0
    assert Manifest.load(tmp_path / "home" / "set").splits["train"].samples == 4
    assert not (tmp_path / "~").exists()


# Root may write anywhere, so the command itself counts what is opened for writing or changed.
AUDITED = """
import json, os, sys
root = sys.argv[1]
def hook(event, args):
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
    if event == "open":
        changes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if args[2] else False
    if changes and str(args[0]).startswith(root):
        os.write(2, f"WROTE {event} {args}".encode())
        os._exit(97)
sys.addaudithook(hook)
from alexprep.cli import cli
for words in json.loads(sys.argv[2]):
    try:
        cli(words)
    except SystemExit as end:
        if end.code:
            raise
"""


def audited(root, *commands):
    lines = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-c", AUDITED, str(root), lines]
    process = run_fork(command)
    assert process.returncode == 0, process.stderr


def test_a_data_set_that_may_only_be_read_is_measured_trained_on_and_evaluated(tmp_path, rng):
    for n, split in enumerate(("train",) * 12 + ("val",) * 6):
        path = tmp_path / "source" / split / "abc"[n % 3] / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(rng, 64, 64)))
    root = tmp_path / "shared"
    shard(tmp_path / "source", root, ShardConfig(size=64))
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    stats, run = tmp_path / "stats", tmp_path / "run"
    tiny = [f"--set=model.conv{n}.out=4" for n in (1, 2, 3, 4, 5)]
    tiny += ["--set=model.fc6.out=8", "--set=model.fc7.out=8"]
    tiny += ["--set", "loader.batch=4", "--epochs", 1, "--devices", "cpu", "--backend", "torch"]
    audited(
        root,
        ("stats", root, "--out", stats, "--workers", 1),
        ("train", root, "--run", run, "--stats", stats, "--smoke", *tiny),
        ("eval", run, "--data", root, "--device", "cpu"),
        ("verify", root, "--workers", 1),
        ("report", run),
    )
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before
    call("stats", root)
    manifest = Manifest.load(root)
    one, two = ImageStats.load(root, manifest), ImageStats.load(root, manifest, folder=stats)
    np.testing.assert_array_equal(one.mean_image_HWC, two.mean_image_HWC)


def test_statistics_that_are_not_there_are_named_with_what_to_run(tmp_path, rng):
    root = write_dataset(tmp_path / "set", {"train": drawn_items(rng, 6)}, size=64)
    result = call("train", root, "--run", tmp_path / "run", "--stats", tmp_path / "none", *SMALL)
    assert result.exit_code == 1
    assert f"Run `alexprep stats {root} --out {tmp_path / 'none'}`." in result.output


def test_a_set_of_one_class_is_not_trained_on(tmp_path, rng):
    items = drawn_items(rng, 6, classes=1)
    splits = {"train": items, "validation": items[:3]}
    root = write_dataset(tmp_path / "set", splits, size=64, classes=1)
    result = call("train", root, "--run", tmp_path / "run", "--smoke")
    assert result.exit_code == 1
    assert "has one class" in result.output
    assert "there is nothing to learn" in result.output
    assert not (tmp_path / "run").exists()


def odd_jpegs(picture):
    """Files that decoders have refused at some time."""
    plain, pixels = jpeg(picture, 95), np.asarray(picture)
    profile = b"".join(
        b"\xff\xe2" + struct.pack(">H", 60_016) + b"ICC_PROFILE\0" + bytes([n, 48]) + bytes(60_000)
        for n in range(1, 49)
    )
    pair = io.BytesIO()
    picture.save(pair, "MPO", save_all=True, append_images=[picture], quality=95)
    ink = jpeg(picture.convert("CMYK"), 95)
    adobe = ink.index(b"\xff\xee")
    sampled = {
        s: simplejpeg.encode_jpeg(pixels, 95, "RGB", s) for s in ("444", "422", "440", "411")
    }
    return sampled | {
        "several pictures": pair.getvalue(),
        "a megabyte behind it": plain + bytes(1_000_000),
        "a profile of 3 MB": plain[:2] + profile + plain[2:],
        "ink without Adobe's mark": ink[:adobe] + ink[adobe + 16 :],
        "one pixel": jpeg(picture.resize((1, 1))),
        "one column": jpeg(picture.resize((1, 3000))),
        "one row": jpeg(picture.resize((65_500, 1))),
    }


@pytest.mark.parametrize("kind", odd_jpegs(Image.new("RGB", (32, 24))))
def test_odd_jpegs_are_read(rng, kind):
    picture = photograph(rng, 90, 70)
    encoded = encode(odd_jpegs(picture)[kind], size=32, quality=100)
    assert encoded.fixes == (("cmyk",) if "ink" in kind else ())
    if not kind.startswith("one"):
        expected = encode(jpeg(picture, 95), size=32, quality=100)
        ours, theirs = (np.asarray(Image.open(io.BytesIO(e.jpg)), int) for e in (encoded, expected))
        assert np.abs(ours - theirs).mean() < 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"\r\n" + data, "is not an image: it begins with b'\\\\r\\\\n"),
        (lambda data: data.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "of 12 bits"),
        (lambda data: data.replace(b"\xff\xc0", b"\xff\xc5"), "is a damaged JPEG"),
    ],
    ids=["bytes before it", "12 bits", "hierarchical"],
)
def test_odd_jpegs_that_are_not_read_are_named(rng, change, reason):
    with pytest.raises(ImageError, match=reason):
        encode(change(jpeg(photograph(rng, 90, 70))), size=32, quality=95)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_of_several_pictures_in_a_file_the_first_is_used(rng, kind):
    first, second = (photograph(rng, 60, 44).quantize(16).convert("RGB") for _ in range(2))
    both, alone = io.BytesIO(), io.BytesIO()
    first.save(both, kind, save_all=True, append_images=[second])
    first.save(alone, kind)
    encoded = [encode(file.getvalue(), size=32, quality=90) for file in (both, alone)]
    assert encoded[0].jpg == encoded[1].jpg


def test_an_official_archive_with_something_else_in_it_is_refused(tmp_path):
    files = {"n01440764.tar": tar_bytes({"n01440764_1.JPEG": b"\xff\xd8"}), "README": b"Read me"}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(files))
    with pytest.raises(PrepareError, match=r"holds 'README'; expected a tar a class"):
        find_source(tmp_path)


def test_names_and_an_environment_of_any_kind_change_no_byte(tmp_path, rng):
    root = tmp_path / "a b % { [ #"
    names = ("with space", "new\nline", "émoji 🐈", "-dash", "l" * 200, "no ending", "UP")
    endings = (".jpg", ".jpg", ".jpg", ".jpg", ".jpg", "", ".JPG")
    for number, (name, ending) in enumerate(zip(names, endings, strict=True)):
        path = root / ("ant", "bee")[number % 2] / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(rng, 40, 48)))
    (root / "bee" / os.fsdecode(b"latin \xe9.jpg")).write_bytes(jpeg(photograph(rng, 40, 48)))
    made = shard(root, tmp_path / "here", ShardConfig(size=32))
    command = [sys.executable, "-m", "alexprep", "shard", root, tmp_path / "there", "--size", "32"]
    shell = 'unset HOME; ulimit -n 40; umask 077; exec "$0" "$@" <&-'
    done = subprocess.run(
        ["sh", "-c", shell, *map(str, command)],
        env={**os.environ, "LC_ALL": "C", "TMPDIR": "/proc", "COLUMNS": "20"},
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 0, done.stderr
    assert shard_hashes(tmp_path / "there") == shard_hashes(tmp_path / "here")
    assert made.splits["train"].samples == 8


def test_a_data_set_stays_whole_under_what_a_file_manager_adds(tree, tmp_path):
    root = tmp_path / "set"
    made = shard(tree, root)
    for path in (".DS_Store", "train/._x.tar", "train/Thumbs.db", ".cache/huggingface/x.lock"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0\0\0\1Bud1")
    assert verify(root, workers=1).faults == ()
    assert shard(tree, root) == made


def test_validation_images_may_lack_a_class_and_a_split_may_not_be_empty(tree, tmp_path):
    (tmp_path / "split").mkdir()
    tree.rename(tmp_path / "split" / "train")
    held_out = tmp_path / "split" / "val"
    held_out.mkdir()
    with pytest.raises(PrepareError, match=r"val has no files"):
        find_source(tmp_path / "split")
    (held_out / "dog").mkdir()
    (held_out / "dog" / "1.jpg").write_bytes(b"\xff\xd8")
    assert find_source(tmp_path / "split").splits["validation"].label.tolist() == [1]


def write_foreign_shards(folder, train, held_out):
    """WebDataset tars of the names and wnids."""
    rows = {"train": {name: (data, name.split("_")[0]) for name, data in train.items()}}
    for split, images in (rows | {"val": held_out}).items():
        (folder / split).mkdir(parents=True)
        members = {}
        for name, (data, wnid) in images.items():
            members |= {f"{name[:-5]}.jpg": data, f"{name[:-5]}.txt": wnid.encode()}
        (folder / split / "00000.tar").write_bytes(tar_bytes(members))
    return folder


def write_finished(folder, train, held_out):
    """A finished data set of ours."""
    source = write_sorted(folder.with_name("sorted"), train, held_out)
    shard(source, folder, ShardConfig(size=32))
    return folder


def write_one_tar(folder, train, held_out):
    """fall11_whole.tar."""
    classes = write_class_tars(folder.with_name("classes"), train)
    folder.mkdir()
    tars = {path.name: path.read_bytes() for path in classes.iterdir()}
    (folder / "fall11_whole.tar").write_bytes(tar_bytes(tars))
    return folder


LAYOUTS = (
    *(write_archives, write_2010, write_extracted, write_sorted, write_kaggle, write_parquet),
    *(write_foreign_shards, write_finished, write_one_tar),
    lambda folder, train, held_out: write_class_tars(folder, train),
)


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_classes_are_kept_by_any_source_in_the_order_asked_for(tmp_path, rng, write):
    train, held_out = draw_ilsvrc(rng, each=3)
    root = write(tmp_path / "source", train, held_out)
    keep = (WNIDS[3], WNIDS[0])
    source = find_source(root, SourceOptions(classes=keep))
    assert tuple(wnid for wnid, _ in source.classes) == keep
    assert sorted(key.decode() for key in source.splits["train"].key) == sorted(
        name[:-5] for name in train if name.startswith(keep)
    )
    wnid_of = {name[-13:-5]: wnid for name, (_, wnid) in held_out.items()}
    for split, samples in source.splits.items():
        for key, label in zip(samples.key.tolist(), samples.label.tolist(), strict=True):
            name = key.decode()
            assert keep[label] == (name[:9] if split == "train" else wnid_of[name[-8:]])
    with pytest.raises(PrepareError, match="the first is 'n09999999'"):
        find_source(root, SourceOptions(classes=("n09999999",)))
