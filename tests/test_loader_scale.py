"""ImageNet's numbers on a small machine: 1024 shards, 1.28 million samples, many epochs."""

import gc
import json
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader
from pipelines.format import Manifest
from pipelines.shards import SplitReader
from tests.tarsets import drawn_items, measured, write_dataset

RAW = AugmentSpec(source=32, crop=28, mean="none", lighting=0, divide=1)
BACKENDS = ("dali", "torch")
SHARDS, SAMPLES = 1024, 1251


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """1024 shards of 1251 samples: one tar and one index under 1024 names each."""
    root = tmp_path_factory.mktemp("imagenet")
    items = drawn_items(np.random.default_rng(0), SAMPLES, size=32, classes=1000)
    write_dataset(root, {"train": items}, size=32, shards=1, classes=1000, name="big")
    manifest = json.loads((root / "manifest.json").read_text())
    (shard,) = manifest["splits"]["train"]["shards"]
    shards = []
    for number in range(SHARDS):
        stem = f"big-train-{number:06d}"
        if number:
            os.link(root / "train" / "big-train-000000.tar", root / "train" / f"{stem}.tar")
            os.link(root / "index" / "big-train-000000.idx", root / "index" / f"{stem}.idx")
        shards.append(shard | {"name": f"train/{stem}.tar"})
    manifest["splits"]["train"]["shards"] = shards
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_the_first_batch_of_imagenet_needs_a_fraction_of_its_index(imagenet):
    with open_loader(imagenet, config=LoaderConfig(backend="torch"), augment=RAW) as loader:
        next(iter(loader))
        assert loader.samples == SHARDS * SAMPLES
        assert len(loader._reader._indexes) <= 128 * 6


def test_the_whole_index_takes_less_than_100_megabytes(imagenet):
    reader = SplitReader(imagenet, Manifest.load(imagenet), "train", "size")
    # All shards are alike: every 16th says what all take.
    indexes = [reader._shard_index(number) for number in range(0, SHARDS, 16)]
    arrays = 16 * sum(array.nbytes for index in indexes for array in index)
    order = loader_order_bytes(imagenet)
    assert arrays + order < 100e6
    assert arrays / (SHARDS * SAMPLES) < 32


def loader_order_bytes(root):
    with open_loader(root, config=LoaderConfig(backend="torch"), augment=RAW) as loader:
        return loader._schedule.order_of(0).nbytes


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_flat_over_50_epochs(tmp_path, rng, backend):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 96)}, size=64)
    measured(root)
    process, sizes = psutil.Process(), []
    gc.collect()
    gc.freeze()  # what torch and pytest have: later collections look at what the loader makes
    with open_loader(root, config=LoaderConfig(batch=32, backend=backend)) as loader:
        for _ in range(50):
            for _images, _labels in loader:
                pass
            gc.collect()
            sizes.append(process.memory_info().rss)
    gc.unfreeze()
    assert max(sizes[2:]) <= 1.05 * sizes[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_thread_process_or_file_is_left_after_an_exception(tmp_path, rng, backend):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 24)}, size=64)
    measured(root)

    def used():
        process = psutil.Process()
        return len(process.children()), process.num_fds()

    def fail():
        with open_loader(root, config=LoaderConfig(batch=4, backend=backend)) as loader:
            for number, _ in enumerate(loader):
                if number == 1:
                    raise KeyError("the consumer failed")

    with pytest.raises(KeyError):
        fail()
    before, threads = used(), native_threads()
    for _ in range(5):
        with pytest.raises(KeyError):
            fail()
    gc.collect()
    assert used() == before
    assert native_threads() <= threads
    assert not [each for each in threading.enumerate() if "alexprep" in each.name]


def native_threads():
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_loader_that_is_dropped_unclosed_ends_its_threads(tmp_path, rng):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 24)}, size=64)
    measured(root)
    loader = open_loader(root, config=LoaderConfig(batch=4, backend="dali"))
    next(iter(loader))
    del loader
    gc.collect()
    assert not [each for each in threading.enumerate() if "alexprep" in each.name]


def test_without_dali_auto_falls_back_to_torch_and_says_so(tmp_path, rng, monkeypatch):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 8)}, size=64)
    measured(root)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with open_loader(root, config=LoaderConfig(batch=4)) as loader:
        assert loader.backend.startswith("torch: DALI cannot be imported")
        assert len(list(loader)) == 2
    with pytest.raises(DataError, match=r"DALI cannot be imported.*backend='torch'"):
        open_loader(root, config=LoaderConfig(batch=4, backend="dali"))


def test_nothing_is_warned_about(tmp_path, rng):
    root = write_dataset(tmp_path, {"train": drawn_items(rng, 8)}, size=64)
    measured(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("float32", "float16"):
            with open_loader(root, config=LoaderConfig(batch=4, dtype=dtype)) as loader:
                list(loader)
