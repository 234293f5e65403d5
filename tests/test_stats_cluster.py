"""Statistics by a Dask cluster: a real scheduler and two workers, spoken to over TCP."""

import re
from dataclasses import replace

import numpy as np
import pytest
from dask_cluster import DaskProcesses
from test_shard_cluster import cluster, command, error_of

from alexprep.dataset.stats import StatsTask, compute_stats, shard_moments
from alexprep.errors import PrepareError
from pipelines.format import Manifest
from tests.tarsets import drawn_items, write_dataset

__all__ = ["cluster"]  # the fixture

FILES = ("stats.json", "stats.npz", "mean.png")


@pytest.fixture
def root(tmp_path):
    items = drawn_items(np.random.default_rng(5), 24, size=40)
    return write_dataset(tmp_path / "set", {"train": items}, size=40, shards=6)


def test_a_cluster_writes_the_bytes_of_one_process(root, cluster):
    compute_stats(root, workers=1)
    alone = {name: (root / name).read_bytes() for name in FILES}
    compute_stats(root, scheduler=cluster.address)
    assert {name: (root / name).read_bytes() for name in FILES} == alone


def test_a_worker_with_another_decoder_measures_nothing(root):
    shard = Manifest.load(root).splits["train"].shards[0]
    task = StatsTask(root=root, shard=shard, size=40)
    assert shard_moments(task).images == 4
    with pytest.raises(PrepareError, match=r"the decoder is .*, not simplejpeg 1\.0: it may"):
        shard_moments(replace(task, decoder="simplejpeg 1.0"))


@pytest.mark.slow
def test_a_killed_scheduler_is_one_line_and_the_next_call_finishes(root, tmp_path):
    compute_stats(root, workers=1)
    alone = {name: (root / name).read_bytes() for name in FILES}
    processes = DaskProcesses(tmp_path / "dask", workers=0)
    process = command("stats", root, "--scheduler", processes.address)
    log = processes.folder / "scheduler.log"
    while "Receive client connection" not in log.read_text():
        assert process.poll() is None, process.communicate()
    processes.close()
    lost = rf"(The Dask scheduler at {processes.address} stopped|No Dask scheduler) answer"
    assert re.match(f"Error: {lost}", error_of(process))
    compute_stats(root, workers=1)
    assert {name: (root / name).read_bytes() for name in FILES} == alone
    assert not list(root.glob(".*"))
