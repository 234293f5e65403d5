"""The examples run as they are given, on a small data set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.drawing import jpeg, photograph
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
    return write_dataset(root, {"train": items[:64], "validation": items[64:]}, size=64, classes=2)


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES.parent,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # two busy cores make torch's threads spin
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_network_learns_through_the_loader(root):
    said = run("train_another_network.py", root, "--epochs", 2, "--batch", 16)
    shares = [float(share) for share in re.findall(r"top-1 ([\d.]+)%", said)]
    assert len(shares) == 2
    assert max(shares) > 85


@pytest.mark.parametrize("library", ["webdataset", "datasets", "dali"])
def test_other_libraries_read_the_shards_in_a_few_lines(root, library):
    said = run("read_shards.py", root, library)
    assert said == f"{library}: 64 samples; the first is item_000, label 0, 64x64\n"
