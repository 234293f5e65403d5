"""One source file to one JPEG, the same bytes for the same source on every machine.

The pixels are those of: decode, resize so that the shorter side is `size` (the longer one rounded
to whole pixels), cut the square out of the middle (an odd pixel too many goes right or below). Only
the square is computed: Pillow's resize takes the region of the source that the square comes from.
With `keep_aspect` nothing is cut.

JPEG is decoded and encoded by simplejpeg, which brings its own libjpeg-turbo 3: Pillow is linked
with whatever libjpeg the machine had when it was compiled, and bytes must not depend on that.
Decoded pixels are those of Pillow, and it is faster (1.27 ms against 1.55 ms for an ILSVRC image).
WebP, compressed TIFF and damaged JPEG: alexprep.dataset.other_formats. PNG, GIF, BMP, PPM and
uncompressed TIFF Pillow decodes with code of its own, and inflate, which has one result.
pillow-simd resizes, with its antialiased bilinear (triangle) filter, or alexprep.dataset.resize to
the same pixels where Pillow is installed instead. Pixels stay four bytes wide from the decoder to
the encoder, as pillow-simd keeps them, so they are never repacked.
"""

import io
import re
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import PIL
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray
from PIL import Image

from alexprep.dataset.other_formats import (
    RAW_TIFF,
    VERSION,
    decode_damaged_jpeg,
    decode_tiff,
    decode_webp,
    is_webp,
    unread_format,
    webp_size,
)
from alexprep.machine import has_pillow_simd
from pipelines.jpeg import EOI, SCAN, SOI, Header, read_header, segments

HAS_SIMD = has_pillow_simd()
CODEC = {
    "jpeg": f"simplejpeg {simplejpeg.__version__}",
    "resize": f"pillow {PIL.__version__ if HAS_SIMD else '12.1.1.post0'} bilinear",
    "subsampling": "4:2:0",
    "webp_tiff": VERSION,
    "damaged_jpeg": VERSION,
    # pillow-simd 12.1.1.post0 has these decoders from Pillow 12.1.1.
    "png_gif_bmp_ppm_tiff": f"pillow {PIL.__version__.partition('.post')[0]}",
}
# Decoders that a data set names if it has such images: by the fixes that say so.
DECODED = {
    "webp_tiff": frozenset({"webp", "tiff"}),
    "damaged_jpeg": frozenset({"damaged"}),
    "png_gif_bmp_ppm_tiff": frozenset({"png", "gif", "bmp", "ppm", "tiff"}),
}
# Of the formats that Pillow knows these alone: each is a parser for files of unknown origin, and
# that of EPS starts a program.
OTHER_FORMATS = ("PNG", "GIF", "BMP", "TIFF", "PPM")
# The largest ILSVRC image has 61 megapixels. Above MAX_WHOLE a JPEG is decoded at half its size, so
# that its pixels take 128 MiB at most. Other formats cannot be and are refused; their pixels take
# twice that if they have alpha, because Pillow drops it in a copy.
MAX_WHOLE = 2**25
MAX_PIXELS = 2**27
MAX_SIDE = 65_500  # of a JPEG, for libjpeg
# A scan of 31 bytes may be repeated, and libjpeg goes over all coefficients for each: 1 MB of them
# would take hours. Encoders write about ten. Of larger images fewer are read: the time of any file
# stays below that of MAX_SCANS over MAX_WHOLE pixels (benchmarks/decoders.py).
MAX_SCANS = 100
SCAN_HEADER = re.compile(rb"\xff\xda..[\1-\4]", re.DOTALL)  # marker, length, components
CMYK_ROWS = 64
BITS_PER_SAMPLE = 258  # a tag of TIFF
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}


class ImageError(Exception):
    """This file cannot become a sample; the message completes the sentence "the file ..."."""


class Encoded(NamedTuple):
    """A JPEG of `encode`; width, height (as stored) and fixes describe its source."""

    jpg: bytes
    width: int
    height: int
    fixes: tuple[str, ...]


def encode(
    data: bytes,
    *,
    size: int,
    quality: int,
    apply_orientation: bool = False,
    keep_aspect: bool = False,
) -> Encoded:
    """The source file as a baseline JPEG; ImageError if it is no whole image.

    It is a square of `size` pixels, or with `keep_aspect` whole, `size` on its shorter side.
    """
    if not data:
        raise ImageError("is empty")
    if data.startswith(SOI):
        header = read_header(data)
        if header is None:
            raise ImageError("is a JPEG that is cut off within its header")
        image, fixes = _decode_jpeg(data, header)
        width, height = header.width, header.height
        if apply_orientation and header.orientation in TURNS:
            image = image.transpose(TURNS[header.orientation][0])
    else:
        image, fixes = _decode_other(data)
        width, height = image.size
    stored = resized(image, size) if keep_aspect else square(image, size)
    return Encoded(encode_pixels(stored, quality), width, height, fixes)


def resized(image: Image.Image, size: int) -> Image.Image:
    """The whole image with a shorter side of `size` pixels; ImageError if it would be too large.

    Its central square is what `square` gives, to within a grey level.
    """
    width, height = (_resized_side(side, image, size) for side in image.size)
    if max(width, height) > MAX_SIDE or width * height > MAX_WHOLE:
        raise ImageError(
            f"is {image.size[0]} x {image.size[1]} pixels, too long to be stored whole: with a "
            f"shorter side of {size} it would have {width} x {height}"
        )
    return _resize(image, (width, height))


def _resized_side(side: int, image: Image.Image, size: int) -> int:
    return max(size, int(side * size / min(image.size) + 0.5))


def square(image: Image.Image, size: int) -> Image.Image:
    """The middle `size` x `size` pixels of the image resized to a shorter side of `size`."""
    begin: list[float] = []
    end: list[float] = []
    for side in image.size:
        target = _resized_side(side, image, size)
        first = (target - size) // 2
        begin.append(first * side / target)
        end.append((first + size) * side / target)
    return _resize(image, (size, size), (begin[0], begin[1], end[0], end[1]))


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """An RGB or RGBX image, or the region `box` of it, as pillow-simd resizes it."""
    if HAS_SIMD:
        return image.resize(size, Image.Resampling.BILINEAR, box)
    from alexprep.dataset.resize import resize  # noqa: PLC0415 - numba, .3 s, that SIMD needs not

    pixels_HWC = resize(image, size, box or (0, 0, *image.size))
    result = Image.frombuffer("RGBX", size, pixels_HWC, "raw", "RGBX", 0, 1)
    return result if image.mode == "RGBX" else result.convert(image.mode)


def encode_pixels(image: Image.Image, quality: int) -> bytes:
    """Baseline 4:2:0 JPEG of an RGB or RGBX image, without EXIF or ICC."""
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(*image.size[::-1], 4)
    return simplejpeg.encode_jpeg(pixels, quality, "RGBX", "420")


def _decode_jpeg(data: bytes, header: Header) -> tuple[Image.Image, tuple[str, ...]]:
    if header.bits != 8 or header.components not in (1, 3, 4):
        raise ImageError(
            f"is a JPEG of {header.components} components of {header.bits} bits; 1, 3 or 4 of 8 "
            "bits are supported"
        )
    # Before anything is decoded: what the header claims bounds the memory and the time it takes.
    pixels = header.width * header.height
    if pixels == 0:
        raise ImageError(f"has no pixels: its size is {header.width} x {header.height}")
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"has {header.width} x {header.height} pixels; at most {MAX_PIXELS:,} are supported"
        )
    # Counting takes a tenth of the time of decoding; most JPEGs are one scan by their first.
    scans = 1 if _is_one_scan(data, header) else _count_scans(data)
    most = min(MAX_SCANS, MAX_SCANS * MAX_WHOLE // pixels)
    if scans > most:
        raise ImageError(f"is a JPEG of {scans:,} scans; at most {most} are supported")
    fixes = _applied(
        {
            "cmyk": header.components == 4,
            "gray": header.components == 1,
            "exif": header.orientation != 1,
            "progressive": header.progressive,
        }
    )
    try:
        return _turbo(data, header), fixes
    except ValueError as error:
        return _second_opinion(data, header, error), (*fixes, "damaged")


def _is_one_scan(data: bytes, header: Header) -> bool:
    """Whether the first scan holds all components: libjpeg then refuses a second one."""
    scan = next((offset for marker, offset in segments(data) if marker == SCAN), len(data))
    return not header.progressive and data[scan + 4 : scan + 5] == bytes([header.components])


def _count_scans(data: bytes) -> int:
    """SOS markers, at even and at odd places; bytes.count takes ten times as long."""
    return sum(
        int(np.count_nonzero(np.frombuffer(data, "<u2", (len(data) - first) // 2, first) == 0xDAFF))
        for first in (0, 1)
    )


def _turbo(data: bytes, header: Header) -> Image.Image:
    """Decode to four bytes a pixel; ValueError on anything that libjpeg complains of."""
    colours = "CMYK" if header.components == 4 else "RGBX"
    factor = _factor(header)
    least = (header.height // factor, header.width // factor) if factor > 1 else (0, 0)
    pixels = simplejpeg.decode_jpeg(
        data, colours, min_height=least[0], min_width=least[1], min_factor=factor
    )
    if header.components == 4:
        pixels = _from_inverted_cmyk(pixels)
    return Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1)


def _factor(header: Header) -> int:
    return 1 if header.width * header.height <= MAX_WHOLE else 2


def _from_inverted_cmyk(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Adobe stores ink inverted (255: none), as every CMYK JPEG met so far: colour x key / 255."""
    # In place and a few rows at a time: the products of a whole image would take six times the
    # memory of its pixels.
    for row in range(0, len(pixels_HWC), CMYK_ROWS):
        band = pixels_HWC[row : row + CMYK_ROWS]
        product = band[..., :3].astype(np.uint16) * band[..., 3:] + 128
        band[..., :3] = (product + (product >> 8)) >> 8
    return pixels_HWC


def _second_opinion(data: bytes, header: Header, complaint: ValueError) -> Image.Image:
    """A JPEG that libjpeg complains of is used if Pillow decodes it, as it is in all ImageNets.

    Stray bytes between markers are such a case, and a file that lacks its end marker alone; one
    that lacks rows is not.
    """
    # The arithmetic decoder takes all that is missing for zeros, and does not complain.
    if not data.endswith(EOI) and not header.arithmetic and _is_refined(data, header):
        with suppress(ValueError):  # libjpeg complains of every row that is missing before the end
            return _turbo(data + EOI, header)
    try:
        halved = _decode_with_pillow(data, header)
        return halved or decode_damaged_jpeg(data, cmyk=header.components == 4)
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError):
        raise ImageError(f"is a damaged JPEG ({str(complaint).strip().rstrip('.')})") from None


def _decode_with_pillow(data: bytes, header: Header) -> Image.Image | None:
    """Raises where Pillow refuses the file; the image only if it is too large to be read whole.

    Its pixels depend on the version of libjpeg that it was compiled with: with 2.1.5, one of 950
    damaged files had others than with 3.1.3.
    """
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        if _factor(header) == 2:
            image.draft("RGB", (header.width // 2, header.height // 2))
            return image.convert("RGB")
        image.load()
        return None


def codec_of(fixes: Collection[str]) -> dict[str, str]:
    """What made the bytes of a data set whose images had these fixes."""
    return {
        name: value
        for name, value in CODEC.items()
        if name not in DECODED or not DECODED[name].isdisjoint(fixes)
    }


def matches_codec(recorded: Mapping[str, str]) -> bool:
    """Whether a data set of this codec has the bytes that would be written here.

    It names the decoders of the formats that it has, and of an earlier release, not of all.
    """
    return {**CODEC, **recorded} == CODEC


def _is_refined(data: bytes, header: Header) -> bool:
    """Whether all bits of all coefficients have a scan: a progressive JPEG may end between two."""
    if not header.progressive:
        return True
    refined: dict[int, set[int]] = {}
    for match in SCAN_HEADER.finditer(data):
        count, begin = data[match.end() - 1], match.end()
        components = data[begin : begin + 2 * count : 2]
        band = data[begin + 2 * count : begin + 2 * count + 3]
        if len(band) == 3 and band[2] & 15 == 0:  # the lowest bit
            for component in components:
                refined.setdefault(component, set()).update(range(band[0], min(band[1], 63) + 1))
    return sum(len(band) == 64 for band in refined.values()) >= header.components


def _decode_other(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    kind = "image"
    try:
        if is_webp(data):
            kind = "webp"
            _refuse_size(webp_size(data), kind)
            image, alpha = decode_webp(data)
            return image, ("webp", *(["alpha"] if alpha else []))
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=OTHER_FORMATS)
            kind = (image.format or "").lower()
            _refuse_size(image.size, kind)
            deep = kind == "png" and data[24] == 16
            if kind == "tiff" and image.info.get("compression") != RAW_TIFF:
                return _decode_compressed_tiff(data, image)
            image.load()
            return _as_rgb(image, kind, deep=deep)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        name = unread_format(data)
        if name:
            raise ImageError(f"is {name}, which is not supported; convert it to PNG") from None
        raise ImageError(f"is not an image: it begins with {data[:16]!r}") from None
    except Exception as error:  # noqa: BLE001 - odd tags of a TIFF raise TypeError, ImportError, ...
        raise ImageError(f"is a damaged {kind} ({error or type(error).__name__})") from None


def _refuse_size(size: tuple[int, int], kind: str) -> None:
    width, height = size
    if width * height > MAX_WHOLE:
        raise ImageError(
            f"has {width} x {height} pixels; at most {MAX_WHOLE:,} are supported for {kind}"
        )


def _decode_compressed_tiff(data: bytes, image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """As `_as_rgb`, which sees only what the TIFF's own mode says of it."""
    mode = image.mode
    if mode in ("I", "F", "LAB"):
        raise ImageError(f"is a tiff of mode {mode}, which is not supported; convert it to PNG")
    decoded = decode_tiff(data, image)
    bits: Any = image.getexif().get(BITS_PER_SAMPLE, 8)
    deep = mode.startswith("I;16") or 16 in (bits if isinstance(bits, tuple) else (bits,))
    return decoded.convert("RGB"), _mode_fixes("tiff", mode, deep=deep, alpha=mode.endswith("A"))


def _as_rgb(image: Image.Image, kind: str, *, deep: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB of whatever Pillow opened: alpha is dropped, 16 bits lose their lower half."""
    mode = image.mode
    if mode == "LAB":  # which some builds of Pillow can convert, to pixels of their own
        raise ImageError(f"is a {kind} of mode LAB, which is not read; convert it to PNG")
    if mode in ("I", "F"):
        raise ImageError(f"is a {kind} with 32-bit pixels, whose range is unknown")
    if mode.startswith("I;16"):
        image, deep = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)), True
    alpha = image.info.pop("transparency", None) is not None or mode.endswith("A")
    return image.convert("RGB"), _mode_fixes(kind, mode, deep=deep, alpha=alpha)


def _mode_fixes(kind: str, mode: str, *, deep: bool, alpha: bool) -> tuple[str, ...]:
    """What becomes of an image in this format and mode of Pillow's."""
    return _applied(
        {
            kind: True,
            "gray": mode in ("1", "L", "LA") or mode.startswith("I;16"),
            "16bit": deep,
            "palette": mode in ("P", "PA"),
            "alpha": alpha,
            "cmyk": mode == "CMYK",
        }
    )


def _applied(fixes: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(name for name, applies in fixes.items() if applies)
