import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.format import (
    MANIFEST,
    Left,
    Manifest,
    Member,
    Sample,
    Shard,
    Split,
    cls_width,
    format_index,
    padded,
    parse_index,
    shard_name,
)

SHARD = Shard(name="train/ants-train-000000.tar", samples=2, bytes=10240, sha256="ab", md5="cd")
MANY = Manifest(
    name="ants",
    alexprep="0.1.0",
    codec={"name": "pillow-simd"},
    config={"size": 256},
    source={"kind": "folder"},
    classes=(("n1", "ant"), ("n2", "bee")),
    cls_width=4,
    size=256,
    largest_jpg=999,
    fixes={"gray": 1},
    left_out=(Left(path="x.JPEG", sha256="ef", reason="truncated"),),
    splits={"train": Split(shards=(SHARD,), counts=(1, 1))},
)

members = st.builds(
    Member, st.integers(1, 10**12).map(lambda block: block * 512), st.integers(0, 2**40)
)
keys = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=90)
samples = st.lists(st.builds(Sample, keys, members, members, members), max_size=20)


@given(samples)
def test_an_index_read_back_is_the_index_written(listed):
    assert parse_index(format_index(listed).encode(), Path("x.idx")) == listed


def test_an_index_looks_as_dali_wants_it():
    # DALI tools/wds2idx.py: a version line with the count, then "ext offset size name" in a row.
    one = Sample("n1_7", Member(512, 100), Member(1536, 4), Member(2560, 30))
    assert format_index([one]) == (
        "v1.2 1\njpg 512 100 n1_7.jpg cls 1536 4 n1_7.cls json 2560 30 n1_7.json\n"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "begins with ''"),
        ("v1.1 0\n", "begins with 'v1.1 0'"),
        ("v1.2 2\njpg 1 2 a.jpg cls 3 4 a.cls json 5 6 a.json\n", "has 1 lines; expected .v1.2 1."),
        ("v1.2 1\ncls 1 2 a.cls jpg 3 4 a.jpg json 5 6 a.json\n", "line 2: expected jpg"),
        (
            "v1.2 1\njpg x 2 a.jpg cls 3 4 a.cls json 5 6 a.json\n",
            "line 2: .* got .jpg x 2 a",
        ),
    ],
)
def test_a_damaged_index_is_refused_with_its_line(tmp_path, text, complaint):
    with pytest.raises(DataError, match=complaint):
        parse_index(text.encode(), tmp_path / "x.idx")


def test_a_manifest_read_back_is_the_manifest_written(tmp_path):
    (tmp_path / MANIFEST).write_text(MANY.to_json())
    assert Manifest.load(tmp_path) == MANY


def test_a_name_that_is_not_utf_8_is_read_back(tmp_path):
    name = b"caf\xe9.JPEG".decode("utf-8", "surrogateescape")
    manifest = dataclasses.replace(MANY, left_out=(Left(path=name, sha256="", reason="cut"),))
    (tmp_path / MANIFEST).write_text(manifest.to_json())
    assert Manifest.load(tmp_path) == manifest


def test_another_version_is_refused_with_what_to_run(tmp_path):
    (tmp_path / MANIFEST).write_text(dataclasses.replace(MANY, version=99).to_json())
    with pytest.raises(DataError, match=r"version 99; this alexprep reads 1.*alexprep shard"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "more": 2}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


def test_a_manifest_whose_entries_miss_a_field_is_refused(tmp_path):
    raw = json.loads(MANY.to_json())
    del raw["splits"]["train"]["shards"][0]["md5"]
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DataError, match="md5"):
        Manifest.load(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_data_set(tmp_path):
    with pytest.raises(DataError, match="not a finished data set"):
        Manifest.load(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        Manifest.load(tmp_path / "absent")


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(DataError, match=r"no split 'test'; it has train"):
        MANY.split("test", tmp_path)


@given(st.integers(0, 2**40))
def test_padding_reaches_the_next_block_and_no_further(size):
    assert padded(size) % 512 == 0
    assert 0 <= padded(size) - size < 512


def test_labels_are_four_digits_up_to_9999_classes_and_eight_above():
    assert [cls_width(classes) for classes in (1, 1000, 9_999, 10_184, 21_841)] == [4, 4, 4, 8, 8]


def test_an_index_lies_beside_no_tar():
    name = shard_name("imagenet1k", "validation", 79)
    assert name == "validation/imagenet1k-validation-000079.tar"
    shard = dataclasses.replace(SHARD, name=name)
    assert shard.index == "index/imagenet1k-validation-000079.idx"


@pytest.mark.parametrize(
    "name",
    [
        "../payload",
        "train/../ants-train-000000.tar",
        "/etc/ants-train-000000.tar",
        "validation/ants-validation-000000.tar",
        "train/ants-validation-000000.tar",
        "train/x; touch PWNED; echo -train-000000.tar",
        "train/$(touch PWNED)-train-000000.tar",
        "train/ants-train-0.tar",
        "train/ants-train-000000.tar\n",
        "",
    ],
)
def test_a_shard_that_is_called_anything_else_is_refused(tmp_path, name):
    raw = json.loads(MANY.to_json())
    raw["splits"]["train"]["shards"][0]["name"] = name
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"manifest\.json is not a manifest.*a shard of 'train'"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"size": "256"}, "size"),
        ({"cls_width": None}, "cls_width"),
        ({"classes": [["n1"]]}, "classes"),
        ({"splits": []}, "splits"),
        ({"splits": {"train": {"shards": [{}], "counts": []}}}, "shards"),
        ({"left_out": [{"path": 1, "sha256": "", "reason": ""}]}, "left_out"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, change, field):
    (tmp_path / MANIFEST).write_text(json.dumps(json.loads(MANY.to_json()) | change))
    with pytest.raises(DataError, match=rf"manifest\.json is not a manifest.*{field}"):
        Manifest.load(tmp_path)


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"manifest\.json is not JSON"):
        Manifest.load(tmp_path)
