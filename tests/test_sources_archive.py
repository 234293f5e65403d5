"""Archives: what is found in them, and what is refused."""

import base64
import gzip
import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from archives import (
    WNIDS,
    add,
    draw_ilsvrc,
    ground_truth,
    shard_hashes,
    tar_bytes,
    write_2010,
    write_archives,
    write_class_tars,
    write_extracted,
    write_kaggle,
)
from drawing import jpeg, photograph

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import (
    DEVKIT,
    DEVKIT_TAR,
    MD5,
    SOLUTION,
    TRAIN_TAR,
    TRUTH,
    VALIDATION_TAR,
    check_archives,
)
from alexprep.sources.listing import SourceOptions
from alexprep.sources.synsets import ilsvrc2012
from alexprep.tar import scan_tar

J = b"\xff\xd8\xff\xe0 the first bytes of a JPEG"
READ = SourceOptions()
FOUR = SourceOptions(classes=WNIDS)

MATLAB_CRASH = (
    "DwAAALYAAAB4nONjYGDoYGJgYAPSHEAMZIIBK5TPCBUD0exAXFyZV5xaUgyUZ2Hgg4pbALGnT3BYkLKRgaFBvKcLQ7gf"
    "kICD8vyilGI4L680Nz45IzMnpSg1jwFsBkg/zH4+LPbDMAj09EDFX0EFQOodkPSzYNHPiaRfAMrPMzA0MTEwNzNhQJhj"
    "QcAcVjRzQPyS1LzkDCz6ifUHDJCrP5Ma4WBsamxOQjhwoJkD4qfn56SkZRZnUBoOAEfBHw8="
)


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
    with pytest.raises(PrepareError, match="damaged or not a tar"):
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


def first_bytes(train, held_out):
    """Small files in place of images, for what only lists them."""
    return (
        {name: b"\xff\xd8" + bytes(n) for n, name in enumerate(train)},
        {
            name: (b"\xff\xd8" + bytes(n), wnid)
            for n, (name, (_, wnid)) in enumerate(held_out.items())
        },
    )


def refused(path, options=READ):
    with pytest.raises(PrepareError) as caught:
        find_source(path, options)
    return str(caught.value)


def same(one, two):
    """Whether two sources list the same samples under the same labels."""
    assert one.classes == two.classes
    assert sorted(one.splits) == sorted(two.splits)
    for split in one.splits:
        assert one.splits[split].key.tolist() == two.splits[split].key.tolist()
        assert one.splits[split].label.tolist() == two.splits[split].label.tolist()
        assert list(one.splits[split].items.read()) == list(two.splits[split].items.read())


def test_archives_that_lack_classes_of_the_devkit_are_refused_or_named(tmp_path, rng):
    root = write_archives(tmp_path / "a", *first_bytes(*draw_ilsvrc(rng)))
    message = refused(root)
    assert "lacks 996 of the 1,000 classes of ILSVRC2012, the first is 'n01484850'" in message
    assert "--classes FILE" in message
    assert [wnid for wnid, _ in find_source(root, FOUR).classes] == list(WNIDS)
    (root / DEVKIT_TAR).unlink()
    (root / VALIDATION_TAR).unlink()
    (warning,) = find_source(root).warnings
    assert "lacks 996 of the 1,000 classes" in warning


def test_classes_are_kept_in_the_order_of_the_list(tmp_path, rng):
    root = write_archives(tmp_path / "a", *first_bytes(*draw_ilsvrc(rng)))
    source = find_source(root, SourceOptions(classes=(WNIDS[3], WNIDS[1])))
    assert [wnid for wnid, _ in source.classes] == [WNIDS[3], WNIDS[1]]
    train = source.splits["train"]
    wnids = [key.decode().split("_")[0] for key in train.key]
    assert [source.classes[label][0] for label in train.label] == wnids


PACKINGS = {
    "tar of Safari": (".tar", "w"),
    "plain tar called .gz": (".tar.gz", "w"),
    "bzip2": (".tar.bz2", "w:bz2"),
    "xz": (".tar.xz", "w:xz"),
    "tgz": (".tgz", "w:gz"),
    "downloaded twice": (" (1).tar.gz", "w:gz"),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_devkit_is_read_however_it_is_packed(tmp_path, rng, packing):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    root = write_archives(tmp_path / "a", train, held_out)
    expected = find_source(root, FOUR).identity()
    (root / DEVKIT_TAR).unlink()
    ending, mode = PACKINGS[packing]
    with tarfile.open(root / f"{DEVKIT}{ending}", mode) as devkit:
        add(devkit, f"{DEVKIT}/data/{TRUTH}", ground_truth(held_out).encode())
    assert find_source(root, FOUR).identity() == expected


@pytest.mark.parametrize("folder", [DEVKIT, "devkit", "."])
def test_a_devkit_is_read_unpacked(tmp_path, rng, folder):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    root = write_archives(tmp_path / "a", train, held_out)
    expected = find_source(root, FOUR).identity()
    (root / DEVKIT_TAR).unlink()
    (root / folder / "data").mkdir(parents=True)
    (root / folder / "data" / TRUTH).write_text(ground_truth(held_out))
    assert find_source(root, FOUR).identity() == expected


def test_the_archives_of_2010_have_ids_of_their_own(tmp_path, rng):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    source = find_source(write_2010(tmp_path / "a", train, held_out))
    assert [wnid for wnid, _ in source.classes] == list(WNIDS)
    assert source.warnings == ()
    validation = source.splits["validation"]
    expected = {n.replace("2012", "2010")[:-5]: wnid for n, (_, wnid) in held_out.items()}
    assert {
        key.decode(): source.classes[label][0]
        for key, label in zip(validation.key, validation.label, strict=True)
    } == expected


def test_a_devkit_of_2010_without_the_meaning_of_its_ids_is_refused(tmp_path, rng):
    root = write_2010(tmp_path / "a", *first_bytes(*draw_ilsvrc(rng)))
    truth = "ILSVRC2010_validation_ground_truth.txt"
    with tarfile.open(root / "ILSVRC2010_devkit-1.0.tar.gz", "w:gz") as devkit:
        add(devkit, f"devkit-1.0/data/{truth}", b"1\n")
    assert f"holds {truth} but no meta.mat" in refused(root)
    with tarfile.open(root / "ILSVRC2010_devkit-1.0.tar.gz", "w:gz") as devkit:
        add(devkit, f"devkit-1.0/data/{truth}", b"1\n")
        add(devkit, "devkit-1.0/data/meta.mat", b"MATLAB 5.0 MAT-file" + bytes(200))
    path = root / "ILSVRC2010_devkit-1.0.tar.gz"
    assert f"meta.mat in {path} does not give the synsets of ILSVRC2010" in refused(root)
    # Of a fuzzer: scipy's reader ends its process with SIGSEGV.
    with tarfile.open(root / "ILSVRC2010_devkit-1.0.tar.gz", "w:gz") as devkit:
        add(devkit, f"devkit-1.0/data/{truth}", b"1\n")
        head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
        add(devkit, "devkit-1.0/data/meta.mat", head + base64.b64decode(MATLAB_CRASH))
    path = root / "ILSVRC2010_devkit-1.0.tar.gz"
    assert f"meta.mat in {path} does not give the synsets of ILSVRC2010" in refused(root)


def test_a_devkit_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path, rng):
    root = write_archives(tmp_path / "a", *first_bytes(*draw_ilsvrc(rng)))
    with tarfile.open(root / DEVKIT_TAR, "w:gz") as devkit:
        info = tarfile.TarInfo(f"{DEVKIT}/data/{TRUTH}")
        info.size = 1 << 29
        devkit.fileobj.write(info.tobuf())
        devkit.offset = 512
    assert "more than 268,435,456 bytes when unpacked" in refused(root)


@pytest.mark.parametrize(
    "name", ["fall11_whole.tar", "winter21_whole.tar", "winter21_whole.tar.gz"]
)
def test_a_tar_of_class_tars_is_read(tmp_path, rng, name):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    expected = find_source(write_archives(tmp_path / "a", train, held_out), FOUR)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_bytes((tmp_path / "a" / TRAIN_TAR).read_bytes())
    source = find_source(tmp_path / "b")
    same(source, replace(expected, splits={"train": expected.splits["train"]}))


def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path, rng):
    train, _ = first_bytes(*draw_ilsvrc(rng))
    inner = tar_bytes({"n01440764.tar": tar_bytes(train)})
    for name in (TRAIN_TAR, "fall11_whole.tar.gz"):
        root = tmp_path / name
        root.mkdir()
        (root / name).write_bytes(gzip.compress(inner))
        assert f"{root / name} is compressed (gzip)" in refused(root)
        assert "Unpack it" in refused(root)


def test_class_tars_are_read_from_their_folder_and_from_a_split(tmp_path, rng):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    expected = find_source(write_archives(tmp_path / "a", train, held_out), FOUR)
    expected = replace(expected, splits={"train": expected.splits["train"]})
    same(find_source(write_class_tars(tmp_path / "b", train)), expected)
    write_class_tars(tmp_path / "c" / "train", train)
    same(find_source(tmp_path / "c"), expected)


HALF_EXTRACTED = {
    "class tars and the validation tar": ("train", True, False),
    "some classes extracted": ("train", True, True),
    "a folder called after the archive": ("ILSVRC2012_img_train", True, True),
    "all classes extracted": ("train", False, True),
}


@pytest.mark.parametrize("state", HALF_EXTRACTED)
def test_a_half_extracted_tree_is_read_as_the_whole(tmp_path, rng, state):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    expected = find_source(write_archives(tmp_path / "whole", train, held_out), FOUR)
    root = write_archives(tmp_path / "half", train, held_out)
    (root / TRAIN_TAR).unlink()
    folder, packed, extracted = HALF_EXTRACTED[state]
    loose = WNIDS if not packed else WNIDS[::2] if extracted else ()
    write_class_tars(
        root / folder, {n: d for n, d in train.items() if n.split("_")[0] not in loose}
    )
    for name, data in train.items():
        if name.split("_")[0] in loose:
            (root / folder / name.split("_")[0]).mkdir(exist_ok=True)
            (root / folder / name.split("_")[0] / name).write_bytes(data)
    source = find_source(root, FOUR)
    same(source, expected)
    items = source.splits["train"].items
    order = np.concatenate(list(items.neighbours()))
    assert sorted(order.tolist()) == list(range(len(items)))
    some = np.array([5, 1, 17, 2])
    assert list(items.select(some).read()) == [list(items.read())[n] for n in some]


def test_a_half_extracted_tree_becomes_the_shards_of_the_whole(tmp_path, rng):
    train, held_out = draw_ilsvrc(rng)
    root = write_archives(tmp_path / "a", train, held_out)
    config = ShardConfig(size=48, classes=WNIDS)
    shard(root, tmp_path / "whole", config, RunOptions(workers=1))
    (root / TRAIN_TAR).unlink()
    write_class_tars(root / "train", {n: d for n, d in train.items() if not n.startswith(WNIDS[0])})
    (root / "train" / WNIDS[0]).mkdir()
    for name in (name for name in train if name.startswith(WNIDS[0])):
        (root / "train" / WNIDS[0] / name).write_bytes(train[name])
    for sequential in (False, True):
        out = tmp_path / f"half{sequential}"
        shard(root, out, config, RunOptions(workers=1, sequential=sequential))
        assert shard_hashes(out) == shard_hashes(tmp_path / "whole")


def test_a_class_both_extracted_and_packed_is_refused(tmp_path, rng):
    train, _ = first_bytes(*draw_ilsvrc(rng))
    root = write_class_tars(tmp_path / "a", train)
    (root / WNIDS[1]).mkdir()
    (root / WNIDS[1] / "1.JPEG").write_bytes(b"\xff\xd8")
    assert f"has {WNIDS[1]}/ and {WNIDS[1]}.tar" in refused(root)


def test_what_a_mac_adds_to_tars_is_left_out(tmp_path, rng):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    expected = find_source(write_archives(tmp_path / "a", train, held_out), FOUR)
    mac = {}
    for wnid in WNIDS:
        files = {f"./{n}": data for n, data in train.items() if n.startswith(wnid)}
        added = {f"./._{n[2:]}": b"\0\5\x16\7 resource fork" for n in files}
        mac[f"._{wnid}.tar"] = b"\0\5\x16\7 resource fork"
        mac[f"{wnid}.tar"] = tar_bytes(files | added | {"./.DS_Store": b"Bud1"})
    root = tmp_path / "b"
    root.mkdir()
    (root / TRAIN_TAR).write_bytes(tar_bytes(mac))
    same(find_source(root), replace(expected, splits={"train": expected.splits["train"]}))
    folder = tmp_path / "c"
    folder.mkdir()
    for name, data in mac.items():
        (folder / name).write_bytes(data)
    same(find_source(folder), replace(expected, splits={"train": expected.splits["train"]}))


def test_a_file_in_an_archive_that_is_no_image_is_named_or_left_out(tmp_path):
    files = {"n01440764_1.JPEG": b"\xff\xd8", "n01440764_1.xml": b"<a/>", "README": b"Read me"}
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes({"n01440764.tar": tar_bytes(files)}))
    assert "README is not an image: it begins with b'Read me'" in refused(tmp_path)
    source = find_source(tmp_path, SourceOptions(skip=True))
    assert source.images == 1
    (stray,) = source.left_out
    assert stray.sha256 == hashlib.sha256(b"Read me").hexdigest()


@pytest.mark.parametrize("name", [TRAIN_TAR, VALIDATION_TAR])
def test_an_archive_of_no_bytes_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert f"{tmp_path / name} is empty (0 bytes)" in refused(tmp_path)


def test_a_class_that_comes_twice_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / TRAIN_TAR, "w") as archive:
        add(archive, "n01440764.tar", tar_bytes({"n01440764_1.JPEG": b"\xff\xd8"}))
        add(archive, "n01440764.tar", tar_bytes({"n01440764_2.JPEG": b"\xff\xd8"}))
    assert "has the class 'n01440764' twice" in refused(tmp_path)


def test_blank_images_of_2010_are_read_from_its_patch(tmp_path, rng):
    train, held_out = first_bytes(*draw_ilsvrc(rng))
    root = write_2010(tmp_path / "a", train, held_out)
    before = find_source(root)
    name = sorted(train)[3]
    image = sorted(held_out)[2].replace("2012", "2010")
    patches = {f"patch_images/train/{name}": J + b"train", f"patch_images/val/{image}": J + b"val"}
    (root / "patch_images.tar").write_bytes(tar_bytes(patches | {"patch_images/README": b"Read"}))
    source = find_source(root)
    assert source.classes == before.classes
    for split, key, data in (("train", name[:-5], b"train"), ("validation", image[:-5], b"val")):
        samples, originals = source.splits[split], before.splits[split]
        assert samples.key.tolist() == originals.key.tolist()
        assert samples.label.tolist() == originals.label.tolist()
        contents, expected = list(samples.items.read()), list(originals.items.read())
        changed = [
            n for n, (new, old) in enumerate(zip(contents, expected, strict=True)) if new != old
        ]
        assert changed == [samples.key.tolist().index(key.encode())]
        assert contents[changed[0]] == J + data


CLASS_TARS = {f"{wnid}.tar": tar_bytes({f"{wnid}_1.JPEG": J}) for wnid in WNIDS}
TREE = tar_bytes({"ant/1.jpg": J, "bee/2.jpg": J})
MISPLACED = {
    "archives in a folder": (
        {"img/ILSVRC2012_img_train.tar": tar_bytes(CLASS_TARS)},
        "has ILSVRC2012_img_train.tar in folders. SOURCE is probably {}/img.",
    ),
    "archives in two folders": (
        {f"{s}/ILSVRC2012_img_{s}.tar": tar_bytes(CLASS_TARS) for s in ("train", "val")},
        "Put the archives into one folder",
    ),
    "two archives of classes": (
        {"fall11_whole.tar": tar_bytes(CLASS_TARS), "winter21_whole.tar": tar_bytes(CLASS_TARS)},
        "has fall11_whole.tar, winter21_whole.tar, of which fall11_whole.tar holds a tar a class",
    ),
    "an archive of classes among classes": (
        {
            "train/n01440764.tar": CLASS_TARS["n01440764.tar"],
            "train/all.tar": tar_bytes(CLASS_TARS),
        },
        "all.tar would be one class, but holds n01440764.tar and n01443537.tar. Unpack it",
    ),
    "a packed tree": (
        {"photos.tar": TREE},
        "photos.tar would be one class, but holds ant/ and bee/",
    ),
    "packed splits": (
        {"train.tar": TREE, "val.tar": TREE},
        "has train.tar, val.tar, which are splits and no classes. Unpack each",
    ),
    "compressed class tars": (
        {f"train/{wnid}.tar.gz": b"\x1f\x8b" for wnid in WNIDS},
        "It holds train/n01440764.tar.gz: unpack it first.",
    ),
    "a tar in capitals": ({"ANT.TAR": TREE}, "It holds ANT.TAR: unpack it first."),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_archives_that_lie_or_are_packed_otherwise_are_refused_with_what_to_do(tmp_path, case):
    files, message = MISPLACED[case]
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert message.format(tmp_path) in refused(tmp_path)


def test_a_class_tar_with_folders_of_its_own_is_a_class(tmp_path):
    for name in ("ant", "bee"):
        files = {f"./{name}/{n}/{name}{n}.jpg": J for n in range(2)}
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(files))
    assert find_source(tmp_path).splits["train"].label.tolist() == [0, 0, 1, 1]


def test_a_training_archive_of_another_name_is_warned_of(tmp_path, rng):
    root = write_archives(tmp_path / "a", *first_bytes(*draw_ilsvrc(rng)))
    (root / TRAIN_TAR).rename(root / "ILSVRC2012_img_train (1).tar")
    (root / "ILSVRC2012_img_test_v10102019.tar").write_bytes(tar_bytes({"1.JPEG": J}))
    (warning,) = find_source(root).warnings
    assert "no training images; not used: ILSVRC2012_img_train (1).tar. Rename" in warning


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_wrong_with_class_tars_that_are_not_kept_does_not_matter(tmp_path, kept):
    for name, files in (
        ("ant", {"1.jpg": J}),
        ("bee", {"2.jpg": J}),
        ("cow", {}),
        ("dog", {"notes.txt": b"Notes"}),
    ):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(files))
    if kept:
        options = SourceOptions(classes=("bee", "ant"))
        assert find_source(tmp_path, options).splits["train"].label.tolist() == [1, 0]
    else:
        assert "notes.txt is not an image" in refused(tmp_path)


def test_a_member_larger_than_any_image_is_left_out_unread(tmp_path):
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 1 << 36
    with (tmp_path / "ant.tar").open("wb") as file:
        file.write(huge.tobuf() + J)
        file.seek(huge.size - len(J), io.SEEK_CUR)
        file.write(tar_bytes({"a.jpg": J}))
    (tmp_path / "bee.tar").write_bytes(tar_bytes({"b.jpg": J}))
    with pytest.raises(PrepareError, match=r"huge.jpg has 68,719,476,736 bytes, more than any"):
        find_source(tmp_path, READ)
    source = find_source(tmp_path, SourceOptions(skip=True))
    assert (source.images, len(source.left_out)) == (2, 1)
