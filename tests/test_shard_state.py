"""What a power cut, a bad disk or a second run does to the state of an unfinished data set."""

import fcntl
import json
import threading

import pytest
from archives import contents
from shard_sets import HERE, SMALL

from alexprep.dataset.shard import shard
from alexprep.dataset.shard_writer import Fault, ShardRecord
from alexprep.dataset.store import open_store
from alexprep.errors import PrepareError
from pipelines.format import Shard

RECORD = ShardRecord(
    shard=Shard(name="train/a-train-000000.tar", samples=3, bytes=10240, sha256="0" * 64, md5="1"),
    largest_jpg=700,
    source_bytes=9_000,
    mended={"gray": ["key1", "key2"]},
    faults=[Fault("folder/x.JPEG", "2" * 64, "is empty", 5)],
)


def test_a_record_is_read_back_as_written():
    assert ShardRecord.from_bytes(RECORD.to_bytes()) == RECORD


def test_every_flipped_bit_of_a_record_is_noticed():
    raw = RECORD.to_bytes()
    for position in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        assert ShardRecord.from_bytes(bytes(flipped)) is None, position


@pytest.mark.parametrize("cut", [0, 1, 100, -2, -1])
def test_a_record_that_ends_early_is_noticed(cut):
    assert ShardRecord.from_bytes(RECORD.to_bytes()[:cut]) is None


def test_a_record_of_the_first_release_which_has_no_crc_is_read():
    fields = {
        "shard": {
            "name": "train/a-train-000000.tar",
            "samples": 3,
            "bytes": 10240,
            "sha256": "0" * 64,
            "md5": "1",
        },
        "largest_jpg": 700,
        "source_bytes": 9000,
        "mended": {"gray": ["key1", "key2"]},
        "faults": [["folder/x.JPEG", "2" * 64, "is empty", 5]],
        "found": False,
    }
    assert ShardRecord.from_bytes(json.dumps(fields).encode()) == RECORD
    assert ShardRecord.from_bytes(json.dumps(fields | {"largest_jpg": "700"}).encode()) is None
    assert ShardRecord.from_bytes(json.dumps(fields | {"other": 1}).encode()) is None
    assert ShardRecord.from_bytes(b"[" * 100_000) is None


def unfinished(made, plan):
    """The data set as a run leaves it that is killed before its manifest; `plan` in its plan."""
    root, _ = made
    (root / "manifest.json").unlink()
    (root / ".alexprep").mkdir()
    (root / ".alexprep/plan.json").write_bytes(plan)
    return root


@pytest.mark.parametrize("plan", [b"", bytes(500), b'{"version": 1', b"[1]", b"[" * 100_000])
def test_an_unreadable_plan_without_shards_is_written_again(source, tmp_path, made, plan):
    out = tmp_path / "again"
    (out / ".alexprep").mkdir(parents=True)
    (out / ".alexprep/plan.json").write_bytes(plan)
    shard(source, out, SMALL, HERE)
    assert contents(out) == contents(made[0])


@pytest.mark.parametrize("plan", [b"", bytes(500), b'{"version": 1', b"[1]", b"[" * 100_000])
def test_an_unreadable_plan_of_shards_is_named_with_what_to_do(source, made, plan):
    root = unfinished(made, plan)
    with pytest.raises(PrepareError, match=r"/\.alexprep/plan\.json is damaged .*new folder"):
        shard(source, root, SMALL, HERE)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_an_unreadable_manifest_is_named_with_what_to_do(source, made, text):
    root, _ = made
    (root / "manifest.json").write_text(text)
    with pytest.raises(PrepareError, match=r"/manifest\.json is damaged .*new folder"):
        shard(source, root, SMALL, HERE)


def test_a_lock_file_that_its_last_holder_removes_is_not_held_twice(tmp_path):
    store = open_store(str(tmp_path))
    path = tmp_path / ".alexprep/lock"
    with store.locked():
        stale = path.open("w")  # a second run, between opening the file and locking it
    fcntl.flock(stale, fcntl.LOCK_EX)
    # It holds the lock of a removed file; a third run makes a new one. Only that one is a lock.
    with store.locked():
        assert path.exists()
    stale.close()


def test_many_runs_at_once_hold_the_lock_one_at_a_time(tmp_path):
    holders, most, refused = [], [], []

    def run():
        for _ in range(60):
            try:
                with open_store(str(tmp_path)).locked():
                    holders.append(1)
                    most.append(len(holders))
                    holders.pop()
            except PrepareError:
                refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 240
