"""What can be told of a JPEG without decoding it: that it is whole, and how large it is."""

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
BASELINE, PROGRESSIVE = 0xC0, 0xC2


def check_jpeg(data: bytes, size: int) -> None:
    """ValueError unless `data` begins and ends as a JPEG of `size` x `size` pixels does."""
    if data[:2] != SOI:
        raise ValueError(f"no JPEG: it begins with {data[:4]!r}")
    if data[-2:] != EOI:
        raise ValueError(
            f"the JPEG of {len(data)} bytes does not end as one, it was cut or changed"
        )
    height, width = frame_size(data)
    if (height, width) != (size, size):
        raise ValueError(f"the JPEG is {width}x{height} pixels, the manifest says {size}x{size}")


def frame_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the frame header; ValueError if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (BASELINE, 0xC1, PROGRESSIVE):
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    raise ValueError("the JPEG has no frame header")
