"""Without pillow-simd an image becomes the same pixels as with it."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from alexprep.dataset.codec import HAS_SIMD
from alexprep.dataset.resize import resize

sides = st.integers(1, 700)


def by_pil(picture, size, box):
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box))


def drawn(width, height):
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


@pytest.mark.skipif(not HAS_SIMD, reason="compares with pillow-simd; without it see the next test")
@settings(deadline=None, max_examples=80)
@given(
    sides,
    sides,
    st.tuples(*[st.sampled_from([1, 16, 64, 225, 256])] * 2),
    st.floats(0, 0.4),
    st.floats(0.6, 1),
)
@example(3000, 2, (256, 256), 0.0, 1.0)
@example(256, 256, (256, 256), 0.0, 1.0)
@example(500, 375, (341, 256), 0.0, 1.0)
@example(2600, 900, (225, 256), 0.0, 1.0)  # in two parts
def test_pixels_are_those_of_pillow_simd(width, height, size, begin, end):
    picture = drawn(width, height)
    box = (begin * width, begin * height, end * width, end * height)
    assert np.array_equal(resize(picture, size, box)[..., :3], by_pil(picture, size, box))


def test_pixels_are_those_that_pillow_simd_gave_on_another_day():
    digest = hashlib.sha256()
    for width, height in ((500, 375), (375, 500), (60, 90), (1200, 700), (256, 256), (2000, 20)):
        side = min(width, height) * 0.9
        box = (0.3, 0.1, 0.3 + side, 0.1 + side)
        pixels = resize(drawn(width, height), (256, 256), box)[..., :3]
        digest.update(pixels.tobytes())
    assert digest.hexdigest()[:16] == "d3a4ccb96919ec1e"


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.sampled_from([(16, 16), (300, 256)]))
def test_pixels_are_those_of_any_pillow_to_one_level(width, height, size):
    picture, box = drawn(width, height), (0, 0, width, height)
    difference = resize(picture, size, box)[..., :3].astype(int)
    difference -= by_pil(picture, size, box)
    assert np.abs(difference).max() <= 1
