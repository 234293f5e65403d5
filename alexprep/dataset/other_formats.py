"""WebP, compressed TIFF and damaged JPEG by imagecodecs; the names of formats that are not read.

Pillow reads the first two only if the headers of libwebp and libtiff were there when it was
compiled, and all three with whichever version; imagecodecs brings the libraries in its wheel, so
that a file becomes the same pixels on every machine. They are loaded with the first such file.
"""

import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = f"imagecodecs {imagecodecs.__version__}"
RAW_TIFF = "raw"
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262
# Of these the samples are taken as they are stored; libtiff would multiply colours by alpha, and
# scale 16 bits where Pillow drops the lower ones. It turns all others into RGB.
STORED_MODES = frozenset({"L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"})
HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
SIGNATURES = (
    (b"\x00\x00\x01\x00", "an ICO file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF-", "a PDF file"),
)


def is_webp(data: bytes) -> bool:
    """By its first bytes."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def unread_format(data: bytes) -> str:
    """The name of a format that is known but not read, as "an AVIF image"; "" for none."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in (b"avif", b"avis"):
        return "an AVIF image"
    if brand in HEIF:
        return "a HEIC image"
    if b"<svg" in data[:1024].lower():
        return "an SVG drawing"
    return next((name for signature, name in SIGNATURES if data.startswith(signature)), "")


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header says, (0, 0) if it does not."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def decode_webp(data: bytes) -> tuple[Image.Image, bool]:
    """The first frame as RGB, and whether the file has alpha, which is dropped."""
    pixels_HWC = imagecodecs.webp_decode(data, 0)
    return Image.fromarray(_rgb(pixels_HWC)), pixels_HWC.shape[2] == 4


def decode_tiff(data: bytes, image: Image.Image) -> Image.Image:
    """The first page of a TIFF whose header Pillow has read as `image`, in mode L, LA, RGB or RGBA.

    16 bits lose their lower half.
    """
    if image.mode not in STORED_MODES:
        return Image.fromarray(_rgb(imagecodecs.tiff_decode(data, 0, asrgb=True)))
    pixels: NDArray[Any] = imagecodecs.tiff_decode(data, 0)
    channels = {"L": 0, "LA": 2, "RGB": 3, "RGBA": 4}.get(image.mode, 0)
    if pixels.shape != (*image.size[::-1], *([channels] if channels else [])):
        raise ValueError(f"its samples have the shape {pixels.shape}")
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    elif pixels.dtype != np.uint8:
        raise ValueError(f"its samples are {pixels.dtype}")
    if not channels and image.getexif().get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = 255 - pixels
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def decode_damaged_jpeg(data: bytes, *, cmyk: bool) -> Image.Image:
    """A JPEG that libjpeg complains of, whatever it makes of it; RuntimeError if nothing."""
    if not cmyk:
        return Image.fromarray(imagecodecs.jpeg8_decode(data, outcolorspace="rgb"))
    inverted: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data, outcolorspace="cmyk")
    height, width = inverted.shape[:2]
    ink = np.ascontiguousarray(255 - inverted)
    return Image.frombuffer("CMYK", (width, height), ink, "raw", "CMYK", 0, 1).convert("RGB")


def _rgb(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels_HWC[..., :3])
