"""Targets that are no folder: memory:// in this process, and s3:// spoken to a real server."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from archives import contents
from drawing import draw_classes

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.store import open_store
from alexprep.errors import PrepareError
from pipelines.format import MANIFEST, Manifest

SMALL = ShardConfig(size=48, shards={"train": 3, "validation": 2})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    source = draw_classes(folder / "zoo", np.random.default_rng(4), each=8)
    shard(source, folder / "local", SMALL, RunOptions(workers=1))
    return source, contents(folder / "local")


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def s3_server():
    """The address of moto's S3 server on loopback."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "moto's server did not come up"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """A fresh bucket, and the environment that leads every process to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    files = fsspec.filesystem("s3")
    name = f"shards-{time.monotonic_ns()}"
    files.mkdir(f"s3://{name}")
    return files, f"s3://{name}/zoo"


def remote_contents(files, root, folder):
    """sha256 by path, after bringing everything here."""
    files.invalidate_cache()
    files.get(root, str(folder), recursive=True)
    return contents(folder)


def test_memory_gets_the_bytes_of_a_folder(zoo, tmp_path, memory):
    source, whole = zoo
    shard(source, "memory://made", SMALL, RunOptions(workers=2))
    assert remote_contents(memory, "/made", tmp_path / "back") == whole


def test_s3_gets_the_bytes_of_a_folder_from_any_number_of_workers(zoo, tmp_path, bucket):
    source, whole = zoo
    files, url = bucket
    for workers in (1, 2):
        out = f"{url}-{workers}"
        shard(source, out, SMALL, RunOptions(workers=workers))
        assert remote_contents(files, out, tmp_path / str(workers)) == whole


def test_a_shard_missing_from_s3_is_made_again_and_others_are_left_alone(zoo, tmp_path, bucket):
    source, whole = zoo
    files, url = bucket
    manifest = shard(source, url, SMALL, RunOptions(workers=1))
    victim = f"{url}/{manifest.splits['train'].shards[1].name}"
    files.rm(victim)
    files.invalidate_cache()
    before = {path: info["LastModified"] for path, info in files.find(url, detail=True).items()}
    assert shard(source, url, SMALL, RunOptions(workers=1)) == manifest
    files.invalidate_cache()
    after = {path: info["LastModified"] for path, info in files.find(url, detail=True).items()}
    assert {path for path in after if before.get(path) != after[path]} <= {
        victim.removeprefix("s3://"),
        f"{url}/{manifest.splits['train'].shards[1].index}".removeprefix("s3://"),
    }
    assert remote_contents(files, url, tmp_path / "back") == whole


def test_a_run_that_failed_leaves_whole_shards_in_s3_and_no_manifest(tmp_path, bucket, rng):
    files, url = bucket
    source = draw_classes(tmp_path / "zoo", rng, each=8)
    # Half of a JPEG begins as one: only encoding finds it, when others have been uploaded.
    damaged = source / "val/ant/ant_val_0.JPEG"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(PrepareError, match=r"ant_val_0\.JPEG"):
        shard(source, url, SMALL, RunOptions(workers=1))
    assert files.find(f"{url}/train")
    assert not files.exists(f"{url}/{MANIFEST}")
    skipping = RunOptions(workers=1, on_error="skip")
    shard(source, url, SMALL, skipping)
    shard(source, tmp_path / "local", SMALL, skipping)
    assert remote_contents(files, url, tmp_path / "back") == contents(tmp_path / "local")


def test_another_config_into_the_same_bucket_is_refused(zoo, bucket):
    source, _ = zoo
    _, url = bucket
    shard(source, url, SMALL, RunOptions(workers=1))
    with pytest.raises(PrepareError, match=r"config.size 48 where this run has 32"):
        shard(source, url, ShardConfig(size=32, shards=SMALL.shards), RunOptions(workers=1))


def test_an_upload_that_breaks_off_shows_nothing(bucket):
    files, url = bucket
    with pytest.raises(PrepareError, match="Input/output error"):
        open_store(url).publish(Path("/proc/self/mem"), "train/a.tar")  # its first bytes are none
    assert not files.find(url)


def test_a_bucket_that_is_not_there_is_named(zoo, bucket):
    source, _ = zoo
    with pytest.raises(PrepareError, match=r"Cannot write s3://no-such-bucket"):
        shard(source, "s3://no-such-bucket/zoo", SMALL, RunOptions(workers=1))


def test_a_storage_that_cannot_be_reached_is_named(zoo, bucket, monkeypatch):
    source, _ = zoo
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(PrepareError, match=r"Cannot reach s3://bucket/zoo: Could not connect"):
        shard(source, "s3://bucket/zoo", SMALL, RunOptions(workers=1))


def test_a_storage_that_nobody_knows_is_refused(zoo):
    source, _ = zoo
    with pytest.raises(PrepareError, match="Cannot write to gopher://hole/zoo"):
        shard(source, "gopher://hole/zoo", SMALL, RunOptions(workers=1))


def test_a_sequential_run_wants_a_folder(zoo, memory):
    source, _ = zoo
    with pytest.raises(PrepareError, match="need a local folder for their spool"):
        shard(source, "memory://made", SMALL, RunOptions(workers=1, sequential=True))


def test_a_file_url_is_a_folder(zoo, tmp_path):
    source, whole = zoo
    shard(source, f"file://{tmp_path}/made", SMALL, RunOptions(workers=1))
    assert contents(tmp_path / "made") == whole
    assert isinstance(Manifest.load(tmp_path / "made"), Manifest)
