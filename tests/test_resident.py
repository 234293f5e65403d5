"""A split held decoded in memory gives the CPU's own pixels, by Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from pipelines import AugmentSpec, DataError, LoaderConfig, open_loader, resident
from pipelines.planesfile import FOLDER, plane_bytes
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
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", INTERPRETED, str(root)]
    subprocess.run(command, env=environment, check=True)
    assert (root / FOLDER).is_dir()


def test_without_a_gpu_the_reason_and_another_backend_are_named(root):
    spec = AugmentSpec(source=64, crop=44)
    with pytest.raises(DataError, match=r"cuda:N.*backend='planes'"):
        open_loader(root, "train", LoaderConfig(batch=6, backend="resident"), spec)


def test_memory_is_checked_before_it_is_taken_and_every_process_counts(monkeypatch):
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (20 << 30, 80 << 30))
    image = plane_bytes(256)
    assert resident.images_on_device(10, 256, gpu) == 10
    fitting = (4 << 30) // image  # 16 of 20 GiB are the network's
    assert resident.images_on_device(fitting + 10, 256, gpu) == fitting
    assert not resident.fits_on_device(fitting + 10, 256, gpu)
    host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    more = fitting + host // 3 // image  # a third of the host for a process, half for all of them
    assert resident.images_on_device(more, 256, gpu) == fitting
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DataError, match=r"in each of 2 processes, .* more than half of the host's"):
        resident.images_on_device(more, 256, gpu)


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
