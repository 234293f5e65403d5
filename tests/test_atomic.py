import pytest

from pipelines.atomic import write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    for data in (b"old", b"new"):
        write_whole(tmp_path / "a.json", data)
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_put_in_place_leaves_what_was_there(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_whole(tmp_path / "a.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_reported_with_the_path(tmp_path):
    # Every write to /dev/full fails with ENOSPC, which names no file.
    (tmp_path / "a.json.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_whole(tmp_path / "a.json", b"new")
    assert not list(tmp_path.iterdir())
