import base64
import contextlib
import hashlib
import io
import re
import struct
import subprocess
import sys
import tarfile
import warnings
import zlib
from itertools import islice

import numpy as np
import pytest
import simplejpeg
from drawing import jpeg, photograph
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from alexprep.dataset.codec import MAX_PIXELS, MAX_WHOLE, ImageError, encode, encode_pixels, square
from alexprep.synthetic import EXIF_ORIENTATION
from pipelines.format import FIXES
from pipelines.jpeg import read_header


def encoded(data, **options):
    return encode(data, **({"size": 64, "quality": 95} | options))


def opened(data):
    return Image.open(io.BytesIO(data))


def saved(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def resized_then_cropped(picture, size):
    """The two steps in the plain way."""
    shorter = min(picture.size)
    width, height = (max(size, int(side * size / shorter + 0.5)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def largest_difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([16, 64, 256]))
def test_the_square_is_what_resizing_and_then_cropping_gives(width, height, size):
    picture = photograph(
        np.random.default_rng(width * 1000 + height), max(width, 3), max(height, 3)
    )
    picture = picture.crop((0, 0, width, height))
    # One grey level apart at most: the region's edges are kept in 32-bit floats.
    assert largest_difference(square(picture, size), resized_then_cropped(picture, size)) <= 1


def test_a_long_strip_is_not_resized_whole(rng):
    strip = photograph(rng, 20_000, 3)
    assert square(strip, 256).size == (256, 256)


def test_decoded_pixels_are_pillows_on_real_images(shared_data):
    with tarfile.open(shared_data / "ilsvrc-sample-500.tar") as archive:
        members = [member for member in archive if member.isreg()][:60]
        for member in members:
            data = archive.extractfile(member).read()
            ours = simplejpeg.decode_jpeg(data, "RGB")
            assert np.array_equal(ours, np.asarray(opened(data).convert("RGB")))


def test_the_jpeg_is_baseline_with_halved_colour_and_nothing_else(rng):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    data = jpeg(photograph(rng, 300, 200), exif=exif, icc_profile=b"profile", comment=b"hello")
    jpg = encoded(data).jpg
    header = read_header(jpg)
    assert (header.width, header.height, header.components, header.bits) == (64, 64, 3, 8)
    assert not header.progressive
    assert simplejpeg.decode_jpeg_header(jpg)[2:] == ("YCbCr", "420")
    assert not {"exif", "icc_profile", "comment"} & set(opened(jpg).info)
    assert opened(jpg).quantization == opened(jpeg(photograph(rng), quality=95)).quantization


def test_size_and_quality_are_those_asked_for(rng):
    data = jpeg(photograph(rng, 300, 200))
    assert opened(encoded(data, size=100).jpg).size == (100, 100)
    assert len(encoded(data, quality=50).jpg) < len(encoded(data, quality=95).jpg)


def test_the_source_is_described_by_its_own_size(rng):
    result = encoded(jpeg(photograph(rng, 300, 200)))
    assert (result.width, result.height, result.fixes) == (300, 200, ())


def turned(picture, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return jpeg(picture, exif=exif)


def test_orientation_is_dropped_as_in_everybodys_imagenet(rng):
    picture = photograph(rng, 200, 120)
    result = encoded(turned(picture, 6))
    assert result.fixes == ("exif",)
    assert result.jpg == encoded(jpeg(picture)).jpg


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_is_applied_when_asked_for_as_pillow_does(rng, orientation):
    data = turned(photograph(rng, 200, 120), orientation)
    upright = ImageOps.exif_transpose(opened(data))
    ours = opened(encoded(data, apply_orientation=True, quality=100).jpg)
    expected = resized_then_cropped(upright, 64)
    assert np.abs(np.asarray(ours, dtype=int) - expected).mean() < 3


def corrupt_exif(data):
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 200)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def cmyk_inverted(picture):
    """A CMYK JPEG as Adobe writes it: ink inverted, with the APP14 marker that Pillow writes."""
    return jpeg(picture.convert("CMYK"), quality=100)


def png_16bit(picture):
    """A 16-bit RGB PNG, which Pillow cannot write."""
    pixels = np.asarray(picture).astype(np.uint16) * 257
    width, height = picture.size
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def odd_images(rng):
    """(kind of oddity, file, its fixes, the RGB that a person would see)."""
    picture = photograph(rng, 90, 70)
    gray = picture.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    palette = picture.quantize(32)
    alpha = picture.copy()
    alpha.putalpha(200)
    return {
        "cmyk": (cmyk_inverted(picture), {"cmyk"}, picture),
        "gray": (jpeg(gray), {"gray"}, gray),
        "progressive": (jpeg(picture, progressive=True), {"progressive"}, picture),
        "corrupt exif": (corrupt_exif(jpeg(picture)), {"exif"}, picture),
        "png named JPEG": (saved(picture, "PNG"), {"png"}, picture),
        "gray png": (saved(gray, "PNG"), {"png", "gray"}, gray),
        "bilevel png": (saved(gray.convert("1"), "PNG"), {"png", "gray"}, gray.convert("1")),
        "16-bit gray png": (saved(deep, "PNG"), {"png", "gray", "16bit"}, gray),
        "16-bit colour png": (png_16bit(picture), {"png", "16bit"}, picture),
        "palette png": (saved(palette, "PNG"), {"png", "palette"}, palette),
        "alpha png": (saved(alpha, "PNG"), {"png", "alpha"}, picture),
        "gray alpha png": (saved(alpha.convert("LA"), "PNG"), {"png", "gray", "alpha"}, gray),
        "see-through palette": (
            saved(palette, "PNG", transparency=0),
            {"png", "palette", "alpha"},
            palette,
        ),
        "gif": (saved(palette, "GIF"), {"gif", "palette"}, palette),
        "bmp": (saved(picture, "BMP"), {"bmp"}, picture),
        "ppm": (saved(picture, "PPM"), {"ppm"}, picture),
    }


@pytest.mark.parametrize("kind", odd_images(np.random.default_rng(0)))
def test_odd_images_are_mended_found_by_content_and_listed(rng, kind):
    data, fixes, seen = odd_images(rng)[kind]
    result = encoded(data, quality=100)
    assert set(result.fixes) == fixes
    assert fixes <= set(FIXES)
    assert (result.width, result.height) == seen.size
    expected = resized_then_cropped(seen.convert("RGB"), 64)
    # JPEG with halved colour is all that lies between; a wrong mend is off by tens of levels.
    assert np.abs(np.asarray(opened(result.jpg), dtype=int) - expected).mean() < 7


def test_cmyk_becomes_the_rgb_that_pillow_makes_of_it(rng):
    data = cmyk_inverted(photograph(rng, 64, 64))
    ours = opened(encoded(data, quality=100).jpg)
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(opened(data).convert("RGB"))).mean() < 3


def test_stray_bytes_that_every_reader_passes_over_are_listed_as_damage(rng):
    data = jpeg(photograph(rng, 90, 70))
    middle = data.rindex(b"\xff\xda")
    result = encoded(data[:middle] + b"stray" + data[middle:])
    assert result.fixes == ("damaged",)
    assert result.jpg == encoded(data).jpg


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_damaged_jpeg_has_the_pixels_that_pillow_makes_of_it(rng, mode):
    data = jpeg(photograph(rng, 90, 70).convert(mode))
    place = len(data) * 3 // 4
    broken = data[:place] + b"\0\xff\x01" + data[place:]
    with warnings.catch_warnings(action="ignore"):
        picture = opened(broken).convert("RGB")
    assert not np.array_equal(np.asarray(picture), np.asarray(opened(data).convert("RGB")))
    assert encoded(broken).jpg == encode_pixels(square(picture, 64), 95)
    assert "damaged" in encoded(broken).fixes


# One picture of 24 x 16, its coefficients coded by Huffman, by arithmetic coding (SOF9), and by
# arithmetic coding in several scans (SOF10): `jpegtran -arithmetic` loses nothing.
TABLES = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVG
ZIhlbXd7gYKBTmCNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8
fHx8fHx8fHx8fHx8fHx8fHx8fHz/"""
HUFFMAN = """
wAARCAAQABgDASIAAhEBAxEB/8QAFwAAAwEAAAAAAAAAAAAAAAAAAAEFA//EACMQ
AAEDAgUFAAAAAAAAAAAAAAEAAgMEEQUiMVFxEhMUcsH/xAAVAQEBAAAAAAAAAAAAAAAAAAAEA//EAB4RAAEFAAIDAAAA
AAAAAAAAAAIAAQMREgQiIUFh/9oADAMBAAIRAxEAPwCfUYZLTi7pInepJ+KzLVDs+QddlHp6ktOfNytCTO/Wzdk6Yin6
6uviOfFlcmLPVknvGIkucenlCUlOWHKbIRA5BQjhjzXpUKQL8jS//9k="""
ARITHMETIC = """
yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+D2b7
azWjq5RrDzF6Xu2aI+y4b4a3cTDd9673RF+nzDNwcJjTW3oYHP8AH/VwMAWjRx4Ti+JAdsONVbZLefI3A5b44hCGljvk
pYsA6pra9ed3cEJ7zoD/2Q=="""
IN_SCANS = """
ygARCAAQABgDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAfv4lpP+sTUq
wP/MAAQQBf/aAAgBAQABBQJLowckM4WRDnFwgP/MAAQRBf/aAAgBAwEBPwEoqg5LiQI3oP/MAAQRBf/aAAgBAgEBPwE9
UnbST9zKboD/zAAEEAX/2gAIAQEABj8CWDdR/8wABBAF/9oACAEBAAE/ISArPLsMId4wd/dv34D/2gAMAwEAAgADAAAA
EBQY/8wABBEF/9oACAEDAQE/EMnL8g2g/8wABBEF/9oACAECAQE/EGJl5Uy7L//MAAQQBf/aAAgBAQABPxAB5Xs7JGZQ
HNpnyPYFRJ+dLCrUQP/Z"""


@pytest.mark.parametrize(("coded", "fixes"), [(ARITHMETIC, ()), (IN_SCANS, ("progressive",))])
def test_an_arithmetic_coded_jpeg_is_read_wherever_this_is_installed(coded, fixes):
    expected = encoded(base64.b64decode(TABLES + HUFFMAN))
    result = encoded(base64.b64decode(TABLES + coded))
    assert result == expected._replace(fixes=fixes)
    with pytest.raises(ImageError, match="is a damaged JPEG"):
        encoded(base64.b64decode(TABLES + coded)[:-60])


def png_of_size(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    blocks = [
        struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in (header, body)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(blocks)


def jpeg_of_size(width, height):
    data = bytearray(jpeg(Image.new("RGB", (16, 16))))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", r"^is empty$"),
        ("text", r"^is not an image: it begins with b'From: someone"),
        ("html", r"^is not an image"),
        ("half a jpeg", r"^is a damaged JPEG \("),
        ("jpeg header alone", r"cut off within its header"),
        ("jpeg mark alone", r"cut off within its header"),
        ("zeros", r"^is not an image"),
        ("half a png", r"^is a damaged png"),
        ("jpeg bomb", rf"has 60000 x 60000 pixels; at most {MAX_PIXELS:,} are supported"),
        ("png bomb", r"^(is a damaged image|has 30000 x 30000)"),
        ("large png", rf"has 6000 x 6000 pixels; at most {MAX_WHOLE:,} are supported for png"),
        ("jpeg without pixels", r"has no pixels: its size is 0 x 16"),
        ("deep float", r"32-bit pixels"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_its_reason(rng, name, reason):
    whole = jpeg(photograph(rng, 200, 150))
    png = saved(photograph(rng, 200, 150), "PNG")
    files = {
        "empty": b"",
        "text": b"From: someone\nTo: somebody\n",
        "html": b"<!DOCTYPE html><html></html>",
        "half a jpeg": whole[: len(whole) // 2],
        "jpeg header alone": whole[:100],
        "jpeg mark alone": b"\xff\xd8\xff",
        "zeros": bytes(5000),
        "half a png": png[: len(png) // 2],
        "jpeg bomb": jpeg_of_size(60_000, 60_000),
        "png bomb": png_of_size(30_000, 30_000),
        "large png": png_of_size(6_000, 6_000),
        "jpeg without pixels": jpeg_of_size(0, 16),
        "deep float": saved(Image.new("F", (8, 8)), "TIFF"),
    }
    with pytest.raises(ImageError, match=reason):
        encoded(files[name])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_file_is_encoded_or_refused_and_nothing_else(data):
    rng = np.random.default_rng(7)
    kinds = odd_images(rng)
    file = bytearray(kinds[data.draw(st.sampled_from(sorted(kinds)))][0])
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert opened(encoded(bytes(file)).jpg).size == (64, 64)


def tiff(tags):
    """A little-endian TIFF of 8 x 8 RGB pixels with `tags`: number -> (type, values), or none."""
    pixels = bytes(range(192))
    base = {256: (4, [8]), 257: (4, [8]), 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [2])}
    base |= {273: (4, [8]), 277: (3, [3]), 278: (4, [8]), 279: (4, [len(pixels)])}
    entries = {tag: value for tag, value in (base | tags).items() if value is not None}
    begin = 8 + len(pixels)
    extra_at = begin + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack("<H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        code = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}[kind]
        data = struct.pack(f"<{len(values)}{code}", *values)
        inline = (
            data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", extra_at + len(extra))
        )
        extra += data if len(data) > 4 else b""
        directory += struct.pack("<HHI", tag, kind, len(values)) + inline
    return b"II*\0" + struct.pack("<I", begin) + pixels + directory + bytes(4) + extra


TIFF_VALUES = st.one_of(
    st.none(),
    st.tuples(st.sampled_from([1, 2]), st.lists(st.integers(0, 255), max_size=6)),
    st.tuples(st.just(3), st.lists(st.integers(0, 2**16 - 1), max_size=4)),
    st.tuples(st.just(4), st.lists(st.integers(0, 2**32 - 1), max_size=4)),
    st.tuples(st.just(3), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
    st.tuples(st.just(9), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2)),
    st.tuples(st.sampled_from([11, 12]), st.lists(st.floats(width=32), max_size=2)),
)
TIFF_TAGS = st.sampled_from(
    [
        *(*range(254, 260), 262, 266, 273, 274, *range(277, 285), 296, 317, 320, *range(322, 326)),
        *(338, 339, 347, 700, 34665, 34675),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(TIFF_TAGS, TIFF_VALUES, max_size=4))
@example({262: (3, [8])})  # LAB, for which Pillow needs a module that may not be there
@example({274: (2, [65, 66])})
@example({258: (12, [8.0, 8.0, 8.0])})
def test_a_tiff_with_odd_tags_is_encoded_or_refused_in_silence(tags):
    # pytest makes errors of warnings here
    with contextlib.suppress(ImageError):
        assert opened(encoded(tiff(tags)).jpg).size == (64, 64)


def test_a_tiff_as_written_is_encoded():
    assert encoded(tiff({})).fixes == ("tiff",)


def test_a_lab_tiff_is_refused_whatever_pillow_was_compiled_with():
    with pytest.raises(ImageError, match=r"^is a tiff of mode LAB, which is not read"):
        encoded(tiff({262: (3, [8])}))


def with_scans(rng, count):
    """A small progressive JPEG whose last scan is repeated until there are `count`."""
    data = jpeg(photograph(rng, 64, 48), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (count - data.count(b"\xff\xda") + 1) + data[-2:]


def test_a_jpeg_of_hundreds_of_scans_is_refused(rng):
    assert with_scans(rng, 200).count(b"\xff\xda") == 200
    with pytest.raises(ImageError, match="is a JPEG of 200 scans; at most 100 are supported"):
        encoded(with_scans(rng, 200))
    assert "progressive" in encoded(with_scans(rng, 10)).fixes


def test_a_sequential_jpeg_costs_one_scan_or_counts_them(rng):
    whole = jpeg(photograph(rng, 64, 48))
    scan = whole.index(b"\xff\xda")
    with pytest.raises(ImageError, match="is a damaged JPEG"):
        encoded(whole[:scan] + whole[scan:-2] * 200 + whole[-2:])
    # Without its first scan, that of all components, a sequential JPEG may have any number.
    many = with_scans(rng, 200).replace(b"\xff\xc2", b"\xff\xc0")
    first, second = (match.start() for match in islice(re.finditer(b"\xff\xda", many), 2))
    with pytest.raises(ImageError, match="is a JPEG of 199 scans; at most 100 are supported"):
        encoded(many[:first] + many[second:])


def test_a_large_cmyk_jpeg_takes_the_memory_of_its_pixels(tmp_path):
    side = int(MAX_WHOLE**0.5)
    code = (
        "import sys, pathlib\n"
        "from alexprep.dataset.codec import encode\n"
        "from alexprep.machine import peak_megabytes\n"
        "encode(pathlib.Path(sys.argv[1]).read_bytes(), size=256, quality=95)\n"
        "print(peak_megabytes())"
    )
    peak = []
    for width in (1, side):
        path = tmp_path / f"{width}.jpg"
        Image.new("CMYK", (width, width), (10, 20, 30, 40)).save(path)
        command = [sys.executable, "-c", code, str(path)]
        peak.append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    pixels = 4 * side**2 / 1e6
    assert peak[1] - peak[0] < pixels + 40


def test_a_huge_jpeg_is_decoded_at_half_size_to_the_same_picture(rng, monkeypatch):
    data = jpeg(photograph(rng, 900, 700))
    whole = encoded(data)
    monkeypatch.setattr("alexprep.dataset.codec.MAX_WHOLE", 500_000)
    halved = encoded(data)
    assert halved[1:] == whole[1:]
    pixels, expected = (np.asarray(opened(there.jpg), dtype=int) for there in (halved, whole))
    assert 0 < np.abs(pixels - expected).mean() < 2


def test_the_bytes_of_a_known_image_are_pinned():
    # Shards made on two machines are compared by hash. Other bytes here mean that data sets made
    # before cannot be continued: raise the version of simplejpeg or pillow-simd knowingly.
    y, x = np.mgrid[0:300, 0:400]
    pixels = np.stack([x % 256, y % 256, (x * y // 64) % 256], axis=-1).astype(np.uint8)
    jpg = encode(saved(Image.fromarray(pixels), "PPM"), size=256, quality=95).jpg
    assert hashlib.sha256(jpg).hexdigest()[:16] == "37f875823ab2cc04"
