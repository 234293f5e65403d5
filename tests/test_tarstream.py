import hashlib
import io
import tarfile

import pytest

from alexprep.tar import TarStream
from pipelines.errors import DataError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path, files, format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_are_those_tarfile_finds_with_the_offsets_of_their_data(tmp_path, rng):
    sizes = [0, 1, 511, 512, 513, 100_000, 1_048_064, 1_048_576, 2_500_000, 7]
    files = {f"k{size}.bin": rng.bytes(size) for size in sizes}
    for name, format in FORMATS.items():
        path = write_tar(tmp_path / f"{name}.tar", files, format)
        with TarStream(path) as tar:
            found = list(tar)
        with tarfile.open(path) as reference:
            expected = [(info.name, info.offset_data) for info in reference]
        assert [(member.name, member.offset) for member in found] == expected
        assert {member.name: member.data for member in found} == files


def test_the_hashes_are_those_of_the_whole_file(tmp_path, rng):
    path = write_tar(tmp_path / "a.tar", {"a": rng.bytes(3_000_000), "b": b"x"})
    with TarStream(path, md5=True) as tar:
        list(tar)
    assert tar.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tar.md5 == hashlib.md5(path.read_bytes()).hexdigest()
    assert tar.bytes == path.stat().st_size


def test_a_long_name_keeps_the_prefix_that_ustar_gives_it(tmp_path):
    name = "a" * 90 + "/" + "b" * 60
    with TarStream(write_tar(tmp_path / "a.tar", {name: b"x"})) as tar:
        assert [member.name for member in tar] == [name]


def test_folders_and_links_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("x")
            info.type = kind
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("file"))
    with TarStream(path) as tar:
        assert [member.name for member in tar] == ["file"]


@pytest.mark.parametrize("kept", [700, 1024 + 100, 1536 + 100])
def test_a_tar_cut_off_is_refused_with_the_byte(tmp_path, kept):
    path = write_tar(tmp_path / "a.tar", {"a": b"x" * 500, "b": b"y" * 900})
    path.write_bytes(path.read_bytes()[:kept])
    with TarStream(path) as tar, pytest.raises(DataError, match=r"a\.tar is .*cut off.* byte \d+"):
        list(tar)


def test_a_header_that_does_not_sum_up_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": b"x" * 500, "b": b"y" * 900})
    data = bytearray(path.read_bytes())
    data[1024 + 257] ^= 1
    path.write_bytes(data)
    with TarStream(path) as tar, pytest.raises(DataError, match="no tar header at byte 1024"):
        list(tar)
    data[1024 + 257] ^= 1
    data[1024 + 130] = ord("x")
    path.write_bytes(data)
    with TarStream(path) as tar, pytest.raises(DataError, match="no tar header at byte 1024"):
        list(tar)


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_text("this is a letter, not a tar; " * 40)
    with TarStream(path) as tar, pytest.raises(DataError, match="no tar header at byte 0"):
        list(tar)
