"""What the header of a JPEG says, without decoding it (ITU-T T.81, annex B; EXIF 2.3)."""

import struct
from typing import NamedTuple

SOI, SOS, EOI, APP1 = b"\xff\xd8", 0xDA, 0xD9, 0xE1
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 without DHT, JPG and DAC
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0..7, SOI
ORIENTATION = 0x0112


class Header(NamedTuple):
    """Size in pixels, colour components, and what may have to be mended.

    `orientation` is the EXIF value 1..8 (1: upright, or nothing said); None: the EXIF is damaged.
    """

    width: int
    height: int
    components: int
    bits: int
    progressive: bool
    orientation: int | None


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG file; None where the data ends before it says how large it is."""
    orientation: int | None = 1
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0xFF, 0x00) or marker in WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (SOS, EOI):
            return None
        if marker in FRAMES:
            return _frame(data, at + 4, marker, orientation)
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == APP1 and data.startswith(b"Exif\0", at + 4):
            orientation = exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return None


def _frame(data: bytes, at: int, marker: int, orientation: int | None) -> Header | None:
    if at + 6 > len(data):
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", data, at)
    return Header(width, height, components, bits, marker in PROGRESSIVE, orientation)


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
