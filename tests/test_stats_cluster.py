"""Statistics by a Dask cluster: a real scheduler and two workers, spoken to over TCP."""

import numpy as np
from test_shard_cluster import cluster

from alexprep.dataset.stats import compute_stats
from tests.tarsets import drawn_items, write_dataset

__all__ = ["cluster"]  # the fixture

FILES = ("stats.json", "stats.npz", "mean.png")


def test_a_cluster_writes_the_bytes_of_one_process(cluster, tmp_path):
    items = drawn_items(np.random.default_rng(5), 24, size=40)
    root = write_dataset(tmp_path / "set", {"train": items}, size=40, shards=6)
    compute_stats(root, workers=1)
    alone = {name: (root / name).read_bytes() for name in FILES}
    address, _, _ = cluster
    compute_stats(root, scheduler=address)
    assert {name: (root / name).read_bytes() for name in FILES} == alone
