"""Tars whose headers lie: whatever a field holds, reading ends, with an error of ours or a listing.

The checksums are repaired after each change, as someone would who means it.
"""

import io
import os
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alexprep.errors import PrepareError
from alexprep.tar import BLOCK, TarStream, build_header, parse_header, scan_tar
from pipelines.errors import DataError

# POSIX.1-1988: name of the field, where it begins, its length.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "devmajor": (329, 8),
    "prefix": (345, 155),
}
ODD_NUMBERS = [
    *(b"-0000001000", b"-1", b"+10", b"1_0", b"0o10", b"8", b"9", b"0x10", b"", b" ", b"7" * 12),
    *(b"\xff" * 12, b"\x80" + b"\0" * 10 + b"\5", b"\x80" + b"\xff" * 11, b"1\x002", b"12 34"),
]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ("a.JPEG", "b" * 150 + "/c.JPEG", "größe.JPEG")


def with_checksum(block):
    fixed = block[:148] + b" " * 8 + block[156:]
    return fixed[:148] + b"%06o\0 " % sum(fixed) + fixed[156:]


def tar_of(format, pax_size=None):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=FORMATS[format]) as tar:
        for number, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            info.size = 300 * number
            if pax_size and number == 1:
                info.pax_headers = {"size": pax_size}
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return data.getvalue()


TARS = {format: tar_of(format) for format in FORMATS}


def headers(data):
    return [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def listed(path):
    with path.open("rb") as file:
        return scan_tar(path, file.fileno())


def streamed(path):
    members = []
    with TarStream(path) as tar:
        for member in tar:
            members.append(member)
            assert len(members) <= path.stat().st_size // BLOCK, "the stream does not advance"
    return members


def result_or_refusal(read, path, error):
    try:
        return read(path)
    except error as refusal:
        message = str(refusal)
    assert str(path) in message
    return None


def read_both_ways(path, data):
    """The listing by headers and the members of the stream, each None where it was refused."""
    path.write_bytes(data)
    members = result_or_refusal(streamed, path, DataError)
    listing = result_or_refusal(listed, path, PrepareError)
    for entry in listing or []:
        assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)
    return listing, members


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "a.tar"


@given(data=st.data(), format=st.sampled_from(sorted(TARS)), field=st.sampled_from(sorted(FIELDS)))
@settings(max_examples=600, deadline=None)
def test_any_value_of_a_field_is_read_or_refused(path, data, format, field):
    tar = TARS[format]
    at = data.draw(st.sampled_from(headers(tar)))
    begin, length = FIELDS[field]
    value = data.draw(st.one_of(st.sampled_from(ODD_NUMBERS), st.binary(max_size=length)))
    block = bytearray(tar[at : at + BLOCK])
    block[begin : begin + length] = value[:length].ljust(length, b"\0")
    read_both_ways(path, tar[:at] + with_checksum(bytes(block)) + tar[at + BLOCK :])


@given(size=st.integers(-(2**70), 2**70))
@example(-512)
@example(-1)
@example(2**63)
@settings(max_examples=100, deadline=None)
def test_a_size_in_a_pax_record_cannot_lead_back_or_out_of_the_file(path, size):
    read_both_ways(path, tar_of("pax", pax_size=str(size)))


@pytest.mark.parametrize("field", [b"-0000001000", b"+10", b"1_0", b"0o10", b"8", b"\xff" * 12])
def test_a_size_that_is_no_octal_number_is_refused(path, field):
    block = bytearray(build_header(b"a", 0))
    block[124:136] = field.ljust(12, b"\0")
    assert parse_header(with_checksum(bytes(block))) is None
    assert read_both_ways(path, with_checksum(bytes(block)) + bytes(2 * BLOCK)) == (None, None)


def test_sizes_of_8_gib_and_more_are_in_base_256():
    info = tarfile.TarInfo("large")
    info.size = 9 << 30
    header = parse_header(info.tobuf(tarfile.GNU_FORMAT))
    assert header is not None
    assert header.size == 9 << 30


def test_an_extended_header_of_gigabytes_is_refused_without_reading_it(path):
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK))
    os.truncate(path, 9 << 30)
    with path.open("rb") as file, pytest.raises(PrepareError, match="continued by 8,589,934,592"):
        scan_tar(path, file.fileno())


def test_headers_in_a_chain_that_no_stack_holds_are_refused(path):
    info = tarfile.TarInfo("PaxHeader")
    info.type = tarfile.XHDTYPE
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 5000)
    with path.open("rb") as file, pytest.raises(PrepareError, match="is damaged or not a tar"):
        scan_tar(path, file.fileno())
