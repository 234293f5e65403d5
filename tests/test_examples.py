"""The examples run as they are given, on a small data set."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from alexnet.training import checkpoint
from alexprep.dataset.manifest import sidecars
from pipelines.format import Manifest
from tests.drawing import jpeg, photograph
from tests.forks import run_fork
from tests.reports import make_dataset, make_run
from tests.tarsets import Item, write_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes that differ in brightness, so that a network learns them in seconds."""
    rng = np.random.default_rng(8)
    items = []
    for number in range(96):
        picture = photograph(rng, 64, 64).point(lambda value, up=number % 2: value // 2 + 120 * up)
        items.append(Item(f"item_{number:03d}", jpeg(picture, 95, subsampling=2), number % 2))
    root = tmp_path_factory.mktemp("examples")
    write_dataset(root, {"train": items[:64], "validation": items[64:]}, size=64, classes=2)
    for name, text in sidecars(Manifest.load(root)).items():
        (root / name).write_text(text)
    return root


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs an example in this process: (exit code, what it printed, what it said as it ended)."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run


def test_another_network_learns_through_the_loader(root, start):
    code, said = start("train_another_network.py", root, "--epochs", 2, "--batch", 16)
    assert code == 0
    shares = [float(share) for share in re.findall(r"top-1 acc ([\d.]+)%", said)]
    assert len(shares) == 2
    assert max(shares) > 85


def test_other_libraries_read_the_shards_in_a_few_lines(root):
    done = run_fork([sys.executable, EXAMPLES / "read_shards.py", root])
    assert done.stdout.splitlines() == [
        f"{library}: 64 samples; the first is item_000, label 0, 64x64"
        for library in ("webdataset", "wids", "datasets", "dali", "torch")
    ]


def test_a_library_that_is_not_installed_is_skipped_with_one_line(root, start, monkeypatch):
    monkeypatch.setitem(sys.modules, "wids", None)
    code, said = start("read_shards.py", root, "wids", "torch")
    assert code == 0
    assert said.splitlines() == [
        "wids: skipped, wids is not installed (pip install wids)",
        "torch: 64 samples; the first is item_000, label 0, 64x64",
    ]


def test_another_network_says_in_one_line_that_a_split_is_missing(root, start, tmp_path):
    shutil.copytree(root, tmp_path / "set")
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["splits"]["validation"]
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    code, said = start("train_another_network.py", tmp_path / "set")
    # What sys.exit is given is printed, and the exit code is 1.
    assert code == f"{tmp_path / 'set'} has no split 'validation'; it has train."
    assert said == ""


@pytest.mark.parametrize("name", ["read_shards.py", "train_another_network.py", "draw_kernels.py"])
def test_what_is_no_data_set_or_run_is_one_line(name, start, tmp_path):
    code, said = start(name, tmp_path / "nothing")
    assert isinstance(code, str)
    assert len(code.splitlines()) == 1
    assert str(tmp_path / "nothing") in code
    assert said == ""


def test_the_kernels_of_both_columns_are_drawn_and_measured(start, tmp_path):
    made = make_run(make_dataset(tmp_path / "set"), tmp_path / "run")
    code, text = start("draw_kernels.py", made, tmp_path / "kernels.png")
    assert code == 0
    said = text.splitlines()
    weights = load_file(checkpoint.resolve(made))["model/conv1.weight"].astype(np.float64)
    for number, (line, kernels) in enumerate(zip(said, np.split(weights, 2), strict=False), 1):
        gray = kernels.mean(axis=1, keepdims=True)
        share = [((k - g) ** 2).sum() / (k**2).sum() for k, g in zip(kernels, gray, strict=True)]
        assert line == (
            f"column {number}: 16 kernels of 5x5, colour share {np.median(share):.2f} in the "
            f"median, from {min(share):.2f} to {max(share):.2f}"
        )
    with Image.open(tmp_path / "kernels.png") as picture:
        pixels = np.asarray(picture)
    zoom = pixels.shape[1] // (8 * 6 - 1)
    # The last kernel of column 2 stands at the end of the picture.
    last = pixels[::-zoom, ::-zoom][:5, :5][::-1, ::-1].astype(float)
    drawn = (last - 127.5) / 127.5 * np.abs(weights[-1]).max()
    np.testing.assert_allclose(drawn.transpose(2, 0, 1), weights[-1], atol=0.01)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_says_what_to_type_and_what_one_sees(path):
    head = path.read_text().split('"""')[1]
    assert f"    python examples/{path.name} " in head
    assert "You see" in head
