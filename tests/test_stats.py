import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from alexprep.cli import cli
from alexprep.dataset.decode import store_planes
from alexprep.dataset.moments import Moments
from alexprep.dataset.stats import PartialSums, compute_stats
from alexprep.dataset.stats_report import format_report
from alexprep.dataset.store import LocalStore
from alexprep.errors import PrepareError
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats
from tests.drawing import jpeg, photograph
from tests.tarsets import Item, drawn_items, write_dataset

SIZE = 40
FILES = ("stats.json", "stats.npz", "mean.png")


@pytest.fixture(scope="module")
def items():
    return drawn_items(np.random.default_rng(5), 30, size=SIZE)


@pytest.fixture
def root(tmp_path, items):
    splits = {"train": items[:21], "validation": items[21:]}
    return write_dataset(tmp_path / "set", splits, size=SIZE, shards=4)


def written(root):
    return {name: (root / name).read_bytes() for name in FILES}


def decoded(items):
    """The pixels of the items by Pillow, (N, H, W, 3), float64."""
    return np.stack([np.asarray(Image.open(io.BytesIO(item.jpg))) for item in items]).astype(float)


def shard_paths(root, split="train"):
    return sorted((root / split).iterdir())


def assert_refused_and_nothing_written(root, match):
    before = sorted(root.rglob("*"))
    with pytest.raises(DataError, match=match) as caught:
        compute_stats(root, workers=1)
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_statistics_equal_a_float64_reference_over_the_decoded_pixels(root, items):
    stats = compute_stats(root, workers=1)
    pixels = decoded(items[:21])
    np.testing.assert_allclose(stats.mean_image_HWC, pixels.mean(axis=0), rtol=1e-12)
    flat = pixels.reshape(-1, 3)
    np.testing.assert_allclose(stats.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.sd, flat.std(axis=0), rtol=1e-12)
    covariance = np.cov(flat.T, bias=True)
    np.testing.assert_allclose(stats.covariance, covariance, rtol=1e-12)
    np.testing.assert_allclose(stats.eigenvalues, np.linalg.eigvalsh(covariance)[::-1], rtol=1e-12)
    for value, axis in zip(stats.eigenvalues, stats.eigenvectors.T, strict=True):
        np.testing.assert_allclose(covariance @ axis, value * axis, rtol=1e-9)
    assert (stats.images, stats.height, stats.width) == (21, SIZE, SIZE)


def test_the_files_are_what_the_loader_reads_and_only_checksums_are_added(root):
    before = {path.name for path in root.iterdir()}
    stats = compute_stats(root, workers=1)
    found = ImageStats.load(root, Manifest.load(root))
    assert found.eigenvectors.tobytes() == stats.eigenvectors.tobytes()
    assert {path.name for path in root.iterdir()} == before | {*FILES, "SHA256SUMS"}


def test_one_worker_and_three_write_the_same_bytes(root):
    compute_stats(root, workers=1)
    alone = written(root)
    compute_stats(root, workers=3)
    assert written(root) == alone


def test_the_same_images_in_other_shards_give_the_same_numbers(root, items, tmp_path):
    other = write_dataset(tmp_path / "other", {"train": items[20::-1]}, size=SIZE, shards=1)
    first, second = compute_stats(root, workers=1), compute_stats(other, workers=1)
    assert first.mean_image_HWC.tobytes() == second.mean_image_HWC.tobytes()
    assert first.covariance.tobytes() == second.covariance.tobytes()


def test_another_split_is_measured_beside_the_first(root, items):
    compute_stats(root, workers=1)
    train = written(root)
    stats = compute_stats(root, "validation", workers=1)
    assert written(root) == train
    np.testing.assert_allclose(stats.mean_image_HWC, decoded(items[21:]).mean(axis=0), rtol=1e-12)


def test_a_run_goes_on_from_the_shards_that_an_interrupted_one_finished(root):
    compute_stats(root, workers=1)
    whole = written(root)
    manifest = Manifest.load(root)
    shards = manifest.split("train", root).shards
    # Sums that cannot be of the first two shards show that these are not read again.
    kept = PartialSums(root / ".stats-train.sums", Moments.none(SIZE, SIZE))
    kept.restore({})
    claimed = 10
    planted = Moments(claimed, np.full((SIZE, SIZE, 3), 7 * claimed, np.uint64), ((0,) * 3,) * 3)
    for shard in shards[:2]:
        kept.add(shard, planted)
    resumed = compute_stats(root, workers=1)
    assert resumed.images == 2 * claimed + sum(shard.samples for shard in shards[2:])
    assert not kept.path.exists()
    compute_stats(root, workers=1)
    assert written(root) == whole


@pytest.mark.parametrize("damage", ["other shards", "other size", "no file of ours"])
def test_sums_kept_of_something_else_are_not_used(root, damage):
    compute_stats(root, workers=1)
    whole = written(root)
    shard = Manifest.load(root).split("train", root).shards[0]
    size = SIZE + (damage == "other size")
    kept = PartialSums(root / ".stats-train.sums", Moments.none(size, size))
    kept.add(shard, Moments.none(size, size))
    if damage == "other shards":
        kept.shards = {"train/gone.tar": "ff"}
        kept.add(shard, Moments.none(size, size))
    if damage == "no file of ours":
        kept.path.write_bytes(kept.path.read_bytes()[:100])
    compute_stats(root, workers=1)
    assert written(root) == whole


def test_every_flipped_bit_of_kept_sums_is_noticed(root):
    shards = Manifest.load(root).split("train", root).shards
    kept = PartialSums(root / ".sums", Moments.none(2, 3))
    kept.add(
        shards[0], Moments(9, np.arange(18, dtype=np.uint64).reshape(2, 3, 3), ((7,) * 3,) * 3)
    )
    good = kept.path.read_bytes()
    present = {shard.name: shard.sha256 for shard in shards}
    for position in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[position // 8] ^= 1 << position % 8
        kept.path.write_bytes(flipped)
        other = PartialSums(kept.path, Moments.none(2, 3))
        other.restore(present)
        assert (other.shards, other.moments.images) == ({}, 0), position
    kept.path.write_bytes(good)
    other.restore(present)
    assert (other.shards, other.moments.images) == (kept.shards, 9)


def test_planes_give_the_same_bytes_of_statistics_even_if_some_are_damaged(root):
    compute_stats(root, workers=1)
    from_jpegs = written(root)
    store_planes(root, ["train"], workers=1)
    first, second, *others = sorted((root / "planes").iterdir())
    damaged = bytearray(first.read_bytes())
    damaged[4096] ^= 1
    first.write_bytes(damaged)
    second.unlink()
    for shard in shard_paths(root)[2:]:  # of the length that the manifest says, but not the bytes
        shard.write_bytes(bytes(shard.stat().st_size))
    assert len(others) == 2
    compute_stats(root, workers=1)
    assert written(root) == from_jpegs


def test_one_process_writes_at_a_time(root):
    with LocalStore(root).locked():
        for work in (compute_stats, store_planes):
            with pytest.raises(PrepareError, match=rf"set is in use by process {os.getpid()} on"):
                work(root, workers=1)
    assert not (root / ".alexprep").exists()


# Killed as the sums of a second shard come under their name.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from alexprep.dataset.stats import compute_stats
renamed = []
def watch(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(".sums"):
        renamed.append(arguments[1])
        if len(renamed) == 3:  # the first has no sums
            os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    sys.addaudithook(watch)
    compute_stats(Path(sys.argv[1]), workers=2)
"""


def test_a_killed_run_leaves_no_statistics_and_the_next_gives_the_same_bytes(tmp_path, items):
    many = [Item(f"k{n}", items[n % 30].jpg, 0) for n in range(240)]
    root = write_dataset(tmp_path / "many", {"train": many}, size=SIZE, shards=12)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False)
    assert run.returncode == -signal.SIGKILL
    partial = root / ".stats-train.sums"
    assert PartialSums(partial, Moments.none(SIZE, SIZE)).saved().images == 20
    assert not (root / "stats.json").exists()
    compute_stats(root, workers=2)
    resumed = written(root)
    assert not partial.exists()
    compute_stats(root, workers=1)
    assert written(root) == resumed


def test_a_missing_shard_is_named(root):
    gone = shard_paths(root)[2]
    gone.unlink()
    assert_refused_and_nothing_written(root, rf"{gone} is missing.*alexprep shard")


def test_a_truncated_shard_is_named_with_both_lengths(root):
    short = shard_paths(root)[1]
    whole = short.read_bytes()
    short.write_bytes(whole[:-700])
    assert_refused_and_nothing_written(
        root, rf"{short} has {len(whole) - 700} bytes, the manifest says {len(whole)}"
    )


@pytest.mark.parametrize("place", [20, 700, -30])
def test_a_shard_with_one_altered_byte_is_named(root, place):
    altered = shard_paths(root)[3]
    data = bytearray(altered.read_bytes())
    data[place] ^= 1
    altered.write_bytes(data)
    assert_refused_and_nothing_written(root, str(altered))


def test_an_altered_pixel_that_still_decodes_is_found_by_the_hash(root):
    altered = shard_paths(root)[0]
    data = bytearray(altered.read_bytes())
    data[-1] ^= 1  # padding: nothing but the hash can tell
    altered.write_bytes(data)
    assert_refused_and_nothing_written(root, r"was changed: its sha256 is \w+, the manifest says")


def test_a_sample_fewer_than_the_manifest_says_is_found(root):
    path = root / "manifest.json"
    path.write_text(path.read_text().replace('"samples": 6', '"samples": 7'))
    assert_refused_and_nothing_written(root, "number of images is 6, the manifest says 7")


def test_a_split_without_images_or_not_there_is_refused(tmp_path, items):
    root = write_dataset(tmp_path / "e", {"train": [], "test": items}, size=SIZE, shards=1)
    assert_refused_and_nothing_written(root, r"'train' of .* has no images")
    with pytest.raises(DataError, match=r"no split 'val'; it has test, train"):
        compute_stats(root, "val", workers=1)


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        ((SIZE + 1, SIZE, "RGB"), rf"odd\.jpg is YCbCr of {SIZE + 1}x{SIZE}; .* {SIZE}x{SIZE}"),
        ((SIZE, SIZE, "L"), rf"odd\.jpg is Gray of {SIZE}x{SIZE}"),
        (None, r"odd\.jpg does not decode"),
    ],
)
def test_an_image_that_does_not_belong_is_named(tmp_path, items, rng, picture, complaint):
    data = b"no image" if picture is None else jpeg(photograph(rng, *picture))
    splits = {"train": [*items, Item("odd", data, 0)]}
    root = write_dataset(tmp_path / "odd", splits, size=SIZE, shards=2)
    assert_refused_and_nothing_written(root, complaint)


def test_a_folder_that_cannot_be_written_to_is_found_out_before_the_work(root):
    if os.geteuid() == 0:
        # Root may write anywhere, so something lies where the sums would be kept.
        (root / ".stats-train.sums").mkdir()
    else:
        root.chmod(0o555)
    with pytest.raises(OSError, match=r"stats-train\.sums"):
        compute_stats(root, workers=1)
    root.chmod(0o755)


def test_the_report_has_each_convention_in_its_own_units(root):
    stats = compute_stats(root, workers=1)
    text = format_report(stats)
    unit = [f"{value:.4f}" for value in stats.mean / 255]
    assert f"Normalize(mean=[{', '.join(unit)}]" in text
    assert f"mean=[{', '.join(f'{value:.2f}' for value in stats.mean)}]" in text
    eigval = [f"{value:.4f}" for value in (stats.stdevs / 255) ** 2]
    assert f"eigval = [{', '.join(eigval)}]" in text
    assert f"stdevs = [{', '.join(f'{value:.2f}' for value in stats.stdevs)}]" in text
    assert "[121.78, 37.09, 19.72]" in text
    assert max(map(len, text.splitlines())) <= 130


def test_the_command_answers_an_altered_shard_in_one_line(root):
    altered = shard_paths(root)[0]
    data = bytearray(altered.read_bytes())
    data[-1] ^= 1
    altered.write_bytes(data)
    done = CliRunner().invoke(cli, ["stats", str(root), "--workers", "1"])
    assert done.exit_code == 1
    assert done.stdout == ""
    assert f"Error: {altered} was changed" in done.stderr


def test_the_command_prints_the_report_or_the_same_as_json(root):
    plain = CliRunner().invoke(cli, ["stats", str(root), "--workers", "1"])
    asked = CliRunner().invoke(cli, ["stats", str(root), "--workers", "1", "--json"])
    stats = ImageStats.load(root, Manifest.load(root))
    assert plain.stdout == format_report(stats) + "\n"
    assert json.loads(asked.stdout) == stats.to_dict()
