"""What a run costs at the size of ILSVRC, in memory and in the time before its first image."""

import subprocess
import sys
from multiprocessing import get_context

import pytest
from drawing import jpeg, photograph

from benchmarks.scale import ILSVRC_TRAIN, plan_everything, write_headers

PEAK = """
import sys
from alexprep.machine import peak_megabytes
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
shard(sys.argv[1], sys.argv[2], ShardConfig(), RunOptions(workers=1))
print(peak_megabytes())
"""


def test_an_archive_of_headers_is_planned_whole(tmp_path):
    write_headers(tmp_path, images=5_000)
    _, _, images = plan_everything(tmp_path)
    assert images == 5_000


@pytest.mark.slow
def test_all_of_ilsvrc_is_planned_in_a_minute_and_a_gigabyte(tmp_path):
    write_headers(tmp_path)
    # A new process: peak memory is that of its life.
    with get_context("spawn").Pool(1) as pool:
        seconds, megabytes, images = pool.apply(plan_everything, (tmp_path,))
    assert images == ILSVRC_TRAIN
    assert seconds <= 60
    assert megabytes <= 1000


def test_a_worker_stays_under_250_mb_even_at_30_megapixels(tmp_path, rng):
    folder = tmp_path / "large" / "panorama"
    folder.mkdir(parents=True)
    for number, sides in enumerate([(6_000, 5_000), (9_000, 7_000), (500, 375)]):
        (folder / f"{number}.JPEG").write_bytes(jpeg(photograph(rng, *sides)))
    run = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(tmp_path / "made")]
    said = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert float(said.stdout) <= 250
