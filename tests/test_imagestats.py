import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import DataError
from pipelines.format import MANIFEST, Manifest, Shard, Split
from pipelines.imagestats import SHAPES, ImageStats, stats_paths

SHARD = Shard(name="train/ants-train-000000.tar", samples=2, bytes=10240, sha256="ab", md5="cd")
MANIFEST_OF_ONE = Manifest(
    name="ants",
    alexprep="0.1.0",
    codec={"name": "pillow-simd"},
    config={"size": 4},
    source={"kind": "folder"},
    classes=(("n1", "ant"), ("n2", "bee")),
    cls_width=4,
    size=4,
    largest_jpg=999,
    fixes={},
    left_out=(),
    splits={
        name: Split(shards=(dataclasses.replace(SHARD, name=f"{name}/a.tar"),), counts=(1, 1))
        for name in ("train", "validation")
    },
)


@pytest.fixture
def stats(rng):
    return ImageStats(
        split="train",
        images=2,
        height=3,
        width=4,
        mean_image_HWC=rng.uniform(0, 255, (3, 4, 3)),
        mean=rng.uniform(0, 255, 3),
        sd=rng.uniform(0, 99, 3),
        covariance=rng.uniform(0, 99, (3, 3)),
        eigenvalues=rng.uniform(0, 99, 3),
        stdevs=rng.uniform(0, 99, 3),
        eigenvectors=rng.uniform(-1, 1, (3, 3)),
        shards={"train/a.tar": "ab"},
    )


def test_statistics_read_back_are_the_statistics_written_to_the_last_bit(tmp_path, stats):
    stats.save(tmp_path)
    found = ImageStats.load(tmp_path, MANIFEST_OF_ONE)
    for field in dataclasses.fields(stats):
        wrote, read = getattr(stats, field.name), getattr(found, field.name)
        assert np.array_equal(wrote, read), field.name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mean.png",
        "stats.json",
        "stats.npz",
    ]


def test_the_numbers_in_the_json_are_those_of_the_arrays_and_name_their_unit(tmp_path, stats):
    stats.save(tmp_path)
    raw = json.loads((tmp_path / "stats.json").read_text())
    assert raw["stdevs_0_255"] == stats.stdevs.tolist()
    assert raw["eigenvalues_0_255_squared"] == stats.eigenvalues.tolist()
    assert raw["covariance_0_255_squared"] == stats.covariance.tolist()


def test_writing_twice_gives_the_same_bytes(tmp_path, stats):
    files = []
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
        stats.save(tmp_path / name)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_the_picture_of_the_mean_is_the_mean_rounded(tmp_path, stats):
    stats.save(tmp_path)
    with Image.open(tmp_path / "mean.png") as found:
        pixels = np.asarray(found)
    assert np.abs(pixels - stats.mean_image_HWC).max() <= 0.5


def test_statistics_of_another_split_replace_nothing(tmp_path, stats):
    stats.save(tmp_path)
    other = dataclasses.replace(stats, split="validation", shards={"validation/a.tar": "ab"})
    other.save(tmp_path)
    assert ImageStats.load(tmp_path, MANIFEST_OF_ONE).shards == stats.shards
    assert ImageStats.load(tmp_path, MANIFEST_OF_ONE, "validation").shards == other.shards


def test_statistics_of_other_shards_are_refused_with_the_command_that_renews_them(tmp_path, stats):
    dataclasses.replace(stats, shards={"train/a.tar": "ff"}).save(tmp_path)
    with pytest.raises(DataError, match=r"other shards.*`alexprep stats .*`") as caught:
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)
    assert str(tmp_path) in str(caught.value)


def test_a_data_set_without_statistics_is_answered_with_the_command(tmp_path):
    with pytest.raises(DataError, match=r"has no stats\.json\. Run `alexprep stats "):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)
    with pytest.raises(DataError, match=r"stats-validation\.json.*--split validation`"):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE, "validation")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 9}', '"stats"', "null"])
def test_a_json_that_is_none_of_ours_is_refused(tmp_path, stats, text):
    stats.save(tmp_path)
    (tmp_path / "stats.json").write_text(text)
    with pytest.raises(DataError, match=r"stats\.json .*alexprep stats"):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)


@pytest.mark.parametrize("field", ["images", "height", "npz_sha256"])
def test_a_json_that_misses_a_field_is_refused(tmp_path, stats, field):
    stats.save(tmp_path)
    raw = json.loads((tmp_path / "stats.json").read_text())
    del raw[field]
    (tmp_path / "stats.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"damaged .*{field}"):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)


def test_arrays_of_another_run_are_refused(tmp_path, stats):
    stats.save(tmp_path)
    np.savez(tmp_path / "stats.npz", **{name: getattr(stats, name) + 1 for name in SHAPES})
    with pytest.raises(DataError, match=r"stats\.npz is not the file it was written with"):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)
    (tmp_path / "stats.npz").unlink()
    with pytest.raises(DataError, match=r"has no stats\.npz"):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)


def test_arrays_of_another_shape_are_refused(tmp_path, stats):
    dataclasses.replace(stats, mean=np.zeros(4)).save(tmp_path)
    with pytest.raises(DataError, match=r"mean in stats\.npz is float64 \(4,\)"):
        ImageStats.load(tmp_path, MANIFEST_OF_ONE)


def test_the_files_of_a_split_lie_beside_the_manifest(tmp_path):
    assert stats_paths(tmp_path, "train").json.parent == (tmp_path / MANIFEST).parent
