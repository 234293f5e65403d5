import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexprep.dataset.moments import Moments, image_stats
from alexprep.dataset.moments import principal_axes as axes_of
from alexprep.dataset.pixelsums import IMAGES_BEFORE_FLUSH, Accumulator
from pipelines.imagestats import SHAPES

ILSVRC_IMAGES, SIDE = 1_281_167, 256


def accumulated(images_NHWC):
    """The moments of uint8 images, taken the way a worker takes them."""
    sums = Accumulator(*images_NHWC.shape[1:3])
    for image_HWC in images_NHWC:
        sums.add(image_HWC)
    return sums.moments()


def summed(images_NHWC):
    """The same moments by plain integer arithmetic."""
    pixels = images_NHWC.reshape(-1, 3).astype(np.int64)
    products = tuple(tuple(row) for row in (pixels.T @ pixels).tolist())
    return len(images_NHWC), images_NHWC.sum(axis=0, dtype=np.uint64), products


def colour(moments):
    """Statistics of a split that is called nothing and has no shards."""
    return image_stats("", moments, {})


def assert_same(moments, expected):
    images, sum_HWC, products = expected
    assert moments.images == images
    np.testing.assert_array_equal(moments.sum_HWC, sum_HWC)
    assert moments.products == products


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
def test_sums_are_those_of_integer_arithmetic_for_any_size(images, height, width, seed):
    shape = (images, height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert_same(accumulated(pixels), summed(pixels))


@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_extreme_images_neither_overflow_nor_round_in_the_small_sums(value):
    # 257 images of 255 fill uint16 to the brim.
    pixels = np.full((2 * IMAGES_BEFORE_FLUSH + 3, 40, 60, 3), value, np.uint8)
    assert_same(accumulated(pixels), summed(pixels))


def test_the_products_of_one_large_white_image_need_more_than_32_bits_and_are_exact():
    pixels = np.full((2, 700, 500, 3), 255, np.uint8)
    assert_same(accumulated(pixels), summed(pixels))


def test_sums_can_be_asked_for_and_added_to_again(rng):
    pixels = rng.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    sums = Accumulator(9, 7)
    for end, image_HWC in enumerate(pixels, start=1):
        sums.add(image_HWC)
        assert_same(sums.moments(), summed(pixels[:end]))


def test_all_of_ilsvrc_in_white_has_exact_sums():
    # The largest there can be: every one of 1,281,167 x 65,536 pixels is 255. Added in two halves.
    def white(images):
        total = images * SIDE * SIDE * 255**2
        pixels = np.full((SIDE, SIDE, 3), images * 255, np.uint64)
        return Moments(images, pixels, ((total,) * 3,) * 3)

    moments = white(ILSVRC_IMAGES // 2) + white(ILSVRC_IMAGES - ILSVRC_IMAGES // 2)
    assert moments.products[0][0] == 5_459_665_497_292_800 < 2**53
    assert int(moments.sum_HWC.max()) == ILSVRC_IMAGES * 255
    assert moments.channel_sums == (ILSVRC_IMAGES * SIDE * SIDE * 255,) * 3
    found = colour(moments)
    assert found.mean.tolist() == [255, 255, 255]
    assert not found.covariance.any()
    assert (colour(moments).mean_image_HWC == 255).all()


def test_one_grey_level_among_all_of_ilsvrc_is_not_lost():
    # One pixel of one image is 254: its variance is (n - 1) / n**2, lost at once in float64 sums.
    count = ILSVRC_IMAGES * SIDE * SIDE
    sums = np.full((SIDE, SIDE, 3), ILSVRC_IMAGES * 255, np.uint64)
    sums[5, 6] -= np.uint64(1)
    products = count * 255**2 - 255**2 + 254**2
    found = colour(Moments(ILSVRC_IMAGES, sums, ((products,) * 3,) * 3))
    np.testing.assert_allclose(found.covariance, (count - 1) / count**2, rtol=1e-15)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=7, max_size=7), st.permutations(range(4)))
def test_any_partition_added_in_any_order_gives_the_same_bytes(owners, order):
    pixels = np.random.default_rng(7).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    whole = accumulated(pixels)
    parts = [accumulated(pixels[np.array(owners) == owner]) for owner in order]
    merged = reduce(add, parts, Moments.none(6, 5))
    assert_same(merged, (whole.images, whole.sum_HWC, whole.products))
    for name in SHAPES:
        assert getattr(colour(merged), name).tobytes() == getattr(colour(whole), name).tobytes()


def test_statistics_equal_a_float64_reference_to_1e_12(rng):
    noise = (
        rng.normal(size=(40, 32, 32, 3)) * (60, 20, 10) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    )
    pixels = np.clip(128 + noise, 0, 255).astype(np.uint8)
    found, reference = colour(accumulated(pixels)), pixels.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, reference.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sd, reference.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(reference.T, bias=True), rtol=1e-12)
    np.testing.assert_allclose(
        found.mean_image_HWC, pixels.astype(np.float64).mean(axis=0), rtol=1e-12
    )
    values, vectors = np.linalg.eigh(np.cov(reference.T, bias=True))
    np.testing.assert_allclose(found.eigenvalues, values[::-1], rtol=1e-12)
    np.testing.assert_allclose(found.stdevs, np.sqrt(values[::-1]), rtol=1e-12)
    np.testing.assert_allclose(abs(found.eigenvectors), abs(vectors[:, ::-1]), rtol=1e-11)


def test_pca_recovers_the_axes_of_a_known_cloud(rng):
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cloud = rng.normal(size=(300, 32, 32, 3)) * (30, 20, 10) @ turned.T + 128
    found = colour(accumulated(np.rint(np.clip(cloud, 0, 255)).astype(np.uint8)))
    np.testing.assert_allclose(found.stdevs, [30, 20, 10], rtol=0.01)
    aligned = abs((found.eigenvectors * turned).sum(axis=0))
    np.testing.assert_allclose(aligned, 1, atol=1e-3)


symmetric = st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6).map(
    lambda v: np.array([[v[0], v[1], v[2]], [v[1], v[3], v[4]], [v[2], v[4], v[5]]])
)


@given(symmetric)
def test_axes_are_those_of_lapack_for_any_covariance(root):
    covariance = root @ root.T
    values, axes = (np.array(part) for part in axes_of(covariance.tolist()))
    scale = max(covariance.max(), 1e-300)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(covariance)[::-1], atol=1e-13 * scale * 9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(axes * values @ axes.T, covariance, atol=1e-14 * scale * 9)
    assert (np.diff(values) <= 0).all()
    assert values.min() >= 0


def test_axes_of_gray_pictures_are_one_and_two_of_no_length():
    values, axes = axes_of([[100.0] * 3] * 3)
    np.testing.assert_allclose(values, [300, 0, 0], atol=1e-12)
    np.testing.assert_allclose([row[0] for row in axes], [1 / math.sqrt(3)] * 3)


def test_an_axis_points_where_its_first_component_is_positive():
    assert axes_of([[1.0, 0, 0], [0, 3.0, 0], [0, 0, 2.0]]) == (
        [3, 2, 1],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    )
    _, axes = axes_of([[2.0, -1.0, 0], [-1.0, 2.0, 0], [0, 0, 0.5]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(axes, [[half, half, 0], [-half, half, 0], [0, 0, 1]], atol=1e-15)


# Statistics taken on different machines are compared bit by bit. Other bits here mean that those
# written before no longer match: a new version of stats.json.
PINNED_EIGENVALUES = ["0x1.a0275833e85e2p+12", "0x1.2a8688e2b9d16p+12", "0x1.0efd82c0680e2p+12"]
PINNED_EIGENVECTORS = [
    "0x1.480951ab0a8b8p-1",
    "0x1.4e466e44ef51fp-1",
    "0x1.9dbec24fa540cp-2",
    "-0x1.3730b349b88ebp-1",
    "0x1.817200ef85d11p-1",
    "-0x1.02bd526d81f86p-2",
    "-0x1.e06729b8edbabp-2",
    "-0x1.56caed8f7b511p-4",
    "0x1.c21fa038b9844p-1",
]


def test_statistics_are_pinned():
    pixels = (np.arange(2 * 4 * 5 * 3) ** 2 % 251).astype(np.uint8).reshape(2, 4, 5, 3)
    found = colour(accumulated(pixels))
    assert [value.hex() for value in found.eigenvalues.tolist()] == PINNED_EIGENVALUES
    assert [value.hex() for value in found.eigenvectors.ravel().tolist()] == PINNED_EIGENVECTORS
