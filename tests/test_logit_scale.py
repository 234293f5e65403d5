"""The trap of the initial scale: with the usual changes a network starts with next to no signal."""

import io
import tarfile
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet import build
from alexnet.model.networks import code2012, paper
from alexnet.model.spec import with_rows

# Rough means of ILSVRC's channels in grey levels, and the sd that ports divide by.
MEAN = torch.tensor([125.2, 117.7, 105.2])[:, None, None]
SD = torch.tensor([58.4, 57.1, 57.4])[:, None, None]


@pytest.fixture(scope="module")
def photographs(shared_data):
    """24 real images (24, 3, 227, 227): shorter side 256, the centre, in grey levels minus mean."""
    with tarfile.open(shared_data / "ilsvrc-sample-500.tar") as tar:
        members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)[:24]
        files = [tar.extractfile(member).read() for member in members]
    yield torch.stack([centre(Image.open(io.BytesIO(data))) for data in files]) - MEAN
    network.cache_clear()


def centre(image, size=227):
    scale = 256 / min(image.size)
    sides = [max(round(side * scale), 256) for side in image.size]
    image = image.convert("RGB").resize(sides, Image.Resampling.LANCZOS)
    left, top = ((side - size) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@cache
def network(config):
    """Drawing its 61 million weights takes longer than the images do."""
    return build(config, seed=0).eval()


def logit_sd(config, images):
    """How much logits depend on the image: sd around each class's mean over the images, in use."""
    with torch.no_grad():
        logits = network(config)(images[:, :, : config.crop, : config.crop])
    return (logits - logits.mean(0)).square().mean().sqrt().item()


def test_the_code_starts_with_the_signal_that_was_measured_for_it(photographs):
    assert logit_sd(code2012(), photographs) == pytest.approx(0.0437, rel=0.2)


def test_the_typical_port_starts_six_hundred_times_below(photographs):
    small = {"sd": 0.01}
    port = with_rows(code2012(), conv3=small, conv4=small, conv5=small)
    assert logit_sd(port, photographs / SD) == pytest.approx(7.2e-5, rel=0.2)


def test_either_half_of_the_trap_costs_an_order_of_magnitude(photographs):
    small = {"sd": 0.01}
    port = with_rows(code2012(), conv3=small, conv4=small, conv5=small)
    assert logit_sd(port, photographs) == pytest.approx(0.0030, rel=0.2)
    assert logit_sd(paper(), photographs) == pytest.approx(0.0030, rel=0.2)
    assert logit_sd(code2012(), photographs / SD) == pytest.approx(0.00145, rel=0.2)
