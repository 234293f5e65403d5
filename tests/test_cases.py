"""Inputs that people report, and what becomes of them: what no other file tests.

a JPEG without its end marker is used, one without rows is not    row 9
a sample is found by the name of its file                         row 27
a folder without images is refused                                demand B8, row 30
OUT on the Hugging Face Hub is refused with what to do            row 37
a data set that may only be read is measured and trained on       row 38
OUT with a ~ in quotes is in the home                             row 39
a JPEG of no height is named as such                              row 47
classes that are not the network's                                row 45: test_other_classes.py
"""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from alexprep.cli import cli
from alexprep.dataset.codec import ImageError, encode
from alexprep.dataset.lookup import read_sample
from alexprep.dataset.shard import ShardConfig, shard
from alexprep.errors import PrepareError
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from tests.drawing import jpeg, photograph
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
    with pytest.raises(ImageError, match="says it is 90 x 0 pixels: it has none"):
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
    process = subprocess.run(command, capture_output=True, text=True, check=False)
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
