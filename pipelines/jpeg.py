"""What a JPEG says without decoding (ITU-T T.81, annex B; EXIF 2.3), and its pixels.

The header of any JPEG is read here, and the JPEGs of a data set are checked: these are baseline and
have no stray bytes between their segments.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SCAN, END, APP1, APP2 = 0xDA, 0xD9, 0xE1, 0xE2
BASELINE, EXTENDED = 0xC0, 0xC1
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
ARITHMETIC = 0xC8  # the frames above it
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without DHT, JPG and DAC
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0..7, SOI
ORIENTATION = 0x0112
# In the compressed data 0xFF is followed by 0 (a literal 0xFF) or by a restart marker.
STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class Header(NamedTuple):
    """Size in pixels, colour components, and what may have to be fixed.

    `orientation` is the EXIF value 1..8 (1: upright, or none given); None: the EXIF is damaged.
    """

    width: int
    height: int
    components: int
    bits: int
    progressive: bool
    arithmetic: bool
    orientation: int | None


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset) of each segment to the first scan, past bytes that belong to none."""
    offset = 2
    while (offset := data.find(b"\xff", offset)) >= 0 and offset + 4 <= len(data):
        marker = data[offset + 1]
        if marker in (0xFF, 0x00) or marker in WITHOUT_LENGTH:
            offset += 1 if marker == 0xFF else 2
            continue
        yield marker, offset
        if marker in (SCAN, END):
            return
        offset += 2 + (data[offset + 2] << 8 | data[offset + 3])


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG file; None where the data ends before it says how large it is."""
    orientation: int | None = 1
    for marker, offset in segments(data):
        if marker in FRAMES and offset + 10 <= len(data):
            bits, height, width, components = struct.unpack_from(">BHHB", data, offset + 4)
            return Header(
                width=width,
                height=height,
                components=components,
                bits=bits,
                progressive=marker in PROGRESSIVE,
                arithmetic=marker > ARITHMETIC,
                orientation=orientation,
            )
        if marker in FRAMES:
            return None
        if marker == APP1 and data.startswith(b"Exif\0", offset + 4):
            end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
            orientation = exif_orientation(data[offset + 10 : end])
    return None


def exif_orientation(tiff: bytes) -> int | None:
    """The orientation in an EXIF block: 1 if it has none, None if the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for number in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * number)
            if tag == ORIENTATION:
                return value or 1 if value <= 8 else None
    except struct.error:
        return None
    return 1


def decode(jpg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB pixels, (H, W, 3); ValueError if the bytes are no JPEG that can be read to its end."""
    try:
        with Image.open(io.BytesIO(jpg.data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the JPEG cannot be decoded ({error})") from error


def check_jpeg(data: bytes, size: int, *, keep_aspect: bool = False) -> None:
    """ValueError unless `data` begins and ends as a JPEG of `size` x `size` pixels does.

    With `keep_aspect` the shorter side has `size` pixels.
    """
    if data[:2] != SOI:
        raise ValueError(f"no JPEG: it begins with {data[:4]!r}")
    if data[-2:] != EOI:
        raise ValueError(
            f"the JPEG of {len(data)} bytes does not end as one: it was cut or changed"
        )
    height, width = jpeg_size(data)
    if keep_aspect and min(height, width) != size:
        raise ValueError(
            f"the JPEG is {width}x{height} pixels, the manifest says {size} for the shorter side"
        )
    if not keep_aspect and (height, width) != (size, size):
        raise ValueError(f"the JPEG is {width}x{height} pixels, the manifest says {size}x{size}")


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG whose segments are adjacent; ValueError if it has no frame."""
    height, width = struct.unpack_from(">HH", data, frame_end(data) - 4)
    return height, width


def frame_end(data: bytes) -> int:
    """Where height and width end, the last four bytes that `jpeg_size` looks at."""
    return segment(data, (BASELINE, EXTENDED, *PROGRESSIVE)) + 9


def check_scan(data: bytes) -> None:
    """ValueError if the compressed data of a baseline JPEG holds what no encoder writes there.

    Decoders skip such bytes and fill what follows with gray.
    """
    start = segment(data, (SCAN,))
    stray = STRAY_MARKER.search(data, start + 2, len(data) - len(EOI))
    if stray:
        raise ValueError(f"the JPEG is damaged {stray.start()} bytes from its start")


def segment(data: bytes, markers: tuple[int, ...]) -> int:
    """Offset of the first segment with one of `markers`, in a JPEG whose segments are adjacent.

    ValueError if there is none.
    """
    end = 2
    for marker, offset in segments(data):
        if offset != end or offset + 9 > len(data):
            break
        if marker in markers:
            return offset
        end = offset + 2 + (data[offset + 2] << 8 | data[offset + 3])
    raise ValueError("the JPEG has no frame or scan where one must be")
