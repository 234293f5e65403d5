"""JPEG files: what can be told without decoding, and Pillow's pixels."""

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
SCAN = 0xDA
# In the compressed data 0xFF is followed by 0 (a literal 0xFF) or by a restart marker.
STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def decode(jpg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB pixels, (H, W, 3); ValueError if the bytes are no JPEG that can be read to its end."""
    try:
        with Image.open(io.BytesIO(jpg.data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the JPEG cannot be decoded ({error})") from error


def check_jpeg(data: bytes, size: int) -> None:
    """ValueError unless `data` begins and ends as a JPEG of `size` x `size` pixels does."""
    if data[:2] != SOI:
        raise ValueError(f"no JPEG: it begins with {data[:4]!r}")
    if data[-2:] != EOI:
        raise ValueError(
            f"the JPEG of {len(data)} bytes does not end as one: it was cut or changed"
        )
    at = segment(data, FRAMES)
    height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
    if (height, width) != (size, size):
        raise ValueError(f"the JPEG is {width}x{height} pixels, the manifest says {size}x{size}")


def check_scan(data: bytes) -> None:
    """ValueError if the compressed data of a baseline JPEG holds what no encoder writes there.

    Decoders pass over such places and fill what follows with gray.
    """
    start = segment(data, (SCAN,))
    stray = STRAY_MARKER.search(data, start + 2, len(data) - len(EOI))
    if stray:
        raise ValueError(f"the JPEG is damaged {stray.start()} bytes from its begin")


def segment(data: bytes, markers: tuple[int, ...]) -> int:
    """Where the first segment with one of `markers` begins; ValueError if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in markers:
            return at
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    raise ValueError("the JPEG has no frame or scan where one must be")
