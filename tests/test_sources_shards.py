"""WebDataset tars as a source: those of others, in their layouts, and a data set of ours."""

import json

import pytest
from archives import WNIDS, draw_ilsvrc, tar_bytes, write_sorted
from drawing import draw_classes
from shard_sets import HERE, SMALL, all_samples

from alexprep.dataset.shard import ShardConfig, shard
from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from alexprep.sources.ilsvrc import TRAIN_TAR
from alexprep.sources.listing import SourceOptions
from alexprep.sources.synsets import ilsvrc2012
from alexprep.sources.tars import kind_of_tar
from pipelines.errors import DataError

J = b"\xff\xd8\xff\xe0 the first bytes of a JPEG"


def write_shards(folder, names, samples):
    """Tars of these names under `folder`, over which the samples {key.ending: bytes} are spread."""
    for number, name in enumerate(names):
        part = {
            k: v
            for n, (key, files) in enumerate(samples.items())
            if n % len(names) == number
            for k, v in ((f"{key}.{ending}", data) for ending, data in files.items())
        }
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(tar_bytes(part))
    return folder


def of_labels(labels, image="jpg", label="cls", key="s{}"):
    return {
        key.format(n): {image: J + b"%d" % n, label: str(value).encode()}
        for n, value in enumerate(labels)
    }


def labelled(source, split="train"):
    samples = source.splits[split]
    return {
        key.decode(): source.classes[label][0]
        for key, label in zip(samples.key, samples.label, strict=True)
    }


def refused(path):
    with pytest.raises(PrepareError) as caught:
        find_source(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LAYOUTS = {
    "timm/imagenet-1k-wds": ["imagenet1k-{}-0000.tar", "imagenet1k-{}-0001.tar"],
    "split folders": ["{}/000000.tar", "{}/000001.tar"],
    "split first": ["{}-000000.tar", "{}-000001.tar"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_of_others_are_read_in_their_layouts(tmp_path, layout):
    for split, labels in (("train", [0, 2, 1, 0]), ("validation", [1, 2])):
        names = [name.format(split) for name in LAYOUTS[layout]]
        write_shards(tmp_path, names, of_labels(labels, key=f"{split}{{}}"))
    source = find_source(tmp_path)
    assert source.kind == "shards"
    assert labelled(source) == {"train0": "0", "train1": "2", "train2": "1", "train3": "0"}
    assert labelled(source, "validation") == {"validation0": "1", "validation1": "2"}
    assert list(source.splits["train"].items.read()) == [J + b"%d" % n for n in range(4)]


@pytest.mark.parametrize("image", ["jpg", "jpeg", "JPEG", "png", "webp"])
@pytest.mark.parametrize(
    ("ending", "label"),
    [
        *(("cls", b"{}"), ("cls", b"{}\n"), ("txt", b"{}"), ("cls", b"0{}")),
        *(("json", b'{{"label": {}}}'), ("json", b'{{"class_id": {}, "width": 5}}')),
    ],
)
def test_labels_are_read_from_what_stands_next_to_the_image(tmp_path, image, ending, label):
    samples = {f"s{n}": {image: J, ending: label.decode().format(n % 2).encode()} for n in range(4)}
    source = find_source(write_shards(tmp_path, ["a.tar"], samples))
    assert source.splits["train"].label.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("ending", "label"), [("txt", "{}"), ("json", '{{"wnid": "{}"}}')])
def test_labels_that_are_names_become_classes(tmp_path, ending, label):
    samples = {
        f"s{n}": {"jpg": J, ending: label.format(wnid).encode()} for n, wnid in enumerate(WNIDS)
    }
    source = find_source(write_shards(tmp_path, ["a.tar"], samples))
    assert labelled(source) == {f"s{n}": wnid for n, wnid in enumerate(WNIDS)}
    assert source.classes[0] == ("n01440764", "tench, Tinca tinca")


def test_the_label_of_a_cls_counts_before_what_json_says(tmp_path):
    samples = {
        f"s{n}": {"jpg": J, "cls": b"%d" % n, "json": b'{"label": 7, "text": "x"}', "txt": b"dog"}
        for n in range(3)
    }
    source = find_source(write_shards(tmp_path, ["a.tar"], samples))
    assert source.splits["train"].label.tolist() == [0, 1, 2]


def test_numbers_get_the_wnids_that_the_keys_begin_with(tmp_path):
    samples = {
        f"{wnid}_{n}": {"jpg": J, "cls": b"%d" % label}
        for label, wnid in enumerate(WNIDS)
        for n in range(2)
    }
    source = find_source(write_shards(tmp_path, ["train-0.tar"], samples))
    assert [wnid for wnid, _ in source.classes] == list(WNIDS)
    assert source.warnings == ()


def test_numbers_of_ilsvrc_keep_its_thousand_labels(tmp_path):
    table = ilsvrc2012()
    samples = {f"{table[label].wnid}_1": {"jpg": J, "cls": b"%d" % label} for label in (0, 7, 500)}
    source = find_source(write_shards(tmp_path, ["imagenet1k-train-0000.tar"], samples))
    assert len(source.classes) == 1000
    assert sorted(source.splits["train"].label.tolist()) == [0, 7, 500]
    (warning,) = source.warnings
    assert "997 have no training images" in warning


def test_numbers_from_one_that_nothing_names_are_refused(tmp_path):
    assert "but no train image of label 0" in refused(
        write_shards(tmp_path, ["a.tar"], of_labels([1, 2, 3]))
    )


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"jpg": J}, "has no label"),
        ({"jpg": J, "cls": b""}, "has no label"),
        ({"jpg": J, "json": b"[1]"}, "has no label"),
        ({"cls": b"0"}, "has 0 images"),
        ({"jpg": J, "png": J, "cls": b"0"}, "has 2 images"),
        ({"jpg": J, "txt": b"dog"}, "names and numbers as labels"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(tmp_path, sample, message):
    samples = of_labels([0, 1]) | {"odd": sample}
    assert message in refused(write_shards(tmp_path, ["a.tar"], samples))


def test_a_split_without_labels_is_left_out(tmp_path):
    write_shards(tmp_path, ["x-train-0.tar"], of_labels([0, 1]))
    write_shards(tmp_path, ["x-test-0.tar"], of_labels([-1, -1], key="t{}"))
    assert list(find_source(tmp_path).splits) == ["train"]


def test_many_tars_are_listed_in_their_order(tmp_path):
    labels = [n % 3 for n in range(60)]
    write_shards(tmp_path, [f"s-{n:03}.tar" for n in range(20)], of_labels(labels, key="k{:03}"))
    source = find_source(tmp_path)
    assert source.splits["train"].label.tolist() == labels


def test_keys_that_come_twice_are_refused(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shards(tmp_path, [name], of_labels([0, 0]))
    assert "would both be sample" in refused(tmp_path)


def test_a_finished_data_set_is_a_source_for_another(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, each=8)
    (root / "synsets.txt").write_text("ant\tgarden ant\n")
    first = shard(root, tmp_path / "first", SMALL, HERE)
    config = ShardConfig(size=32, quality=80, shards=1, classes=("cat", "ant"))
    second = shard(tmp_path / "first", tmp_path / "second", config, HERE)
    assert second.classes == (("cat", "cat"), ("ant", "garden ant"))
    (warning,) = second.warnings
    assert "is a finished data set: its images are 48x48 pixels" in warning
    for split in first.splits:
        before = {key: about["wnid"] for key, _, _, about in all_samples(tmp_path / "first", split)}
        rows = all_samples(tmp_path / "second", split)
        assert {key: about["wnid"] for key, _, _, about in rows} == {
            key: wnid for key, wnid in before.items() if wnid != "bee"
        }
        assert {(about["width"], about["height"]) for *_, about in rows} == {(48, 48)}
    assert json.loads((tmp_path / "second/manifest.json").read_text())["config"]["classes"] == [
        "cat",
        "ant",
    ]


def test_a_data_set_of_ilsvrc_as_source_keeps_its_classes(tmp_path, rng):
    root = write_sorted(tmp_path / "a", *draw_ilsvrc(rng, each=2, validation=4))
    shard(root, tmp_path / "made", ShardConfig(size=48), HERE)
    source = find_source(tmp_path / "made", SourceOptions(classes=WNIDS))
    assert [wnid for wnid, _ in source.classes] == list(WNIDS)
    assert source.splits["train"].key.tolist() == find_source(root).splits["train"].key.tolist()


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"n01440764.tar": b"", "._n01440764.tar": b""}, "classes"),
        ({"a.jpg": J, "a.cls": b"0"}, "shard"),
        ({"n1_1.JPEG": J, "n1_2.JPEG": J}, "images"),
        ({"ant/1.JPEG": J, "bee/2.JPEG": J}, "tree"),
    ],
)
def test_what_a_tar_holds_is_seen_from_its_names(tmp_path, files, kind):
    (tmp_path / TRAIN_TAR).write_bytes(tar_bytes(files))
    assert kind_of_tar(tmp_path / TRAIN_TAR) == kind


@pytest.mark.parametrize(("label", "shown"), [("1.0", "1.0"), ("0.5", "0.5"), ("-2.25", "-2.25")])
@pytest.mark.parametrize("ending", ["cls", "json"])
def test_labels_with_fractions_are_refused(tmp_path, ending, label, shown):
    content = b'{"label": %b}' % label.encode() if ending == "json" else label.encode()
    samples = of_labels([0, 1]) | {"odd": {"jpg": J, ending: content}}
    message = refused(write_shards(tmp_path, ["a.tar"], samples))
    assert f"the sample of odd.jpg has the label {shown}" in message


@pytest.mark.parametrize("label", ["99999999999999999999", "4000000000"])
def test_a_label_of_billions_is_refused_without_a_list_of_so_many(tmp_path, label):
    write_shards(tmp_path, ["a.tar"], of_labels([0, 1, label]))
    assert "but no train image of label 2" in refused(tmp_path)


def test_labels_are_read_with_a_byte_order_mark_and_endings_in_any_case(tmp_path):
    samples = {f"s{n}": {"JPG": J, "CLS": b"\xef\xbb\xbf%d\r\n" % n} for n in range(3)}
    source = find_source(write_shards(tmp_path, ["a.tar"], samples))
    assert source.splits["train"].label.tolist() == [0, 1, 2]


def test_captions_in_place_of_classes_are_warned_of(tmp_path):
    texts = ("a dog on grass", "two cats", "a red car")
    samples = {f"s{n}": {"jpg": J, "txt": text.encode()} for n, text in enumerate(texts)}
    (warning,) = find_source(write_shards(tmp_path, ["a.tar"], samples)).warnings
    assert "3 classes for 3 train images, such as 'a dog on grass': are these captions?" in warning


@pytest.fixture
def finished(tmp_path, rng):
    """A data set of ours of 24 images."""
    shard(draw_classes(tmp_path / "zoo", rng, each=8), tmp_path / "first", SMALL, HERE)
    return tmp_path / "first"


def test_a_finished_data_set_is_listed_by_its_indexes_as_by_its_headers(finished):
    indexed = find_source(finished)
    for path in finished.glob("index/*.idx"):
        path.unlink()
    assert find_source(finished).identity() == indexed.identity()
    (finished / "manifest.json").unlink()
    foreign = find_source(finished)
    for split, samples in indexed.splits.items():
        assert foreign.splits[split].key.tolist() == samples.key.tolist()
        assert foreign.splits[split].label.tolist() == samples.label.tolist()
        assert list(foreign.splits[split].items.read()) == list(samples.items.read())


def test_a_finished_data_set_that_is_not_whole_is_refused(finished):
    index = next(finished.glob("index/*train*.idx"))
    text = index.read_text()
    index.write_text(text.replace("jpg 512 ", "jpg 1024 "))
    with pytest.raises(DataError, match=r"line 2: .* is not the next sample of"):
        find_source(finished)
    index.write_text(text)
    next(finished.glob("train/*.tar")).unlink()
    assert "is missing: " in refused(finished)


def test_a_manifest_of_another_program_does_not_matter(tmp_path):
    write_shards(tmp_path, ["a.tar"], of_labels([0, 1, 2]))
    (tmp_path / "manifest.json").write_text('{"version": 3, "files": ["a.tar"]}')
    assert find_source(tmp_path).splits["train"].label.tolist() == [0, 1, 2]
