"""A validation split held out of the training images: stratified, by seed and keys."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from drawing import draw_classes
from hypothesis import given
from hypothesis import strategies as st
from shard_sets import HERE, all_samples

from alexprep.cli import cli
from alexprep.dataset.shard import shard
from alexprep.dataset.shard_plan import ShardConfig
from alexprep.dataset.splits import held_out, plan_source, stratified
from alexprep.dataset.verify import verify
from alexprep.errors import PrepareError
from alexprep.sources.find import find_source
from pipelines.format import Manifest

J = b"\xff\xd8 the first bytes of a JPEG"


def classes(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for n in range(count):
            (root / name / f"{name}{n:03}.jpg").write_bytes(J + b"%d" % n)
    return root


def split_keys(source):
    return {split: set(samples.key.tolist()) for split, samples in source.splits.items()}


def test_the_share_is_that_of_every_class(tmp_path):
    source = find_source(classes(tmp_path, {"ant": 100, "bee": 50, "cat": 10}))
    split = held_out(source, "10%", 0)
    assert np.bincount(split.splits["validation"].label).tolist() == [10, 5, 1]
    assert np.bincount(split.splits["train"].label).tolist() == [90, 45, 9]
    keys = split_keys(split)
    assert not keys["train"] & keys["validation"]
    assert keys["train"] | keys["validation"] == split_keys(source)["train"]
    for samples in split.splits.values():
        assert samples.key.tolist() == sorted(samples.key.tolist())
        names = [source.classes[label][0].encode() for label in samples.label]
        assert [key[:3] for key in samples.key.tolist()] == names


def test_those_with_the_smallest_hash_of_seed_and_key_are_held_out(tmp_path):
    source = find_source(classes(tmp_path, {"ant": 20, "bee": 20}))
    for seed in (0, 7):
        expected = set()
        for name in (b"ant", b"bee"):
            keys = [key for key in source.splits["train"].key.tolist() if key.startswith(name)]
            keys.sort(key=lambda key: hashlib.sha256(b"%d/validation/%b" % (seed, key)).digest())
            expected |= set(keys[:5])
        assert split_keys(held_out(source, 10, seed))["validation"] == expected


def test_more_images_of_another_class_change_nothing_for_a_class(tmp_path):
    few = find_source(classes(tmp_path / "few", {"ant": 30, "bee": 10}))
    more = find_source(classes(tmp_path / "more", {"ant": 30, "bee": 50}))
    ants = [
        {key for key in split_keys(held_out(source, "10%", 0))["validation"] if key < b"b"}
        for source in (few, more)
    ]
    assert ants[0] == ants[1]
    assert len(ants[0]) == 3


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.data())
def test_a_number_is_met_exactly_and_no_class_is_emptied(counts, data):
    counts = np.array(counts)
    most = int((counts - 1).sum())
    if not most:
        return
    number = data.draw(st.integers(1, most))
    quota = stratified(counts, number)
    assert quota.sum() == number
    assert (quota >= 0).all()
    assert (quota < counts).all()
    if number >= (counts > 1).sum():
        assert (quota[counts > 1] > 0).all()


@pytest.mark.parametrize(
    ("validation", "message"),
    [(161 - 3, "at most can be held out"), ("99.9%", "157 at most can be held out")],
)
def test_more_than_there_is_to_hold_out_is_refused(tmp_path, validation, message):
    source = find_source(classes(tmp_path, {"ant": 100, "bee": 50, "cat": 10}))
    with pytest.raises(PrepareError, match=message):
        held_out(source, validation, 0)


def test_a_source_with_a_validation_split_keeps_it(source):
    with pytest.raises(PrepareError, match="for sources with training images and no validation"):
        plan_source(source, ShardConfig(validation="10%"))


@pytest.mark.parametrize("validation", ["0%", "100%", "ten", "-5", "0", 0, "10 %%", "nan%", ""])
def test_a_share_that_is_none_is_refused(validation):
    with pytest.raises(ValueError, match="validation must be a share such as 10%"):
        ShardConfig(validation=validation)


def test_a_held_out_split_is_recorded_and_rebuilt(tmp_path, rng):
    root = draw_classes(tmp_path / "zoo", rng, splits=("all",), each=10) / "all"
    result = CliRunner().invoke(
        cli,
        ["shard", str(root), str(tmp_path / "made"), *["--size", "32", "--validation", "20%"]],
    )
    assert result.exit_code == 0, result.output
    manifest = Manifest.load(tmp_path / "made")
    assert manifest.config["validation"] == "20%"
    assert manifest.splits["validation"].counts == (2, 2, 2)
    assert manifest.splits["train"].counts == (8, 8, 8)
    labels = Counter(label for _, _, label, _ in all_samples(tmp_path / "made", "validation"))
    assert labels == {b"0000": 2, b"0001": 2, b"0002": 2}
    verified = verify(tmp_path / "made", workers=1, rebuild=2, source=root)
    assert verified.faults == ()
    assert len(verified.rebuilt) == 2
    with pytest.raises(PrepareError, match=r"config\.validation '20%' where this run has None"):
        shard(root, tmp_path / "made", ShardConfig(size=32), HERE)


def test_a_configuration_without_new_fields_is_recorded_as_before():
    assert set(ShardConfig().to_dict()) == {
        *("size", "quality", "shards", "seed", "apply_orientation"),
    }
