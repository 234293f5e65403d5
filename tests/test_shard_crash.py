"""What is stopped at any instant is gone on with, and ends in the same bytes."""

import os
import shutil
import signal
import subprocess
import tarfile
import time

import numpy as np
import pytest
from archives import contents
from drawing import draw_classes
from shard_process import kill, members, start_shard, workers

from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.errors import PrepareError
from pipelines.format import MANIFEST, parse_index

CONFIG = {"size": 96, "shards": {"train": 12, "validation": 6}}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A source, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("crash")
    source = draw_classes(folder / "zoo", np.random.default_rng(3), each=60)
    shard(source, folder / "whole", ShardConfig(**CONFIG), RunOptions(workers=1))
    return source, contents(folder / "whole")


def wait_until_gone(session, seconds=60):
    deadline = time.monotonic() + seconds
    while left := members(session):
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.02)


def assert_nothing_half_written_looks_whole(out, whole):
    """Whatever lies under a final name has its final content."""
    for path in [*out.glob("*/*.tar"), *out.glob("index/*.idx"), *out.glob("*.json")]:
        name = str(path.relative_to(out))
        assert contents(out, name) == {name: whole[name]}


@pytest.mark.parametrize(
    ("options", "kills"),
    [
        ({"workers": 2}, 6),
        pytest.param({"workers": 2, "sequential": True}, 6, marks=pytest.mark.slow),
        pytest.param({"workers": 2}, 24, marks=pytest.mark.slow),
        pytest.param({"workers": 2, "sequential": True}, 24, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_random_instants_is_finished_by_the_same_command(
    zoo, tmp_path, options, kills
):
    source, whole = zoo
    rng = np.random.default_rng(kills)
    out, blows = tmp_path / "out", 0
    while blows < kills:
        run = start_shard(tmp_path / "run.py", source, out, CONFIG, options)
        crew = workers(run.pid)
        while not crew and run.poll() is None:
            time.sleep(0.005)
            crew = workers(run.pid)
        time.sleep(rng.uniform(0, 0.6))
        victim = run.pid if blows % 2 or not crew else crew[0]
        blows += run.poll() is None and kill(victim)
        run.communicate(timeout=100)
        wait_until_gone(run.pid)
        assert_nothing_half_written_looks_whole(out, whole)
        if (out / MANIFEST).exists():
            shutil.rmtree(out)  # it was faster than the blow: start over
    run = start_shard(tmp_path / "run.py", source, out, CONFIG, options)
    _, said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert contents(out) == whole


def test_only_what_is_missing_is_done_again(zoo, tmp_path):
    source, whole = zoo
    out = tmp_path / "out"
    run = start_shard(tmp_path / "run.py", source, out, CONFIG, {"workers": 2})
    while len(list(out.glob("*/*.tar"))) < 4:
        time.sleep(0.005)
    run.kill()
    run.communicate()
    wait_until_gone(run.pid)
    there = {path: path.stat().st_mtime_ns for path in (out / ".alexprep" / "records").iterdir()}
    tars = {path: path.stat().st_ino for path in out.glob("*/*.tar")}
    known = [path for path in tars if any(path.stem == record.stem for record in there)]
    assert 0 < len(known) < 18
    shard(source, out, ShardConfig(**CONFIG), RunOptions(workers=1))
    assert contents(out) == whole
    assert all(path.stat().st_ino == tars[path] for path in known)


def test_a_killed_worker_ends_the_run_within_seconds_and_says_what_to_do(zoo, tmp_path):
    source, _ = zoo
    run = start_shard(tmp_path / "run.py", source, tmp_path / "out", CONFIG, {"workers": 2})
    while not list(tmp_path.glob("out/*/*.tar")):
        time.sleep(0.005)
    kill(workers(run.pid)[0])
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "ended with signal SIGKILL" in said
    assert "Run the same command again" in said
    wait_until_gone(run.pid)


def test_ctrl_c_ends_everybody_within_seconds_and_the_rest_can_be_done_later(zoo, tmp_path):
    source, whole = zoo
    out = tmp_path / "out"
    run = start_shard(tmp_path / "run.py", source, out, CONFIG, {"workers": 2})
    while not list(out.glob("*/*.tar")):
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to all
    _, said = run.communicate(timeout=60)
    assert said.count("KeyboardInterrupt") == 1
    wait_until_gone(run.pid)
    assert not (out / MANIFEST).exists()
    assert not list(out.glob(".alexprep/partial-*"))
    shard(source, out, ShardConfig(**CONFIG), RunOptions(workers=1))
    assert contents(out) == whole


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2}, {"sequential": True}])
def test_a_disk_that_is_full_is_a_clear_end(zoo, tmp_path, options):
    source, whole = zoo
    out = tmp_path / "out"
    # No file may grow over 60 KB, which is what a full disk looks like to whoever writes.
    run = start_shard(tmp_path / "run.py", source, out, CONFIG, options, file_limit=60_000)
    _, said = run.communicate(timeout=100)
    assert run.returncode == 1
    assert "PrepareError: Cannot write " in said
    assert "run the same command again" in said
    assert "Traceback" not in said
    wait_until_gone(run.pid)
    assert not list(out.glob("*/*.tar"))
    shard(source, out, ShardConfig(**CONFIG), RunOptions(workers=1))
    assert contents(out) == whole


def test_a_small_file_system_that_fills_up_is_a_clear_end(zoo, tmp_path):
    source, _ = zoo
    out = tmp_path / "tmpfs"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(out)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs privileges that this process has not")
    try:
        with pytest.raises(PrepareError, match=r"Cannot write .* No space left on device"):
            shard(source, out / "made", ShardConfig(**CONFIG), RunOptions(workers=2))
        finished = sorted((out / "made").glob("*/*.tar"))
        assert finished
        for path in finished:
            with tarfile.open(path) as archive:
                assert len(archive.getnames()) % 3 == 0
            index = out / "made" / "index" / f"{path.stem}.idx"
            assert parse_index(index.read_bytes(), index)
        assert not (out / "made" / MANIFEST).exists()
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_a_source_that_vanishes_during_the_run_is_a_clear_end(tmp_path):
    gone = tmp_path / "source"
    draw_classes(gone, np.random.default_rng(5), each=60)
    run = start_shard(tmp_path / "run.py", gone, tmp_path / "out", CONFIG, {"workers": 2})
    while not list(tmp_path.glob("out/*/*.tar")):
        time.sleep(0.002)
    gone.rename(tmp_path / "elsewhere")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "PrepareError: Cannot read" in said
    wait_until_gone(run.pid)
