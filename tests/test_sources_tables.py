"""Text and parquet files as people have them: byte order marks, other columns, broken lines."""

import codecs
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import WNIDS, draw_ilsvrc, write_extracted, write_kaggle, write_parquet

from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import ANNOTATIONS, DEVKIT, SOLUTION, TRUTH
from alexprep.sources.listing import SourceOptions
from alexprep.sources.synsets import read_classes

J = b"\xff\xd8\xff\xe0 the first bytes of a JPEG"
ENCODINGS = {
    "utf-8": str.encode,
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}
ENDS = {"unix": "\n", "windows": "\r\n", "old mac": "\r"}


def refused(path, **options):
    with pytest.raises(PrepareError) as caught:
        find_source(path, SourceOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def two_classes(root):
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        (root / name / f"{name}1.jpg").write_bytes(J)
    return root


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_are_read_from_whatever_an_editor_saved(tmp_path, encoding, end):
    text = "ant\tgarden ant, Lasius niger\nbee\thoney bee, Größe 1\n".replace("\n", ENDS[end])
    (two_classes(tmp_path) / "synsets.txt").write_bytes(ENCODINGS[encoding](text))
    assert find_source(tmp_path).classes == (
        ("ant", "garden ant, Lasius niger"),
        ("bee", "honey bee, Größe 1"),
    )


def test_a_text_that_is_none_is_named_with_its_line(tmp_path):
    (two_classes(tmp_path) / "synsets.txt").write_bytes(b"ant\tant\nbee\tcaf\xe9\n")
    assert f"{tmp_path}/synsets.txt, line 2: not UTF-8" in refused(tmp_path)
    (tmp_path / "synsets.txt").write_bytes(b"ant\tant\0\0\n")
    assert f"{tmp_path}/synsets.txt is not a text file" in refused(tmp_path)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_kaggles_list_is_read_with_a_byte_order_mark_and_any_line_ends(
    tmp_path, rng, encoding, end
):
    train, held_out = draw_ilsvrc(rng)
    root = write_kaggle(tmp_path / "k", train, held_out)
    text = (root / SOLUTION).read_text().replace("\n", ENDS[end])
    expected = find_source(root).identity()
    (root / SOLUTION).write_bytes(ENCODINGS[encoding](text))
    assert find_source(root).identity() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("ImageId", "image"), "line 1: no column 'ImageId'"),
        (lambda text: text.split("\n", 1)[1], "line 1: no column 'ImageId'"),
        (lambda text: "", "line 1: no column 'ImageId'; the columns are none"),
        (lambda text: text.replace(",", ";"), "line 1: no column 'ImageId'"),
        (lambda text: text.rstrip() + "\nILSVRC2012_val_00000099\n", "line 12: 1 columns where"),
        (lambda text: text.rstrip() + "\nILSVRC2012_val_00000099,\n", "line 12: no class for"),
        (lambda text: text + '"unfinished', "not a CSV file"),
        (lambda text: "\n".join(text.split("\n")[:5]), "has no line for"),
    ],
)
def test_a_malformed_list_is_one_line_with_file_and_line(tmp_path, rng, change, message):
    root = write_kaggle(tmp_path / "k", *draw_ilsvrc(rng))
    (root / SOLUTION).write_text(change((root / SOLUTION).read_text()))
    text = refused(root)
    assert text.startswith(f"{root / SOLUTION}")
    assert message in text


@pytest.mark.parametrize("levels", range(4))
def test_kaggles_list_is_found_from_cls_loc_itself(tmp_path, rng, levels):
    root = write_kaggle(tmp_path / "k", *draw_ilsvrc(rng))
    expected = find_source(root)
    images = root / "ILSVRC/Data/CLS-LOC"
    (root / SOLUTION).rename((images, *images.parents)[levels] / SOLUTION)
    source = find_source(images)
    for split in ("train", "validation"):
        assert source.splits[split].key.tolist() == expected.splits[split].key.tolist()
        assert source.splits[split].label.tolist() == expected.splits[split].label.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\n" * 9 + "1001\n", "line 10: '1001' is no class id"), ("1\n" * 9 + "x\n", "'x' is no")],
)
def test_a_ground_truth_of_other_ids_is_named_with_its_line(tmp_path, rng, text, message):
    root = write_extracted(tmp_path / "a", *draw_ilsvrc(rng))
    (root / DEVKIT / "data" / TRUTH).write_text(text)
    assert message in refused(root)


def tiny_imagenet(root):
    """tiny-imagenet-200.zip as unzipped, with three classes."""
    wnids = ("n01443537", "n01629819", "n02124075")
    for number, wnid in enumerate(wnids):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for n in range(3):
            (images / f"{wnid}_{n}.JPEG").write_bytes(J + b"%d" % n * number)
        boxes = "".join(f"{wnid}_{n}.JPEG\t0\t0\t62\t62\n" for n in range(3))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    lines = []
    for n in range(6):
        (root / "val" / "images" / f"val_{n}.JPEG").write_bytes(J)
        (root / "test" / "images" / f"test_{n}.JPEG").write_bytes(J)
        lines.append(f"val_{n}.JPEG\t{wnids[n % 3]}\t0\t32\t44\t62\n")
    (root / "val" / ANNOTATIONS).write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    (root / "words.txt").write_text("n00001740\tentity\nn01629819\tEuropean fire salamander\n")
    return root


def test_tiny_imagenet_is_read_as_unzipped(tmp_path):
    source = find_source(tiny_imagenet(tmp_path / "tiny-imagenet-200"))
    assert [name for _, name in source.classes] == [
        "goldfish, Carassius auratus",
        "European fire salamander",
        "Egyptian cat",
    ]
    assert {split: len(samples.key) for split, samples in source.splits.items()} == {
        "train": 9,
        "validation": 6,
    }
    validation = source.splits["validation"]
    assert validation.key.tolist() == [b"val_%d" % n for n in range(6)]
    assert validation.label.tolist() == [0, 1, 2, 0, 1, 2]
    assert (source.warnings, source.left_out) == ((), ())


def test_a_broken_line_of_tiny_imagenets_annotations_is_named(tmp_path):
    root = tiny_imagenet(tmp_path / "tiny")
    (root / "val" / ANNOTATIONS).write_text("val_0.JPEG n01443537\n")
    assert f"{root}/val/{ANNOTATIONS}, line 1: expected a file name, a tab" in refused(root)


def write_table(path, labels, image=None, schema=None, names=None, **columns):
    """A parquet file of Hugging Face's kind; names of classes go into its schema."""
    images = [{"bytes": J, "path": f"{path.stem}_{n}.jpg"} for n in range(len(labels))]
    table = pa.table({"image": images if image is None else image, "label": labels} | columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path.parent


def test_labels_that_begin_at_one_are_refused(tmp_path):
    write_table(tmp_path / "train.parquet", [1, 2, 3, 1])
    assert "labels from 1 to 3, but no train image of label 0" in refused(tmp_path)


@pytest.mark.parametrize("labels", [[0, 2, 3], [0, 1, 2**33], [-5, 0, 1]])
def test_labels_with_gaps_or_out_of_range_are_refused(tmp_path, labels):
    write_table(tmp_path / "train.parquet", labels)
    assert "labels from" in refused(tmp_path)


def test_classes_of_the_schema_without_images_are_named(tmp_path):
    write_table(tmp_path / "train.parquet", [1, 2, 1], names=["none", "ant", "bee"])
    source = find_source(tmp_path)
    assert source.splits["train"].label.tolist() == [1, 2, 1]
    (warning,) = source.warnings
    assert "lists 3 classes, of which 1 have no train images ('none')" in warning


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), "str")])
def test_labels_of_text_become_classes(tmp_path, kind):
    labels = pa.array(["dog", "ant", "dog", "cat"]).cast(kind)
    write_table(tmp_path / "train-0.parquet", labels)
    write_table(tmp_path / "test-0.parquet", pa.array(["cat", "ant"]).cast(kind))
    source = find_source(tmp_path)
    assert [name for name, _ in source.classes] == ["ant", "cat", "dog"]
    assert source.splits["train"].label.tolist() == [2, 0, 2, 1]
    assert source.splits["test"].label.tolist() == [1, 0]


def test_wnids_as_text_get_their_names_and_unknown_ones_are_refused(tmp_path):
    write_table(tmp_path / "train.parquet", list(WNIDS))
    assert find_source(tmp_path).classes[0] == ("n01440764", "tench, Tinca tinca")
    write_table(tmp_path / "validation.parquet", ["n09999999"])
    assert "the first is 'n09999999'" in refused(tmp_path)


@pytest.mark.parametrize("path", ["img{}", "folder.x/img{}", "a/b/img{}", "img{}.tar.jpg"])
def test_keys_are_the_names_in_the_table_once(tmp_path, path):
    images = [{"bytes": J, "path": path.format(n)} for n in range(3)]
    write_table(tmp_path / "train.parquet", [0, 1, 2], images)
    keys = [key.decode() for key in find_source(tmp_path).splits["train"].key]
    assert [key.partition("-")[0] for key in keys] == [
        f"img{n}" + "_tar" * path.endswith(".tar.jpg") for n in range(3)
    ]


def test_names_that_end_in_their_label_stay_apart(tmp_path):
    images = [{"bytes": J, "path": f"{name}.jpg"} for name in ("a", "a_0", "b_1")]
    write_table(tmp_path / "train.parquet", [0, 0, 1], images)
    assert find_source(tmp_path).splits["train"].key.tolist() == [b"a", b"a_0", b"b_1"]


def test_images_without_names_are_called_by_their_row(tmp_path):
    images = [{"bytes": J, "path": None} for _ in range(3)]
    write_table(tmp_path / "train.parquet", [0, 1, 2], images)
    assert len(set(find_source(tmp_path).splits["train"].key.tolist())) == 3


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_columns_of_other_names_and_plain_bytes_are_read_when_named(tmp_path, kind):
    images = [J + b"%d" % n for n in range(3)]
    table = pa.table({"img": pa.array(images, kind), "fine_label": [2, 0, 1], "coarse": [0, 0, 0]})
    pq.write_table(table, tmp_path / "train.parquet")
    message = refused(tmp_path)
    assert "has the columns img, fine_label, coarse" in message
    assert "--image-column" in message
    options = SourceOptions(image_column="img", label_column="fine_label")
    samples = find_source(tmp_path, options).splits["train"]
    assert samples.label.tolist() == [2, 0, 1]
    assert list(samples.items.read()) == images
    assert list(samples.items.select(np.array([1])).read()) == images[1:2]


@pytest.mark.parametrize(
    ("labels", "image", "message"),
    [
        ([0.5, 1.5], None, "the column label holds double; labels are integers or text"),
        ([True, False], None, "the column label holds bool"),
        ([[0], [1]], None, "the column label holds list"),
        ([0, None], None, "has rows without a label"),
        ([0, 1], ["a.jpg", "b.jpg"], "the column image holds string, not images"),
        ([0, 1], [{"path": "a"}, {"path": "b"}], "not images"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path, labels, image, message):
    write_table(tmp_path / "train.parquet", labels, image)
    assert message in refused(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "pointer", "empty", "page"])
def test_a_file_that_is_no_whole_parquet_is_named(tmp_path, damage):
    path = write_table(tmp_path / "train.parquet", [0, 1, 2]) / "train.parquet"
    data = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    path.write_bytes(
        {"cut": data[:-20], "pointer": pointer, "empty": b"", "page": b"<html>"}[damage]
    )
    message = refused(tmp_path)
    assert message.startswith(str(path))
    assert ("git lfs pull" in message) == (damage == "pointer")


def test_a_damaged_row_group_is_named(tmp_path):
    images = [{"bytes": bytes([n]) * 5000, "path": f"{n}.jpg"} for n in range(40)]
    path = write_table(tmp_path / "train.parquet", list(range(40)), images) / "train.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(data)
    with pytest.raises(PrepareError, match=r"train.parquet is not a complete Parquet file"):
        list(find_source(tmp_path).splits["train"].items.read())


LAYOUTS = {
    "refs/convert": ("default/train/0000.parquet", "default/validation/0000.parquet"),
    "partial": ("default/partial-train/0000.parquet", "default/partial-validation/0000.parquet"),
    "split folders": ("train/0000.parquet", "validation/0000.parquet"),
    "data": ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
    "one file a split": ("train.parquet", "val.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_tables_are_known_by_their_files_or_folders(tmp_path, layout):
    for path, labels in zip(LAYOUTS[layout], ([0, 1, 2], [2, 1]), strict=True):
        images = [{"bytes": J, "path": f"{len(labels)}{'abc'[n]}.jpg"} for n in range(len(labels))]
        write_table(tmp_path / path, labels, images)
    source = find_source(tmp_path)
    assert source.kind == "parquet"
    assert {split: s.label.tolist() for split, s in source.splits.items()} == {
        "train": [0, 1, 2],
        "validation": [2, 1],
    }


def test_several_data_sets_of_parquet_files_are_refused_with_their_paths(tmp_path):
    for name in ("plain", "noisy"):
        write_table(tmp_path / name / "train" / "0000.parquet", [0, 1])
    assert f"Give one of them: {tmp_path}/noisy, {tmp_path}/plain." in refused(tmp_path)


def test_the_unlabelled_test_split_of_hugging_face_is_left_out(tmp_path):
    write_table(tmp_path / "train-0.parquet", [0, 1])
    write_table(tmp_path / "test-0.parquet", [-1, -1])
    assert list(find_source(tmp_path).splits) == ["train"]


def test_classes_of_parquet_are_kept_in_the_order_asked_for(tmp_path, rng):
    root = write_parquet(tmp_path / "p", *draw_ilsvrc(rng))
    source = find_source(root, SourceOptions(classes=(WNIDS[2], WNIDS[0])))
    assert [wnid for wnid, _ in source.classes] == [WNIDS[2], WNIDS[0]]
    for samples in source.splits.values():
        for key, label in zip(samples.key.tolist(), samples.label.tolist(), strict=True):
            if key.startswith(b"n"):
                assert key.split(b"_")[0].decode() == source.classes[label][0]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_list_of_classes_is_read_in_its_order(tmp_path, encoding):
    text = "n02105855 Shetland sheepdog\r\nn01440764\n\npolka dots\ncat\ta cat\n"
    (tmp_path / "classes.txt").write_bytes(ENCODINGS[encoding](text))
    expected = ("n02105855", "n01440764", "polka dots", "cat")
    assert read_classes(tmp_path / "classes.txt") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\na\n", "line 3: 'a' is in line 1 too"), ("\n\n", "names no class")],
)
def test_a_list_of_classes_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(PrepareError, match=message):
        read_classes(tmp_path / "classes.txt")
    with pytest.raises(PrepareError, match=r"absent\.txt: No such file"):
        read_classes(tmp_path / "absent.txt")


def test_classes_are_kept_and_labelled_in_the_order_asked_for(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / f"{split}{name}.jpg").write_bytes(J)
    source = find_source(tmp_path, SourceOptions(classes=("cat", "ant")))
    assert [name for name, _ in source.classes] == ["cat", "ant"]
    assert source.splits["train"].key.tolist() == [b"trainant", b"traincat"]
    assert source.splits["validation"].label.tolist() == [1, 0]
    message = refused(tmp_path, classes=("cat", "dog"))
    assert "--classes names 1 classes that no image has, the first is 'dog'" in message


@pytest.mark.parametrize("labels", [[0, 2**31 - 1], [0, 1, 2**30]])
def test_a_label_of_billions_is_refused_without_a_list_of_so_many(tmp_path, labels):
    write_table(tmp_path / "train.parquet", labels)
    assert "but no train image of label" in refused(tmp_path)


def test_a_label_without_text_is_refused(tmp_path):
    write_table(tmp_path / "train.parquet", ["ant", " "])
    assert "has a class without a name, ' '" in refused(tmp_path)


def test_a_folder_of_one_configuration_is_read_and_of_two_refused(tmp_path):
    for split, labels in (("train", [0, 1, 2]), ("test", [1])):
        write_table(tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet", labels)
    assert sorted(find_source(tmp_path).splits) == ["test", "train"]
    write_table(tmp_path / "cropped" / "train-00000-of-00001.parquet", [0, 1])
    assert f"Give one of them: {tmp_path}/cropped, {tmp_path}/plain_text." in refused(tmp_path)


def test_numbered_classes_whose_order_was_asked_for_are_not_warned_of(tmp_path):
    write_table(tmp_path / "train.parquet", [str(n) for n in range(12)])
    assert "order of text" in find_source(tmp_path).warnings[0]
    classes = tuple(str(n) for n in range(12))
    assert find_source(tmp_path, SourceOptions(classes=classes)).warnings == ()
