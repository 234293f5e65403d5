"""Archives: what is found in them, and what is refused."""

import io
import tarfile

import pytest
from archives import (
    add,
    draw_ilsvrc,
    tar_bytes,
    write_archives,
    write_extracted,
    write_kaggle,
)
from drawing import jpeg, photograph

from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import (
    DEVKIT_TAR,
    MD5,
    SOLUTION,
    TRAIN_TAR,
    VALIDATION_TAR,
    check_archives,
)
from alexprep.sources.synsets import ilsvrc2012
from alexprep.tar import scan_tar


def test_the_table_of_synsets_is_in_label_order_and_knows_the_devkit():
    table = ilsvrc2012()
    assert [synset.label for synset in table] == list(range(1000))
    assert [synset.wnid for synset in table] == sorted(synset.wnid for synset in table)
    assert sorted(synset.id for synset in table) == list(range(1, 1001))
    # Tench is label 0, and 449 in the devkit: taking one for the other is the classic mistake.
    assert table[0] == (0, 449, "n01440764", "tench, Tinca tinca")


def test_a_devkit_of_another_length_is_refused(tmp_path, rng):
    train, held_out = draw_ilsvrc(rng)
    root = write_extracted(tmp_path / "a", train, held_out)
    next((root / "val").iterdir()).unlink()
    with pytest.raises(PrepareError, match="10 lines for 9 validation images"):
        find_source(root)


def test_a_damaged_devkit_is_refused(tmp_path, rng):
    root = write_archives(tmp_path / "a", *draw_ilsvrc(rng))
    whole = (root / DEVKIT_TAR).read_bytes()
    (root / DEVKIT_TAR).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrepareError, match=rf"{DEVKIT_TAR} is damaged"):
        find_source(root)


def test_a_solution_that_lacks_an_image_is_refused(tmp_path, rng):
    root = write_kaggle(tmp_path / "k", *draw_ilsvrc(rng))
    rows = (root / SOLUTION).read_text().splitlines()
    (root / SOLUTION).write_text("\n".join(rows[:-1]))
    with pytest.raises(PrepareError, match="has no line for"):
        find_source(root)


@pytest.mark.parametrize("cut", [700, 5_000, -700])
def test_an_archive_that_was_not_downloaded_to_its_end_is_refused(tmp_path, rng, cut):
    root = write_archives(tmp_path / "a", *draw_ilsvrc(rng))
    whole = (root / TRAIN_TAR).read_bytes()
    (root / TRAIN_TAR).write_bytes(whole.rstrip(b"\0")[:cut])
    with pytest.raises(PrepareError, match="is incomplete"):
        find_source(root)


def test_an_archive_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / TRAIN_TAR).write_bytes(b"<html>quota exceeded</html>" * 100)
    with pytest.raises(PrepareError, match="damaged or is no tar"):
        find_source(tmp_path)


def test_md5s_are_compared_and_a_wrong_one_named(tmp_path, rng):
    root = write_archives(tmp_path / "a", *draw_ilsvrc(rng))
    with pytest.raises(PrepareError, match=rf"has MD5 \w+, not {MD5[TRAIN_TAR]}.*Download again"):
        check_archives(root)
    (root / VALIDATION_TAR).write_bytes(b"abc")
    check_archives(root, {VALIDATION_TAR: "900150983cd24fb0d6963f7d28e17f72"})
    with pytest.raises(PrepareError, match="holds none of"):
        check_archives(tmp_path)


def scan(path):
    with path.open("rb") as file:
        return scan_tar(path, file.fileno())


@pytest.mark.parametrize("name", ["/etc/passwd", "../../outside.JPEG", "a/../../b.JPEG"])
def test_a_tar_with_a_path_that_leads_out_is_refused(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes({"good.JPEG": b"1", name: b"2"}))
    with pytest.raises(PrepareError, match="leads out of the archive"):
        scan(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_tar_with_a_link_or_device_is_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "good.JPEG", b"1")
        add(archive, "odd.JPEG", b"", type=kind, linkname="/etc/passwd")
    with pytest.raises(PrepareError, match=r"'odd.JPEG', which is a link or a device"):
        scan(path)


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["plain.JPEG", "folder/with.dots.JPEG"], tarfile.USTAR_FORMAT),
        (["x" * 150 + ".JPEG", "short.JPEG"], tarfile.GNU_FORMAT),
        (["short.JPEG", "größe.JPEG", "y" * 300 + ".JPEG"], tarfile.PAX_FORMAT),
        (["a" * 90 + "/" + "b" * 90 + ".JPEG"], tarfile.USTAR_FORMAT),
    ],
)
def test_names_and_ranges_are_those_that_tarfile_finds(tmp_path, rng, names, format):
    files = {name: rng.bytes(int(rng.integers(0, 3000))) for name in names}
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(files, format=format))
    whole = path.read_bytes()
    found = {entry.name.decode(): entry for entry in scan(path)}
    assert list(found) == names
    for name, entry in found.items():
        assert whole[entry.offset : entry.offset + entry.size] == files[name]


def test_a_name_that_comes_twice_in_an_archive_is_refused(tmp_path, rng):
    data = jpeg(photograph(rng))
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        add(archive, "n01440764_1.JPEG", data)
        add(archive, "n01440764_1.JPEG", data)
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes({"n01440764.tar": inner.getvalue()}))
    with pytest.raises(PrepareError, match="would both be sample"):
        find_source(tmp_path)
