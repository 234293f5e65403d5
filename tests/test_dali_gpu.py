"""DALI on a GPU: decoder differences bounded, layout, order and memory as on the CPU."""

import gc

import numpy as np
import pytest
import torch

from pipelines import AugmentSpec, LoaderConfig, open_loader
from tests.tarsets import drawn_items, measured, write_dataset

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    rng = np.random.default_rng(11)
    root = tmp_path_factory.mktemp("gpu")
    write_dataset(root, {"train": drawn_items(rng, 200, size=256)}, size=256, shards=4)
    measured(root, 256)
    return root


def epoch(root, augment=None, **changes):
    config = LoaderConfig(**{"batch": 64, "device": "cuda:0"} | changes)
    with open_loader(root, config=config, augment=augment) as loader:
        return [(images.clone(), labels.clone()) for images, labels in loader]


@pytest.mark.parametrize("mean", ["image", "image_at_crop", "channel"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_cpu_decode_and_gpu_augmentation_equal_the_cpu(root, mean, channels_last):
    spec = AugmentSpec(mean=mean)
    here = epoch(root, spec, device="cpu", channels_last=channels_last)
    there = epoch(root, spec, decode="cpu", channels_last=channels_last)
    for (images, labels), (gpu_images, gpu_labels) in zip(here, there, strict=True):
        assert gpu_images.device.type == "cuda"
        assert gpu_labels.device.type == "cuda"
        assert torch.equal(labels, gpu_labels.cpu())
        assert gpu_images.stride() == images.stride()
        assert (gpu_images.cpu() - images).abs().max() < 0.01


def test_the_gpu_decoder_differs_by_a_few_grey_levels_at_most(root):
    # nvJPEG and libjpeg-turbo round the inverse DCT and upsample colour differently.
    plain = AugmentSpec(mean="none", lighting=0, divide=1)
    pairs = zip(epoch(root, plain, device="cpu"), epoch(root, plain, decode="mixed"), strict=True)
    differences = torch.cat([(a[0] - b[0].cpu()).abs().flatten() for a, b in pairs])
    assert differences.mean() < 1
    assert differences.max() <= 48


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_types_are_made_on_the_gpu(root, dtype):
    plain = AugmentSpec(mean="none", lighting=0, divide=1)
    images, _ = epoch(root, plain, dtype=dtype)[0]
    assert images.dtype == getattr(torch, dtype)
    assert images.device.type == "cuda"


def test_ten_views_are_made_on_the_gpu(root):
    config = LoaderConfig(batch=8, device="cuda:0", views=10, decode="cpu")
    with open_loader(root, config=config, train=False) as loader:
        images, _ = next(iter(loader))
    with open_loader(root, config=LoaderConfig(batch=8, views=10), train=False) as loader:
        expected, _ = next(iter(loader))
    assert images.shape == (8, 10, 3, 224, 224)
    assert (images.cpu() - expected).abs().max() < 0.01


def test_the_torch_backend_copies_to_the_gpu_and_pins_on_request(root):
    images, labels = epoch(root, backend="torch")[0]
    assert images.device.type == labels.device.type == "cuda"
    images, labels = next(iter(open_loader(root, config=LoaderConfig(batch=8, pin_memory=True))))
    assert images.is_pinned()
    assert labels.is_pinned()


def test_a_resumed_sequence_is_the_same_on_the_gpu(root):
    whole = epoch(root)
    config = LoaderConfig(batch=64, device="cuda:0")
    with open_loader(root, config=config) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with open_loader(root, config=config) as loader:
        loader.load_state_dict(state)
        rest = [(images.clone(), labels.clone()) for images, labels in loader]
    for (images, labels), (expected, expected_labels) in zip(rest, whole[1:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_images_that_are_kept_while_the_gpu_works_are_not_written_over(root):
    with open_loader(root, config=LoaderConfig(batch=16, device="cuda:0")) as loader:
        kept = [(images, images.clone()) for _ in range(3) for images, _ in loader]
    torch.cuda.synchronize()
    assert all(torch.equal(images, copied) for images, copied in kept)


def test_gpu_memory_is_flat_over_many_batches(root):
    sizes = []
    with open_loader(root, config=LoaderConfig(batch=64, device="cuda:0")) as loader:
        for _ in range(40):
            for images, _labels in loader:
                images.sum().item()
            gc.collect()
            free, total = torch.cuda.mem_get_info()
            sizes.append(total - free)
    assert max(sizes[2:]) <= 1.05 * sizes[1]
