import os

import numpy as np
import pytest
from archives import (
    WNIDS,
    draw_ilsvrc,
    shard_hashes,
    write_archives,
    write_extracted,
    write_kaggle,
    write_parquet,
    write_sorted,
)
from drawing import draw_classes, jpeg, photograph

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import (
    DEVKIT_TAR,
)
from alexprep.sources.listing import SourceOptions, stem_key
from alexprep.sources.synsets import ilsvrc2012

LAYOUTS = {
    "archives": write_archives,
    "extracted": write_extracted,
    "sorted": write_sorted,
    "kaggle": write_kaggle,
    "parquet": write_parquet,
}
SMALL = ShardConfig(size=48, shards={"train": 3, "validation": 2}, classes=WNIDS)
FOUR = SourceOptions(classes=WNIDS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_and_bytes_are_those_of_the_images_in_every_layout(tmp_path, rng, layout):
    train, held_out = draw_ilsvrc(rng)
    source = find_source(LAYOUTS[layout](tmp_path / "source", train, held_out), FOUR)
    expected = {
        "train": {name[:-5]: (data, name.split("_")[0]) for name, data in train.items()},
        "validation": {name[:-5]: images for name, images in held_out.items()},
    }
    assert [wnid for wnid, _ in source.classes] == list(WNIDS)
    for split, samples in source.splits.items():
        assert [key.decode() for key in samples.key] == sorted(expected[split])
        wnids = [source.classes[label][0] for label in samples.label]
        assert wnids == [expected[split][key.decode()][1] for key in samples.key]
        assert list(samples.items.read()) == [
            expected[split][key.decode()][0] for key in samples.key
        ]


def test_every_layout_of_the_same_images_becomes_the_same_shards(tmp_path, rng):
    images = draw_ilsvrc(rng)
    hashes = []
    for name, write in LAYOUTS.items():
        source = write(tmp_path / name, *images)
        shard(source, tmp_path / f"{name}-shards", SMALL, RunOptions(workers=1))
        hashes.append(shard_hashes(tmp_path / f"{name}-shards"))
    assert len(hashes[0]) == 5
    assert all(there == hashes[0] for there in hashes)


def test_names_of_the_classes_come_from_the_package(tmp_path, rng):
    source = find_source(write_archives(tmp_path / "a", *draw_ilsvrc(rng)), FOUR)
    assert source.classes[0] == ("n01440764", "tench, Tinca tinca")


def test_names_of_other_classes_come_from_synsets_txt_or_their_folders(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=1)
    (root / "synsets.txt").write_text("ant\tgarden ant, Lasius niger\nbee honey bee\n\n")
    assert find_source(root).classes == (
        ("ant", "garden ant, Lasius niger"),
        ("bee", "honey bee"),
        ("cat", "cat"),
    )


def test_the_thousand_classes_of_ilsvrc_make_imagenet1k(tmp_path):
    for synset in ilsvrc2012():
        folder = tmp_path / "pictures" / synset.wnid
        folder.mkdir(parents=True)
        (folder / f"{synset.wnid}_1.JPEG").touch()
    source = find_source(tmp_path / "pictures")
    assert (source.name, list(source.splits), source.images) == ("imagenet1k", ["train"], 1000)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), {"train", "validation"}),
        (("train", "validation", "test"), {"train", "validation", "test"}),
        (("train", "valid"), {"train", "validation"}),
    ],
)
def test_split_folders_are_known_by_their_usual_names(tmp_path, rng, folders, splits):
    assert set(find_source(draw_classes(tmp_path, rng, splits=folders, each=1)).splits) == splits


def test_class_folders_without_splits_are_for_training(tmp_path, rng):
    root = draw_classes(tmp_path, rng, splits=("all",), each=2) / "all"
    source = find_source(root)
    assert source.splits["train"].label.tolist() == [0, 0, 1, 1, 2, 2]


def test_files_that_share_a_name_are_told_apart_by_split_and_class(tmp_path, rng):
    data = jpeg(photograph(rng))
    for folder in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_bytes(data)
    source = find_source(tmp_path)
    assert source.splits["train"].key.tolist() == [b"train_cat_1", b"train_dog_1"]
    assert source.splits["validation"].key.tolist() == [b"validation_cat_1", b"validation_dog_1"]


def test_two_files_that_would_be_one_sample_are_refused_with_both_paths(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=1)
    (root / "train/ant/ant_train_0.png").write_bytes(b"")
    with pytest.raises(
        PrepareError, match=r"ant_train_0\.(png|JPEG) and .*ant_train_0\.(png|JPEG)"
    ):
        find_source(root)


def test_hidden_files_and_litter_are_not_images(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=2)
    for name in (".DS_Store", "._ant_train_0.JPEG", "Thumbs.db"):
        (root / "train/ant" / name).write_bytes(b"litter")
    assert find_source(root).images == 12


def test_folders_within_a_class_folder_are_looked_through(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=2)
    (root / "train/ant/images").mkdir()
    (root / "train/ant/ant_train_0.JPEG").rename(root / "train/ant/images/ant_train_0.JPEG")
    assert b"ant_train_0" in find_source(root).splits["train"].key


@pytest.mark.parametrize(
    ("stem", "key"),
    [
        (b"n01440764_10026", b"n01440764_10026"),
        (b"a.b", b"a_b-2e7336dc8eba"),
        (b"two words", b"two_words-a03f1d611645"),
        ("größe".encode(), b"gr____e-d353a2671b67"),
        (b"x" * 95, b"x" * 95),
        (b"x" * 96, b"x" * 82 + b"-d47f0876dd69"),
        (b"", b"-e3b0c44298fc"),
    ],
)
def test_keys_are_ascii_without_dots_and_short_enough_for_a_tar(stem, key):
    # Other people's lists (ReaL labels, splits) hold on to keys: a change here renames samples.
    assert stem_key(stem) == key
    assert len(key) <= 95


def test_different_stems_that_look_alike_once_cleaned_stay_different():
    assert len({stem_key(stem) for stem in (b"a b", b"a.b", b"a_b", "aßb".encode())}) == 4


def test_an_empty_class_is_refused_by_its_folder(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=1)
    (root / "train/dog").mkdir()
    with pytest.raises(PrepareError, match=r"train/dog has no files"):
        find_source(root)


def test_a_validation_class_that_training_lacks_is_refused(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=1)
    (root / "val/dog").mkdir()
    with pytest.raises(PrepareError, match=r"first is 'dog'"):
        find_source(root)


@pytest.mark.parametrize("files", [[], ["notes.txt"]])
def test_a_folder_of_nothing_is_answered_with_what_is_looked_for(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(PrepareError, match=r"no class folders. Looked for: ILSVRC2012_img_train"):
        find_source(tmp_path)


def test_a_source_that_is_missing_or_a_file_is_refused(tmp_path):
    with pytest.raises(PrepareError, match=r"nowhere does not exist"):
        find_source(tmp_path / "nowhere")
    (tmp_path / "file.tar").touch()
    with pytest.raises(PrepareError, match=r"is a file; give the folder"):
        find_source(tmp_path / "file.tar")


def test_both_val_and_validation_are_too_many(tmp_path, rng):
    root = draw_classes(tmp_path, rng, splits=("train", "val", "validation"), each=1)
    with pytest.raises(PrepareError, match="has both"):
        find_source(root)


def test_validation_images_without_a_word_on_their_classes_are_refused(tmp_path, rng):
    root = write_archives(tmp_path / "a", *draw_ilsvrc(rng))
    (root / DEVKIT_TAR).unlink()
    with pytest.raises(PrepareError, match=rf"Put {DEVKIT_TAR} next to them"):
        find_source(root)


def test_a_file_that_cannot_be_read_is_named(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=1)
    (root / "train/ant/gone.JPEG").write_bytes(b"x")
    source = find_source(root)
    (root / "train/ant/gone.JPEG").unlink()
    with pytest.raises(PrepareError, match=r"train/ant/gone.JPEG: No such file"):
        list(source.splits["train"].items.read())


def test_file_names_that_are_no_utf8_are_read(tmp_path, rng):
    root = draw_classes(tmp_path, rng, each=1)
    odd = os.path.join(os.fsencode(root / "train/ant"), b"caf\xe9.JPEG")  # noqa: PTH118
    data = jpeg(photograph(rng))
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write(data)
    samples = find_source(root).splits["train"]
    place = next(n for n, key in enumerate(samples.key) if key.startswith(b"caf_"))
    assert list(samples.items.select(np.array([place])).read()) == [data]
