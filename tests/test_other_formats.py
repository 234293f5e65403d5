"""What is no JPEG, or a damaged one, becomes the same pixels whatever Pillow was compiled with."""

import struct
import zlib

import imagecodecs
import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alexprep.dataset.codec import (
    CODEC,
    MAX_WHOLE,
    ImageError,
    codec_of,
    encode,
    encode_pixels,
    matches_codec,
    square,
)
from tests.test_codec import encoded, opened, photograph, saved, tiff

DEFLATE, LZW, ZSTD = 8, 5, 50000
ENCODERS = {
    DEFLATE: zlib.compress,
    LZW: imagecodecs.lzw_encode,
    ZSTD: imagecodecs.zstd_encode,
    32773: imagecodecs.packbits_encode,
}


def packed_tiff(pixels, compression, *, photometric, bits=8, extra=None):
    """A TIFF of one compressed strip."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    strip = bytes(ENCODERS[compression](pixels.tobytes()))
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples)}
    tags |= {259: (3, [compression]), 262: (3, [photometric]), 277: (3, [samples])}
    tags |= {278: (4, [height]), 279: (4, [len(strip)]), **(extra or {})}
    plain = tiff(tags)
    # tiff() puts 192 bytes of pixels behind the header; the strip goes to the end of the file.
    entry = plain.index(struct.pack("<HHI", 273, 4, 1))
    return plain[: entry + 8] + struct.pack("<I", len(plain)) + plain[entry + 12 :] + strip


def picture_of(rng):
    return np.asarray(photograph(rng, 90, 70))


@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("kind", ["RGB", "L", "L inverted", "RGBA", "16-bit RGB", "16-bit L", "P"])
def test_a_compressed_tiff_is_encoded_like_the_png_of_its_pixels(rng, compression, kind):
    pixels, extra, bits, photometric = picture_of(rng), {}, 8, 2
    fixes = {"tiff"}
    if kind.endswith(("L", "L inverted")):
        pixels, photometric, fixes = pixels[..., 0].copy(), 1, fixes | {"gray"}
    seen = pixels
    if kind == "L inverted":
        pixels, photometric = 255 - pixels, 0
    if kind == "RGBA":
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 77, np.uint8)])
        extra, fixes = {338: (3, [2])}, fixes | {"alpha"}
    if kind.startswith("16-bit"):
        pixels, bits, fixes = pixels.astype(np.uint16) * 256 + 255, 16, fixes | {"16bit"}
    if kind == "P":
        image = Image.fromarray(seen).quantize(32)
        pixels, photometric, fixes = np.asarray(image), 3, fixes | {"palette"}
        colours = np.asarray(image.getpalette() + [0] * (768 - len(image.getpalette())))
        extra = {320: (3, (colours.reshape(256, 3).T.ravel() * 257).tolist())}
        seen = np.asarray(image.convert("RGB"))
    data = packed_tiff(pixels, compression, photometric=photometric, bits=bits, extra=extra)
    result = encoded(data)
    assert set(result.fixes) == fixes
    assert (result.width, result.height) == (90, 70)
    assert result.jpg == encoded(saved(Image.fromarray(seen), "PNG")).jpg


def test_a_bilevel_tiff_is_encoded_like_the_png_of_its_pixels(rng):
    black = picture_of(rng)[..., 0] > 128
    rows = np.packbits(black, axis=1)
    strip = zlib.compress(rows.tobytes())
    data = packed_tiff(black.astype(np.uint8), DEFLATE, photometric=1, bits=1)
    # The strip of packed rows in place of the bytes.
    old = zlib.compress(black.astype(np.uint8).tobytes())
    lengths = [struct.pack("<HHII", 279, 4, 1, len(body)) for body in (old, strip)]
    data = data.replace(*lengths)
    data = data[: -len(old)] + strip
    result = encoded(data)
    assert set(result.fixes) == {"tiff", "gray"}
    assert result.jpg == encoded(saved(Image.fromarray(black), "PNG")).jpg


@pytest.mark.parametrize("alpha", [False, True])
def test_a_lossless_webp_is_encoded_like_the_png_of_its_pixels(rng, alpha):
    pixels = picture_of(rng)
    stored = np.dstack([pixels, np.full((70, 90), 200, np.uint8)]) if alpha else pixels
    result = encoded(imagecodecs.webp_encode(stored, lossless=True))
    assert result.fixes == (("webp", "alpha") if alpha else ("webp",))
    assert (result.width, result.height) == (90, 70)
    assert result.jpg == encoded(saved(Image.fromarray(pixels), "PNG")).jpg


def test_a_lossy_webp_is_the_picture(rng):
    pixels = picture_of(rng)
    result = encoded(imagecodecs.webp_encode(pixels, level=90))
    expected = opened(encoded(saved(Image.fromarray(pixels), "PNG")).jpg)
    difference = np.asarray(opened(result.jpg), dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).mean() < 4


def chunk(name, body):
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def animated_webp(frames):
    """The frames one after the other, each over the whole canvas."""
    height, width = frames[0].shape[:2]
    side = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = chunk(b"VP8X", b"\x02\0\0\0" + side) + chunk(b"ANIM", bytes(6))
    for frame in frames:
        image = imagecodecs.webp_encode(frame, lossless=True)[12:]
        body += chunk(b"ANMF", bytes(6) + side + (100).to_bytes(3, "little") + b"\x02" + image)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def test_of_an_animated_webp_the_first_frame_is_taken(rng):
    pixels = picture_of(rng)
    result = encoded(animated_webp([pixels, 255 - pixels]))
    assert result.fixes == ("webp",)
    assert result.jpg == encoded(saved(Image.fromarray(pixels), "PNG")).jpg


@pytest.mark.parametrize("flag", [b"VP8X", b"VP8L", b"VP8 "])
def test_a_webp_larger_than_the_bound_is_refused_by_its_header(flag):
    side = 16_000
    bodies = {
        b"VP8X": bytes(4) + 2 * (side - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(5),
        b"VP8 ": bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", side, side),
    }
    data = b"RIFF" + struct.pack("<I", 22) + b"WEBP" + chunk(flag, bodies[flag])
    with pytest.raises(
        ImageError, match=f"16000 x 16000 pixels; at most {MAX_WHOLE:,} are supported for webp"
    ):
        encoded(data)


@pytest.mark.parametrize("file", ["webp", "tiff"])
def test_half_a_file_is_refused(rng, file):
    pixels = picture_of(rng)
    whole = {
        "webp": imagecodecs.webp_encode(pixels, lossless=True),
        "tiff": packed_tiff(pixels, LZW, photometric=2),
    }[file]
    with pytest.raises(ImageError, match=f"^is a damaged {file} "):
        encoded(whole[: len(whole) // 2 if file == "webp" else -2000])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_file_is_encoded_or_refused_and_nothing_else(data):
    pixels = picture_of(np.random.default_rng(3))
    files = [
        imagecodecs.webp_encode(pixels, level=80),
        animated_webp([pixels, pixels]),
        packed_tiff(pixels, LZW, photometric=2),
        packed_tiff(pixels, DEFLATE, photometric=2),
    ]
    file = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = encode(bytes(file), size=64, quality=95)
    except ImageError:
        return
    assert opened(result.jpg).size == (64, 64)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF image"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "a HEIC image"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\0\0\1\0\1\0\x10\x10", "an ICO file"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    ],
)
def test_formats_that_are_not_read_are_named(data, name):
    with pytest.raises(ImageError, match=f"^is {name}, which is not supported; convert it to PNG$"):
        encoded(data + bytes(100))


def ppm_decode(data):
    """Netpbm's own description of P5 and P6: three numbers, one space, the samples."""
    magic, width, height, _, samples = data.split(maxsplit=4)
    shape = (int(height), int(width)) if magic == b"P5" else (int(height), int(width), 3)
    return np.frombuffer(samples, np.uint8).reshape(shape)


READERS = {
    "PNG": (imagecodecs.png_decode, ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    "GIF": (imagecodecs.gif_decode, ("RGB", "P", "L", "1")),
    "BMP": (imagecodecs.bmp_decode, ("RGB", "RGBA", "L", "P", "1")),
    "PPM": (ppm_decode, ("RGB", "L")),
    "TIFF": (imagecodecs.tiff_decode, ("RGB", "RGBA", "L", "I;16")),
}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, (_, modes) in READERS.items() for mode in modes]
)
def test_what_pillow_decodes_itself_has_the_pixels_of_another_library(rng, kind, mode):
    picture = photograph(rng, 90, 70)
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 2**16, (70, 90), np.uint16))
    data = saved(picture if mode == "I;16" else picture.convert(mode), kind)
    pixels = READERS[kind][0](data)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 2:  # gray, with alpha or without
        pixels = np.repeat(pixels.reshape(70, 90, -1)[..., :1], 3, axis=2)
    expected = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    assert encoded(data).jpg == encode_pixels(square(expected, 64), 95)


def test_a_data_set_names_the_decoders_of_the_formats_that_it_has():
    decoders = {"webp_tiff", "damaged_jpeg", "png_gif_bmp_ppm_tiff"}
    jpeg = codec_of({"gray", "cmyk", "exif", "progressive"})
    assert jpeg.keys() == CODEC.keys() - decoders
    for fixes, named in (
        ({"png", "gray"}, {"png_gif_bmp_ppm_tiff"}),
        ({"webp"}, {"webp_tiff"}),
        ({"damaged"}, {"damaged_jpeg"}),
        ({"tiff", "gray"}, {"webp_tiff", "png_gif_bmp_ppm_tiff"}),
        ({"gif", "webp", "damaged"}, decoders),
    ):
        assert codec_of(fixes) == jpeg | {name: CODEC[name] for name in named}
    assert matches_codec(jpeg)
    assert matches_codec(CODEC)
    for name in decoders:
        assert not matches_codec({**CODEC, name: "imagecodecs 2020.1.1"})
    assert not matches_codec({**jpeg, "jpeg": "simplejpeg 1.0.0"})


def test_pillow_and_pillow_simd_of_one_release_have_one_name():
    assert CODEC["png_gif_bmp_ppm_tiff"] == f"pillow {PIL.__version__.removesuffix('.post0')}"
