import struct

import pytest

from pipelines.jpeg import exif_orientation


@pytest.mark.parametrize(
    ("block", "orientation"),
    [
        (b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0), 6),
        (b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 8, 0), 8),
        (b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0100, 3, 1, 8, 0), 1),
        (b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 0, 0), 1),
        (b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 99, 0), None),
        (b"II*\0" + struct.pack("<IH", 8, 50), None),
        (b"II*\0" + struct.pack("<I", 1 << 30), None),
        (b"garbage", None),
    ],
)
def test_exif_orientation_is_read_in_both_byte_orders_and_damage_is_noticed(block, orientation):
    assert exif_orientation(block) == orientation
