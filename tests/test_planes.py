"""Planes: the decoder's own pixels from half the bytes, and files that cannot lie about them."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from drawing import jpeg, photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import DataError
from pipelines.format import Shard
from pipelines.normalize import normalize
from pipelines.planes import decode_planes, rgb_from_planes
from pipelines.planes_loops import StoredCrops, rgb_crop, write_crops
from pipelines.planesfile import (
    HEADER_BYTES,
    PlanesFile,
    plane_bytes,
    planes_file_bytes,
    planes_path,
    write_planes,
)

SIZE = 64
JPEGS = st.builds(
    lambda seed, quality, noise: noisy_jpeg(seed, quality, noise),
    *(st.integers(0, 2**32 - 1), st.integers(1, 100), st.integers(0, 255)),
)


def noisy_jpeg(seed, quality, noise, size=SIZE, subsampling="4:2:0", **options):
    """Colours that clip, edges on odd columns, noise: what rounding could get wrong."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(photograph(rng, size, size)).astype(int)
    pixels = pixels + rng.integers(-noise, noise + 1, pixels.shape)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return jpeg(picture, quality=quality, subsampling=subsampling, **options)


def planes_of(jpg, size=SIZE):
    out = np.empty(plane_bytes(size), np.uint8)
    decode_planes(jpg, size, out)
    return out


@settings(deadline=None, max_examples=60)
@given(JPEGS)
def test_planes_give_the_pixels_of_two_decoders_bit_for_bit(jpg):
    pixels = rgb_from_planes(planes_of(jpg), SIZE)
    np.testing.assert_array_equal(pixels, simplejpeg.decode_jpeg(jpg, "RGB"))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB")))


def test_luma_is_the_decoders_own_gray(rng):
    jpg = noisy_jpeg(1, 90, 40)
    gray = simplejpeg.decode_jpeg(jpg, "GRAY")[..., 0]
    np.testing.assert_array_equal(planes_of(jpg)[: SIZE * SIZE].reshape(SIZE, SIZE), gray)


@settings(deadline=None, max_examples=200)
@given(JPEGS, st.data())
def test_a_crop_from_planes_is_the_crop_of_the_decoded_image(jpg, data):
    height, width = data.draw(st.integers(1, SIZE)), data.draw(st.integers(1, SIZE))
    top, left = data.draw(st.integers(0, SIZE - height)), data.draw(st.integers(0, SIZE - width))
    out = np.empty((height, width, 3), np.uint8)
    rgb_crop(planes_of(jpg), SIZE, top, left, out)
    decoded = simplejpeg.decode_jpeg(jpg, "RGB")
    np.testing.assert_array_equal(out, decoded[top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("jpg", "reason"),
    [
        (noisy_jpeg(0, 90, 9, subsampling="4:4:4"), "4:2:0"),
        (noisy_jpeg(0, 90, 9, subsampling="4:2:2"), "4:2:0"),
        (noisy_jpeg(0, 90, 9, progressive=True), "no frame"),
        (jpeg(Image.new("L", (SIZE, SIZE))), "three components"),
    ],
)
def test_what_planes_cannot_hold_is_refused_with_the_reason(jpg, reason):
    with pytest.raises(ValueError, match=reason):
        planes_of(jpg)


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match="even sides"):
        planes_of(noisy_jpeg(0, 90, 9, size=63), 63)


@pytest.mark.parametrize(("side", "number"), [(SIZE, 2), (45, 0), (50, 1), (1, 2)])
def test_crops_in_one_pass_are_the_formula_on_the_decoders_pixels(rng, tmp_path, side, number):
    # Noise in all three planes reaches every chroma and, with extreme values, every clipping.
    levels = [0, 1, 127, 128, 254, 255, 77]
    images = rng.choice(levels, (3, SIZE * SIZE * 3 // 2)).astype(np.uint8)
    means_HWC = (rng.random((2, SIZE, SIZE, 3)) * 255).astype(np.float32)
    room = SIZE - side
    corners = np.array([[0, 0, 0], [room, room, 1], [room, min(room, 3), 1], [0, room // 2, 0]])
    file = tmp_path / "planes"
    file.write_bytes(b"front" + images.tobytes())
    count = len(corners)
    with file.open("rb") as opened:
        crops = StoredCrops(
            files=np.full(count, opened.fileno(), np.int32),
            offsets=5 + np.arange(number, number + count) % 3 * images.shape[1],
            corners=corners,
            images=np.array([0, 1, 0, 1]),
            origins=np.array([[room, 0], [0, room], [0, 0], [room // 2, room]]),
            levels=np.stack([[0.9, 1.1, 1.3], [-0.3, 0.2, 0.1]] * count, dtype=np.float32).reshape(
                count, 2, 3
            ),
        )
        expected = np.empty((count, side, side, 3), np.float32)
        for i, (top, left, mirror) in enumerate(corners):
            decoded = rgb_from_planes(images[(number + i) % 3], SIZE)
            pixels = decoded[top : top + side, left : left + side]
            pixels = pixels[:, ::-1] if mirror else pixels
            y, x = crops.origins[i]
            mean = means_HWC[crops.images[i], y : y + side, x : x + side]
            normalize(expected[i], pixels, mean, crops.levels[i])
        means = means_HWC.transpose(0, 3, 1, 2).copy()
        bits = torch.from_numpy(expected).to(torch.bfloat16).view(torch.uint16).numpy()
        for values in (expected, bits):
            rows = np.zeros((count, side, 3 * side), values.dtype)
            assert write_crops(rows, crops, means, 0, count) == count
            np.testing.assert_array_equal(rows.reshape(values.shape), values)
            colours = np.zeros((count, 3, side, side), values.dtype)
            # In two calls, as two threads write the halves of a batch.
            assert write_crops(colours, crops, means, 0, 1) == 1
            assert not colours[1:].any()
            assert write_crops(colours, crops, means, 1, count) == count
            np.testing.assert_array_equal(colours, values.transpose(0, 3, 1, 2))


def test_the_loops_stop_at_the_first_image_that_its_file_does_not_hold(tmp_path):
    length = SIZE * SIZE * 3 // 2
    file = tmp_path / "planes"
    file.write_bytes(bytes(2 * length))
    zeros = np.zeros((3, 3), np.int64)
    with file.open("rb") as opened:
        crops = StoredCrops(
            np.full(3, opened.fileno(), np.int32), np.array([0, length + 1, 0]), zeros, zeros[:, 0],
            zeros[:, :2], np.ones((3, 2, 3), np.float32),
        )  # fmt: skip
        out = np.zeros((3, 3, SIZE, SIZE), np.float32)
        means = np.zeros((2, 3, SIZE, SIZE), np.float32)
        assert write_crops(out, crops, means, 0, 3) == 1
        os.truncate(file, 0)
        assert write_crops(out, crops, means, 0, 3) == 0


@pytest.fixture
def shard():
    return Shard(
        name="train/ants-train-000000.tar", samples=3, bytes=9, sha256="ab" * 32, md5="cd" * 16
    )


@pytest.fixture
def stored(tmp_path, shard):
    """A written file of planes, its root and the JPEGs in it."""
    jpgs = [noisy_jpeg(seed, 90, 20) for seed in range(3)]
    path = planes_path(tmp_path, shard)
    path.parent.mkdir()
    write_planes(path, shard, SIZE, zip(jpgs, (7, 0, 2**31), strict=True))
    return path, jpgs


def test_a_file_gives_back_planes_and_labels(stored, tmp_path, shard):
    path, jpgs = stored
    assert path.stat().st_size == planes_file_bytes(SIZE, 3)
    file = PlanesFile(tmp_path, shard, SIZE)
    file.check_body()
    assert file.labels().tolist() == [7, 0, 2**31]
    for row, jpg in enumerate(jpgs):
        np.testing.assert_array_equal(file.planes(row), planes_of(jpg))
    file.close()


def test_every_flipped_bit_is_found(stored, tmp_path, shard, rng):
    path, _ = stored
    whole = path.read_bytes()
    positions = {*range(92), *rng.integers(0, len(whole), 400).tolist(), len(whole) - 1}
    for position in positions:
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(DataError, match="ants-train-000000"):
            PlanesFile(tmp_path, shard, SIZE).check_body()


@pytest.mark.parametrize("length", [0, 7, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1000])
def test_a_cut_file_is_refused(stored, tmp_path, shard, length):
    path, _ = stored
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="alexprep planes"):
        PlanesFile(tmp_path, shard, SIZE)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_the_end(stored, tmp_path, shard):
    path, _ = stored
    file = PlanesFile(tmp_path, shard, SIZE)
    with path.open("r+b") as writer:
        writer.truncate(HEADER_BYTES + plane_bytes(SIZE) + 5)
    assert file.planes(0).size == plane_bytes(SIZE)
    with pytest.raises(DataError, match="before sample 1"):
        file.planes(1)
    with pytest.raises(DataError, match="cut"):
        file.labels()
    file.close()


def test_planes_of_another_shard_or_size_are_refused(stored, tmp_path, shard):
    other = Shard(name=shard.name, samples=3, bytes=9, sha256="ee" * 32, md5="cd" * 16)
    with pytest.raises(DataError, match="another train/ants"):
        PlanesFile(tmp_path, other, SIZE)
    with pytest.raises(DataError, match="64 pixels"):
        PlanesFile(tmp_path, shard, 128)


def test_planes_of_another_version_are_refused(stored, tmp_path, shard):
    path, _ = stored
    data = bytearray(path.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    data[88:92] = zlib.crc32(data[:88]).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"has version 2, this alexprep reads 1\. Remove it"):
        PlanesFile(tmp_path, shard, SIZE)


def test_a_missing_file_names_the_command(tmp_path, shard):
    with pytest.raises(DataError, match="alexprep planes"):
        PlanesFile(tmp_path, shard, SIZE)


def test_a_jpeg_that_cannot_be_stored_leaves_no_file(tmp_path, shard):
    path = planes_path(tmp_path, shard)
    path.parent.mkdir()
    bad = noisy_jpeg(0, 90, 9, subsampling="4:4:4")
    with pytest.raises(ValueError, match="sample 1"):
        write_planes(path, shard, SIZE, [(noisy_jpeg(0, 90, 9), 1), (bad, 2)])
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_names_the_file_and_leaves_none(tmp_path, shard):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    path = planes_path(tmp_path, shard)
    path.parent.mkdir()
    path.with_name(f"{path.name}.partial").symlink_to(full)
    with pytest.raises(OSError, match="ants-train-000000"):
        write_planes(path, shard, SIZE, [(noisy_jpeg(0, 90, 9), 1)] * 3)
    assert list(path.parent.iterdir()) == []
