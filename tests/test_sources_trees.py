"""Trees of folders as people have them: read rightly, refused with the path meant, or warned of."""

import os
import unicodedata

import pytest
from drawing import draw_classes, jpeg, photograph
from shard_sets import HERE, SMALL
from test_bad_input import without_privileges

from alexprep.dataset.forecast import forecast
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.sources.check import check_beginnings
from alexprep.sources.find import find_source
from alexprep.sources.listing import SourceOptions, split_of
from pipelines.format import Manifest

READ = SourceOptions()
SKIP = SourceOptions(skip=True)
J = b"\xff\xd8\xff\xe0 the first bytes of a JPEG"


def write(root, paths, data=J):
    """Files of different content at these paths under `root`."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data + b"%d" % number * (number + 1))
    return root


def refused(path, options=READ):
    with pytest.raises(PrepareError) as caught:
        find_source(path, options)
    return str(caught.value)


def keys(source, split="train"):
    return [key.decode() for key in source.splits[split].key]


ONE_TOO_HIGH = {
    "ILSVRC/Data": ("CLS-LOC", ["train/n01440764/1.JPEG", "val/2.JPEG"]),
    "ILSVRC of Kaggle": (
        "Data/CLS-LOC",
        [
            *("../Annotations/CLS-LOC/train/n01440764/1.xml", "../Annotations/CLS-LOC/val/2.xml"),
            *("train/n01440764/1.JPEG", "val/2.JPEG", "../../ImageSets/CLS-LOC/train_cls.txt"),
        ],
    ),
    "splits in another case": ("pictures", ["Training/cat/1.jpg", "Testing/cat/2.jpg"]),
    "one of several folders has splits": ("b", ["../a/1.jpg", "train/cat/1.jpg", "test/cat/2.jpg"]),
    "train alone": ("pictures", ["train/cat/1.jpg", "train/dog/2.jpg"]),
    "three levels": ("a/b/c", ["train/cat/1.jpg", "valid/cat/2.jpg"]),
    "classes without splits": ("256_ObjectCategories", ["cat/1.jpg", "dog/2.jpg"]),
    "classes two levels down": ("a/images", ["cat/1.jpg", "dog/2.jpg"]),
    "classes next to annotations": (
        "101_ObjectCategories",
        ["cat/1.jpg", "dog/2.jpg", "../Annotations/cat/1.mat", "../attributes/a.txt"],
    ),
}


@pytest.mark.parametrize("case", ONE_TOO_HIGH)
def test_a_folder_too_high_is_refused_with_the_path_that_is_meant(tmp_path, case):
    meant, paths = ONE_TOO_HIGH[case]
    (tmp_path / meant).mkdir(parents=True)
    write(tmp_path / meant, paths)
    assert f"SOURCE is probably {tmp_path / meant}." in refused(tmp_path)


def test_a_split_that_holds_the_split_again_is_refused_with_the_inner_one(tmp_path):
    write(
        tmp_path, ["training_set/training_set/cats/1.jpg", "training_set/training_set/dogs/2.jpg"]
    )
    inner = tmp_path / "training_set" / "training_set"
    assert f"SOURCE is probably {inner}." in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("train_images", "train")),
        *(("val", "validation"), ("Valid", "validation"), ("validation_set", "validation")),
        *(("test", "test"), ("testing", "test"), ("Test-Set", "test"), ("test2", "test")),
        *(("TrainingSet", "train"), ("TestImages", "test"), ("01_val", "validation")),
        *(("ILSVRC2012_img_train", "train"), ("ILSVRC2012_img_val", "validation")),
        *(("trainval", None), ("test tube", None), ("freight train", None), ("contest", None)),
        *(("data", None), ("images", None), ("n01440764", None), ("train_test", None)),
    ],
)
def test_the_usual_words_for_a_split_are_known_in_any_case(name, split):
    assert split_of(name) == split


def test_training_and_testing_are_splits(tmp_path):
    write(tmp_path, [f"{s}/{c}/{s}{c}.jpg" for s in ("training", "Testing") for c in "ab"])
    source = find_source(tmp_path)
    assert [wnid for wnid, _ in source.classes] == ["a", "b"]
    assert sorted(source.splits) == ["test", "train"]


def test_a_class_called_train_among_classes_is_a_class(tmp_path):
    write(tmp_path, ["bus/1.jpg", "car/2.jpg", "train/3.jpg"])
    assert [wnid for wnid, _ in find_source(tmp_path).classes] == ["bus", "car", "train"]
    write(tmp_path / "nested/train", ["bus/1.jpg", "car/2.jpg", "train/3.jpg"])
    nested = find_source(tmp_path / "nested")
    assert [wnid for wnid, _ in nested.classes] == ["bus", "car", "train"]


@pytest.mark.parametrize(
    "paths",
    [
        [f"{s}/{c}/1.jpg" for s in ("exercise", "exam") for c in ("ant", "bee")],
        [f"fold{n}/{c}/1.jpg" for n in range(3) for c in ("ant", "bee", "cat")],
        [*(f"fold{n}/{c}/1.jpg" for n in range(3) for c in ("ant", "bee")), "fold2/cat/1.jpg"],
        [f"{c}/{k}/1.png" for c in ("ant", "bee") for k in ("images", "masks")],
        [f"seg_{s}/seg_{s}/{c}/1.jpg" for s in ("train", "test") for c in ("ant", "bee")],
        [f"{d}/images/{c}/1.jpg" for d in ("amazon", "dslr", "webcam") for c in ("ant", "bee")],
        [f"{k}/{c}/1.png" for k in ("images", "masks") for c in ("ant", "bee")] + ["parts/1.txt"],
    ],
    ids=[
        *("two splits", "folds", "folds that lack a class", "images and masks", "nested splits"),
        *("domains", "masks and texts next to images"),
    ],
)
def test_class_folders_that_hold_the_same_folders_are_refused(tmp_path, paths):
    write(tmp_path, paths)
    assert "but the same folders" in refused(tmp_path)


def test_class_folders_with_folders_of_their_own_are_classes(tmp_path):
    write(
        tmp_path, ["ant/2019/1.jpg", "ant/2020/2.jpg", "bee/2020/3.jpg", "bee/4.jpg", "cat/5.jpg"]
    )
    assert [wnid for wnid, _ in find_source(tmp_path).classes] == ["ant", "bee", "cat"]


def test_folders_that_are_named_after_splits_are_refused_as_classes(tmp_path):
    write(
        tmp_path, [*(f"train.X{n}/n0144076{n}/{n}.JPEG" for n in (1, 2)), "val.X/n01440761/9.JPEG"]
    )
    assert "train.X1/, train.X2/, val.X/ hold folders and are named after splits" in refused(
        tmp_path
    )


def test_classes_that_are_named_after_splits_are_warned_of(tmp_path):
    write(tmp_path, ["cat_train/1.jpg", "cat_test/2.jpg", "dog_train/3.jpg"])
    (warning,) = find_source(tmp_path).warnings
    assert "are named after splits: cat_test, cat_train, dog_train" in warning


def test_class_folders_that_hold_only_folders_are_warned_of(tmp_path):
    write(tmp_path, ["a/abbey/1.jpg", "a/airfield/2.jpg", "b/beach/3.jpg", "b/bar/4.jpg"])
    (warning,) = find_source(tmp_path).warnings
    assert "(a/, b/) hold only folders (abbey/, airfield/, bar/, beach/)" in warning


def test_what_is_wrong_with_classes_that_are_not_kept_does_not_matter(tmp_path):
    write(tmp_path, ["ant/1.jpg", "bee/2.jpg", "cow/README.md", "dog/3.jpg"], b"text")
    (tmp_path / "elk").mkdir()
    write(tmp_path, ["ant/1.jpg", "bee/2.jpg"])
    source = find_source(tmp_path, SourceOptions(classes=("bee", "ant")))
    assert (source.images, source.left_out) == (2, ())
    with pytest.raises(PrepareError, match=r"cow/README.md is not an image"):
        find_source(tmp_path, SourceOptions(classes=("bee", "cow")))


def test_a_set_of_one_class_is_warned_of(tmp_path):
    write(tmp_path, ["cat/1.jpg", "cat/2.jpg"])
    assert any("nothing to learn" in warning for warning in find_source(tmp_path).warnings)


def test_training_images_without_class_folders_are_refused(tmp_path):
    write(tmp_path, ["train/cat.0.jpg", "train/dog.0.jpg", "val/cat/1.jpg"])
    assert "holds images but no class folders" in refused(tmp_path)
    write(tmp_path / "flat", ["cat.0.jpg", "dog.0.jpg"])
    assert "holds images but no class folders" in refused(tmp_path / "flat")


def test_a_folder_of_a_packed_set_is_refused_with_its_name(tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"PK\3\4")
    assert "It holds tiny-imagenet-200.zip: unpack it first." in refused(tmp_path)


def test_files_that_plainly_are_no_images_are_all_named_before_encoding(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=6)
    (root / "train/ant/ant_train_1.JPEG").write_bytes(b"<html>404</html>")
    (root / "val/bee/bee_val_2.JPEG").write_bytes(b"")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    (root / "val/cat/cat_val_3.JPEG").write_bytes(pointer)
    with pytest.raises(PrepareError, match="holds 3 files that cannot become a sample") as caught:
        shard(root, tmp_path / "made", SMALL, HERE)
    assert "ant_train_1.JPEG is not an image: it begins with b'<html>404</html" in str(caught.value)
    assert "bee_val_2.JPEG is empty" in str(caught.value)
    assert "cat_val_3.JPEG is a Git LFS pointer" in str(caught.value)
    assert not list(tmp_path.glob("made/*/*.tar"))


def test_an_image_that_may_not_be_read_is_listed_or_left_out(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=6)
    (root / "train/ant/ant_train_1.JPEG").chmod(0)
    words = ("shard", root, tmp_path / "made", "--size", "32", "--workers", "1")
    failed = without_privileges(*words)
    assert failed.returncode == 1
    assert "ant_train_1.JPEG cannot be read (Permission denied)" in failed.stderr
    assert "Traceback" not in failed.stderr
    done = without_privileges(*words, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "made")
    assert [(left.path, left.sha256, left.reason) for left in manifest.left_out] == [
        ("train/ant/ant_train_1.JPEG", "", "cannot be read (Permission denied)")
    ]
    assert manifest.splits["train"].counts == (5, 6, 6)


def test_classes_next_to_a_split_are_refused_without_training_and_warned_of_with_it(tmp_path):
    write(tmp_path, ["ant/1.jpg", "bee/2.jpg", "test/ant/3.jpg", "test/bee/4.jpg"])
    assert "ant/, bee/ with images next to it" in refused(tmp_path)
    write(tmp_path, ["train/ant/5.jpg", "train/bee/6.jpg"])
    (warning,) = [w for w in find_source(tmp_path).warnings if "also has images" in w]
    assert "ant/, bee/" in warning


def test_train_as_source_is_warned_of_where_validation_lies_next_to_it(tmp_path):
    write(tmp_path, ["train/ant/1.jpg", "train/bee/2.jpg", "val/ant/3.jpg", "val/bee/4.jpg"])
    (warning,) = find_source(tmp_path / "train").warnings
    assert f"For all splits give {tmp_path}" in warning


@pytest.mark.parametrize("folder", ["", "train/"])
def test_images_next_to_the_class_folders_are_warned_of(tmp_path, folder):
    write(tmp_path, [f"{folder}{name}" for name in ("ant/1.jpg", "bee/2.jpg", "lost.jpg")])
    source = find_source(tmp_path)
    assert source.images == 2
    assert any("1 image outside its class folders" in warning for warning in source.warnings)


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        ([str(number) for number in range(12)], True),
        ([f"class{number}" for number in range(12)], True),
        ([str(number) for number in range(10)], False),
        (["-1", "0", "1"], False),
        ([f"{number:02}" for number in range(12)], False),
        (["n01440764", "n01443537", "n01484850"], False),
        (["ant", "b2", "c10"], False),
    ],
)
def test_numbered_classes_in_the_order_of_text_are_warned_of(tmp_path, names, warned):
    write(tmp_path, [f"{name}/{name}.jpg" for name in names])
    found = [w for w in find_source(tmp_path).warnings if "order of text" in w]
    assert len(found) == warned


@pytest.mark.parametrize(
    "names",
    [
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
        ("Cat", "cat"),
        ("polar bear", "polar_bear"),
        ("cat", "cat "),
        ("cat", "c\u200bat"),
    ],
)
def test_classes_whose_names_look_alike_are_warned_of(tmp_path, names):
    write(tmp_path, [f"{name}/{n}.jpg" for n, name in enumerate((*names, "zebra"))])
    (warning,) = find_source(tmp_path).warnings
    assert "look alike" in warning


def test_empty_files_are_all_named_before_encoding(tmp_path):
    write(tmp_path, [f"{c}/{c}{n}.jpg" for c in "ab" for n in range(300)])
    for n in (7, 211):
        (tmp_path / "a" / f"a{n}.jpg").write_bytes(b"")
    names = {path.rpartition("/")[2] for path, *_ in check_beginnings(find_source(tmp_path), 0.0)}
    assert names >= {"a7.jpg", "a211.jpg"}


@pytest.mark.parametrize("name", [b"tab\tname", b"line\nend", b"\xe9t\xe9", b"carriage\rreturn"])
def test_classes_that_no_text_file_can_name_are_refused(tmp_path, name):
    folder = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118
    os.mkdir(folder)  # noqa: PTH102
    with open(os.path.join(folder, b"1.jpg"), "wb") as file:  # noqa: PTH118, PTH123
        file.write(J)
    write(tmp_path, ["cat/2.jpg"])
    message = refused(tmp_path)
    assert "cannot be written to synsets.txt" in message
    assert "\n" not in message


def test_a_class_that_is_a_link_to_another_is_warned_of(tmp_path):
    write(tmp_path, ["ant/1.jpg", "bee/2.jpg"])
    (tmp_path / "emmet").symlink_to("ant")
    (warning,) = find_source(tmp_path).warnings
    assert "ant/ and emmet/, which are the same folder" in warning


@pytest.mark.parametrize("link", [False, True])
def test_a_validation_split_that_is_the_training_split_is_warned_of(tmp_path, link):
    paths = [f"train/{c}/{c}{n}.jpg" for c in ("ant", "bee") for n in range(5)]
    write(tmp_path, paths)
    if link:
        (tmp_path / "val").symlink_to("train")
    else:
        write(tmp_path, [path.replace("train", "val") for path in paths])
    warnings = find_source(tmp_path).warnings
    assert any("10 images of train and validation have the same name" in w for w in warnings)
    assert any("same folder" in warning for warning in warnings) == link


def test_splits_whose_files_have_the_same_names_but_other_sizes_are_no_copies(tmp_path):
    write(tmp_path, [f"train/{c}/{n}.jpg" for c in ("ant", "bee") for n in range(5)])
    write(tmp_path, [f"val/{c}/{n}.jpg" for c in ("ant", "bee") for n in range(5)], J + bytes(99))
    assert find_source(tmp_path).warnings == ()


@pytest.mark.parametrize("name", ["train", "zoo", "imagenet"])
def test_a_plain_tree_has_no_warning(tmp_path, rng, name):
    assert find_source(draw_classes(tmp_path / name, rng, each=2)).warnings == ()


def test_a_link_to_a_folder_above_ends_nothing(tmp_path):
    write(tmp_path, ["ant/1.jpg", "ant/more/2.jpg", "bee/3.jpg"])
    (tmp_path / "ant" / "more" / "up").symlink_to(tmp_path)
    (tmp_path / "ant" / "self").symlink_to("self")
    message = refused(tmp_path)
    assert "more/up is a link to a folder that contains it" in message
    assert "ant/self is a broken link" in message
    assert find_source(tmp_path, SKIP).images == 3


def test_a_class_folder_that_is_a_link_to_the_folder_around_it_is_no_class(tmp_path):
    write(tmp_path, ["ant/1.jpg", "bee/2.jpg"])
    (tmp_path / "loop").symlink_to(".")
    assert "loop is a link to a folder that contains it" in refused(tmp_path)
    assert [wnid for wnid, _ in find_source(tmp_path, SKIP).classes] == ["ant", "bee"]


STRAYS = {
    "README.md": b"# Ants\n",
    "classes.csv": b"name,label\n",
    "annotations.json": b"{}",
    "notes": b"no ending",
    "empty.txt": b"",
    "1.JPEG.part": J,
    "2.jpg.crdownload": J,
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "film.mp4": b"\0\0\0 moov",
    "packed.zip": b"PK\3\4",
    "shard.tar": b"a.jpg",
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_file_that_is_no_image_is_named_before_encoding_or_left_out(tmp_path, name):
    write(tmp_path, ["ant/a.jpg", "ant/b.jpg", "bee/c.jpg"])
    clean = find_source(tmp_path)
    (tmp_path / "ant" / name).write_bytes(STRAYS[name])
    assert f"{tmp_path}/ant/{name} is" in refused(tmp_path)
    assert "--on-error skip" in refused(tmp_path)
    source = find_source(tmp_path, SKIP)
    assert [stray.path for stray in source.left_out] == [f"{tmp_path}/ant/{name}"]
    assert source.identity() == clean.identity()


LITTER = (
    *("Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", ".DS_Store", "._a.jpg", "THUMBS.DB"),
    *("@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/._a.jpg", "a.jpg:Zone.Identifier"),
    *("$RECYCLE.BIN/x.jpg", "lost+found/x.jpg", ".ipynb_checkpoints/a-checkpoint.jpg"),
)


@pytest.mark.parametrize("name", LITTER)
def test_what_file_managers_leave_behind_is_not_there(tmp_path, name):
    write(tmp_path, ["ant/a.jpg", "bee/c.jpg"])
    clean = find_source(tmp_path)
    write(tmp_path, [f"ant/{name}"])
    assert find_source(tmp_path).identity() == clean.identity()


@pytest.mark.parametrize("ending", ["xml", "txt", "json", "JPEG.xml", "jpg.txt", "caption", "npy"])
def test_side_cars_of_images_are_left_alone(tmp_path, ending):
    write(tmp_path, ["ant/a.jpg", "ant/b.jpg", "bee/c.jpg", "ant/in/d.JPEG"])
    clean = find_source(tmp_path)
    for path in ("ant/a", "ant/b", "ant/in/d"):
        image = next((tmp_path / path).parent.glob(f"{path[-1]}.*"))
        name = f"{image.name}.{ending.split('.')[1]}" if "." in ending else f"{path[-1]}.{ending}"
        image.with_name(name).write_bytes(b"<annotation/>")
    source = find_source(tmp_path)
    assert source.identity() == clean.identity()
    assert source.left_out == ()


def test_an_image_without_an_ending_is_known_by_its_content(tmp_path):
    write(tmp_path, ["ant/1", "ant/2.photo", "bee/3.jpg"])
    assert keys(find_source(tmp_path)) == ["1", "2", "3"]


def test_what_is_no_regular_file_blocks_nothing(tmp_path):
    write(tmp_path, ["ant/a.jpg", "bee/c.jpg"])
    os.mkfifo(tmp_path / "ant" / "pipe.JPEG")
    (tmp_path / "ant" / "gone.JPEG").symlink_to("nowhere.JPEG")
    (tmp_path / "bee" / "null.JPEG").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "bee.jpg")
    with (tmp_path / "ant" / "sparse.JPEG").open("wb") as file:
        file.truncate(1 << 36)
    message = refused(tmp_path)
    assert "ant/sparse.JPEG has 68,719,476,736 bytes, more than any image" in message
    assert "ant/pipe.JPEG is not a regular file" in message
    assert "ant/gone.JPEG is a broken link (No such file or directory)" in message
    assert "bee/null.JPEG is not a regular file" in message
    assert "bee.jpg is not a regular file" in message
    source = find_source(tmp_path, SKIP)
    assert (source.images, len(source.left_out)) == (2, 5)


def test_a_class_whose_name_is_no_text_is_refused_also_where_keys_need_it(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, [f"{split}/ant/1.jpg", f"{split}/{os.fsdecode(b'd' + bytes([255]))}/1.jpg"])
    assert r"has a class 'd\\xff', which cannot be written to synsets.txt" in refused(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    write(tmp_path, ["ant/a.jpg", "bee/c.jpg", "bee/deep/d.jpg"])
    closed = [tmp_path / "bee/deep", tmp_path / "bee", tmp_path]
    try:
        for folder in closed:
            folder.chmod(0)
            if os.access(folder, os.R_OK):
                pytest.skip("this user may read everything")
            assert f"{folder}" in refused(tmp_path)
            assert "Permission denied" in refused(tmp_path)
            folder.chmod(0o755)
    finally:
        for folder in reversed(closed):
            folder.chmod(0o755)


def test_a_class_that_loses_all_its_files_to_skip_is_refused(tmp_path):
    write(tmp_path, ["ant/a.jpg", "bee/c.jpg", "cat/d.jpg"])
    (tmp_path / "bee/c.jpg").unlink()
    (tmp_path / "bee/c.jpg").symlink_to("nowhere")
    assert "bee has no files but 1 that are no images" in refused(tmp_path, SKIP)


def test_files_left_out_are_in_the_manifest_and_the_others_are_the_same_shards(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=8)
    clean = shard(root, tmp_path / "clean", SMALL, HERE)
    (root / "train/ant/gone.JPEG").symlink_to("nowhere")
    (root / "train/bee/README.md").write_bytes(b"# Bees\n")
    with pytest.raises(PrepareError, match="holds 2 files that cannot become a sample"):
        shard(root, tmp_path / "made", SMALL, HERE)
    assert not (tmp_path / "made").exists()
    skip = RunOptions(workers=1, on_error="skip")
    manifest = shard(root, tmp_path / "made", SMALL, skip)
    assert [(left.path, left.reason) for left in manifest.left_out] == [
        ("train/ant/gone.JPEG", "is a broken link (No such file or directory)"),
        ("train/bee/README.md", "is not an image: it begins with b'# Bees\\n'"),
    ]
    assert manifest.left_out[0].sha256 == ""
    assert len(manifest.left_out[1].sha256) == 64
    assert manifest.splits == clean.splits


def test_warnings_are_printed_and_kept_where_old_readers_take_them(tmp_path, rng, capsys):
    root = draw_classes(tmp_path / "zoo", rng, each=2)
    (root / "train/lost.jpg").write_bytes(jpeg(photograph(rng)))
    config = ShardConfig(size=32)
    made = shard(root, tmp_path / "made", config, HERE)
    (warning,) = made.warnings
    assert "1 image outside its class folders" in warning
    assert f"Warning: {warning}" in capsys.readouterr().err
    assert Manifest.load(tmp_path / "made").source["warnings"] == [warning]
    assert shard(root, tmp_path / "made", config, HERE) == made
    (root / "train/lost.jpg").unlink()
    assert "warnings" not in shard(root, tmp_path / "clean", config, HERE).source


def test_a_dry_run_shows_the_tree_as_it_is_understood(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=2)
    (root / "train/lost.jpg").write_bytes(jpeg(photograph(rng)))
    (root / "train/ant/README").write_bytes(b"Ants")
    skip = RunOptions(workers=1, on_error="skip")
    text = forecast(root, tmp_path / "out", ShardConfig(size=32), skip).text()
    assert "3 classes: 0 ant, 1 bee, 2 cat" in text
    assert f"train: 6 images in 1 shard of 6, from {root}/train" in text
    assert "left out: " in text
    assert "README is not an image" in text
    assert "Warning: " in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["zoo/out", "zoo/train/ant/out", "zoo", "zoo/x/../out"])
def test_a_target_inside_the_source_is_refused_the_first_time(tmp_path, rng, out):
    root = draw_classes(tmp_path / "zoo", rng, each=1)
    before = sorted(root.rglob("*"))
    with pytest.raises(PrepareError, match=r"lies in SOURCE"):
        shard(root, tmp_path / out, ShardConfig(size=32), HERE)
    assert sorted(root.rglob("*")) == before


def test_a_target_inside_the_source_through_a_link_is_refused(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=1)
    (tmp_path / "link").symlink_to(root / "train")
    with pytest.raises(PrepareError, match=r"lies in SOURCE"):
        shard(root, tmp_path / "link" / "out", ShardConfig(size=32), HERE)


@pytest.mark.parametrize("name", ["lost+found", ".DS_Store", ".Trash-1000", "@eaDir", "Thumbs.db"])
def test_a_target_that_a_mount_or_file_manager_has_marked_counts_as_empty(tmp_path, rng, name):
    root = draw_classes(tmp_path / "zoo", rng, each=1)
    (tmp_path / "made" / name).mkdir(parents=True)
    assert shard(root, tmp_path / "made", ShardConfig(size=32), HERE).splits["train"].samples == 3


@pytest.mark.parametrize("name", [".git", ".bashrc", "notes.txt", "train"])
def test_a_target_with_files_of_others_is_still_refused(tmp_path, rng, name):
    root = draw_classes(tmp_path / "zoo", rng, each=1)
    (tmp_path / "made" / name).mkdir(parents=True)
    with pytest.raises(PrepareError, match=r"is not empty"):
        shard(root, tmp_path / "made", ShardConfig(size=32), HERE)
