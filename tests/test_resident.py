"""A split held decoded in memory gives the CPU's own pixels, by Triton's interpreter."""

import ctypes
import os
import sys

import numpy as np
import pytest
import torch

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader, resident
from pipelines.augment import colours
from pipelines.format import Manifest
from pipelines.normalize import Preprocess
from pipelines.order import BatchSchedule
from pipelines.planesfile import FOLDER, plane_bytes
from pipelines.resident import ResidentImages, Share, fits_on_devices, load_store, share_images
from pipelines.shards import SplitReader
from tests.forks import Fork
from tests.tarsets import drawn_items, measured, write_dataset

pytest.importorskip("triton", reason="Triton comes for Linux alone")


@pytest.fixture
def root(tmp_path, rng):
    splits = {
        "train": drawn_items(rng, 21, classes=5),
        "validation": drawn_items(rng, 2, classes=5, prefix="held"),
    }
    write_dataset(tmp_path, splits, size=64, shards=2, classes=5)
    measured(tmp_path)
    return tmp_path


INTERPRETED = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from alexnet.training.graph import StaticStep
from alexprep.dataset.decode import store_planes
from pipelines import AugmentSpec, LoaderConfig, open_loader, planes_triton

root = Path(sys.argv[1])
# The interpreter's time is that of the programs: two a crop instead of four.
planes_triton.BLOCK = 1024

def batches(split, spec, backend, epochs=1, **config):
    config = LoaderConfig(batch=6, seed=2, backend=backend, **config)
    with open_loader(root, split, config, spec) as loader:
        return [(images.clone(), labels) for _ in range(epochs) for images, labels in loader]

def check(split, spec, **config):
    for (a, b), (c, d) in zip(
        batches(split, spec, "resident", **config), batches(split, spec, "dali", **config),
        strict=True,
    ):
        assert torch.equal(a, c) and torch.equal(b, d), (split, spec, config)
        assert a.dtype == c.dtype

def scaled(mean):
    return AugmentSpec(source=64, crop=45, mean=mean, divide=1.1, sd=(58.0, 57.0, 57.5))

check("train", scaled("image"), epochs=2, channels_last=True)
check("train", scaled("image_at_crop"))
check("train", scaled("channel"))
raw = AugmentSpec(source=64, crop=44, mean="none", lighting=0, divide=1)
check("train", raw, dtype="uint8", order="shards")
check("validation", AugmentSpec(source=64, crop=40), views=10)
check("validation", AugmentSpec(source=64, crop=40, mean="image_at_crop"), views=10)
# Planes from files differ in how they come into memory alone.
store_planes(root, workers=1)
check("train", scaled("image"))
check("validation", AugmentSpec(source=64, crop=40), views=10)
spec = scaled("channel")
# A GPU rounds to the nearest bfloat16, Triton's interpreter cuts the last 16 bits off.
floats = batches("train", spec, "dali", channels_last=True)
halves = batches("train", spec, "resident", channels_last=True, dtype="bfloat16")
for (a, _), (b, _) in zip(floats, halves, strict=True):
    cut = (a.contiguous().view(torch.int32) & -65536).view(torch.float32)
    assert b.dtype == torch.bfloat16 and b.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(b.float(), cut)

spec = AugmentSpec(source=64, crop=44)
whole = batches("train", spec, "dali")
with open_loader(root, "train", LoaderConfig(batch=6, seed=2, backend="resident"), spec) as loader:
    list(zip(range(2), loader))
    state = loader.state_dict()
    list(loader)
    loader.load_state_dict(state)
    for (a, b), (c, d) in zip(loader, whole[loader.step:], strict=False):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert loader.backend.startswith("resident")

# Loading tells how far it is; and full batches are written into the input of a captured step.
config = LoaderConfig(batch=6, seed=2, backend="resident", channels_last=True)
with open_loader(root, "train", config, spec) as loader:
    counts = []
    loader.load(counts.append)
    assert sum(counts) == loader.samples == 21, counts
    addresses, sums = [], []

    def learn(batch):
        addresses.append(batch[0].data_ptr())
        sums.append(batch[0].double().sum() + batch[1].sum())
        return sums[-1]

    step = StaticStep(learn)
    step.offer_input(loader)
    for batch in loader:
        step(batch)
        inputs = step.inputs
        if len(batch[1]) == len(inputs[1]) and len(sums) > 1:
            assert batch[0].data_ptr() == inputs[0].data_ptr()
    assert not loader.write_into(torch.empty(6, 3, 44, 44))
    plain = batches("train", spec, "dali", channels_last=True)
    expected = [images.double().sum() + labels.sum() for images, labels in plain]
    assert sums == expected, (sums, expected)
    assert len(set(addresses)) < len(addresses)
"""


def test_batches_are_those_of_dali_from_planes_and_from_jpegs(root):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    assert Fork([sys.executable, "-c", INTERPRETED, root], env=environment).wait() == 0
    assert (root / FOLDER).is_dir()


def test_without_a_gpu_the_reason_and_another_backend_are_named(root):
    spec = AugmentSpec(source=64, crop=44)
    with pytest.raises(DataError, match=r"cuda:N.*backend='planes'"):
        open_loader(root, "train", LoaderConfig(batch=6, backend="resident"), spec)


def gpus(monkeypatch, free, readable=True):
    """GPUs that have so many bytes free, of which the first reads the others or not."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 80 << 30))
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda _device, _peer: readable)
    return [torch.device(f"cuda:{number}") for number in range(len(free))]


def images_of(shares):
    return [(str(share.device), share.images) for share in shares]


def test_memory_is_checked_before_it_is_taken_and_every_process_counts(monkeypatch):
    devices = gpus(monkeypatch, [20 << 30])
    image = plane_bytes(256)
    assert images_of(share_images(10, 256, devices)) == [("cuda:0", 10), ("cpu", 0)]
    fitting = (4 << 30) // image  # 16 of 20 GiB are the network's
    expected = [("cuda:0", fitting), ("cpu", 10)]
    assert images_of(share_images(fitting + 10, 256, devices)) == expected
    assert fits_on_devices(fitting, 256, devices)
    assert not fits_on_devices(fitting + 10, 256, devices)
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    more = fitting + host // 3 // image  # a third of the host for a process, half for all of them
    assert share_images(more, 256, devices)[0].images == fitting
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DataError, match=r"in each of 2 processes, .* more than half of the host's"):
        share_images(more, 256, devices)


def test_peers_hold_what_the_first_gpu_does_not_and_the_host_the_surplus(monkeypatch):
    image = plane_bytes(256)
    devices = gpus(monkeypatch, [20 << 30, 10 << 30, 17 << 30])
    first, third = (4 << 30) // image, (1 << 30) // image  # the second has nothing to spare
    shares = share_images(first + third + 7, 256, devices)
    expected = [("cuda:0", first), ("cuda:1", 0), ("cuda:2", third), ("cpu", 7)]
    assert images_of(shares) == expected
    assert fits_on_devices(first + third, 256, devices)
    assert not fits_on_devices(first + third + 1, 256, devices)
    # The same GPU by another name is one, and one that cannot be read is none.
    assert images_of(share_images(first + 5, 256, [devices[0], devices[0]])) == [
        ("cuda:0", first),
        ("cpu", 5),
    ]
    gpus(monkeypatch, [20 << 30, 10 << 30, 17 << 30], readable=False)
    assert images_of(share_images(first + 5, 256, devices)) == [("cuda:0", first), ("cpu", 5)]


def test_too_little_memory_names_every_gpu_and_what_to_do(monkeypatch):
    devices = gpus(monkeypatch, [20 << 30, 18 << 30])
    samples = 10**9
    with pytest.raises(DataError, match=r"cuda:0 has 21.5 GB and cuda:1 has 19.3 GB free") as error:
        share_images(samples, 256, devices)
    assert "backend='dali'" in str(error.value)


def test_parts_hold_the_split_between_them_in_its_order(root):
    manifest = Manifest.load(root)
    cpu, images = torch.device("cpu"), []
    for counts in ((21,), (5, 0, 9, 7)):
        reader = SplitReader(root, manifest, "train")
        shares = [Share(cpu, count) for count in counts]
        store = load_store(reader, shares, lambda _count: None, threads=2)
        assert [len(part) for part in store.tensors] == list(counts)
        images.append((torch.cat(store.tensors), store.labels))
        addresses = store.addresses(np.arange(21))
        for row, address in enumerate(addresses.tolist()):
            stored = ctypes.string_at(address, plane_bytes(64))
            assert stored == images[0][0][row].numpy().tobytes()
    assert torch.equal(images[0][0], images[1][0])
    assert np.array_equal(images[0][1], images[1][1])


@pytest.mark.two_gpus
def test_a_gpu_reads_the_memory_of_its_peer(root, monkeypatch):
    manifest, devices = Manifest.load(root), [torch.device("cuda:0"), torch.device("cuda:1")]
    if not torch.cuda.can_device_access_peer(*devices):
        pytest.skip("cuda:0 cannot read cuda:1")
    monkeypatch.setattr(resident, "CHUNK", 4)
    spec = AugmentSpec(source=64, crop=44, mean="none", lighting=0, divide=1)
    schedule = BatchSchedule(
        lengths=[21], spec=spec, train=True, seed=0, batch=21, rank=0, world=1, order="global",
        window=1,
    )  # fmt: skip
    plan = next(schedule.batches(0, 0))
    preprocess = Preprocess(spec, colours(spec, None))
    images = []
    for counts in ((21, 0), (8, 13), (0, 21)):
        reader = SplitReader(root, manifest, "train")
        shares = [Share(*pair) for pair in zip(devices, counts, strict=True)]
        store = load_store(reader, shares, lambda _count: None, threads=2)
        images.append(ResidentImages(store, preprocess, 64).images(plan).cpu())
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.gpu
@pytest.mark.parametrize("mean", ["image", "image_at_crop", "channel"])
def test_on_a_gpu_pixels_are_the_cpus(root, mean):
    spec = AugmentSpec(source=64, crop=44, mean=mean)
    batches = {}
    for backend, device in (("resident", "cuda:0"), ("torch", "cpu")):
        config = LoaderConfig(batch=6, backend=backend, device=device)
        with open_loader(root, "train", config, spec) as loader:
            batches[backend] = [(images.cpu(), labels.cpu()) for images, labels in loader]
    for (images, labels), (others, other_labels) in zip(*batches.values(), strict=True):
        torch.testing.assert_close(images, others, rtol=0, atol=2**-15)
        assert torch.equal(labels, other_labels)
