"""The comparisons with other libraries, as far as they run without them."""

import json
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from drawing import jpeg, photograph
from PIL import Image

from tests.forks import Fork

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def source(tmp_path, rng):
    for wnid in ("n01", "n02"):
        (tmp_path / "source" / wnid).mkdir(parents=True)
        for number, sides in enumerate([(300, 400), (500, 333), (90, 64)]):
            path = tmp_path / "source" / wnid / f"{wnid}_{number}.JPEG"
            path.write_bytes(jpeg(photograph(rng, *sides)))
    return tmp_path / "source"


def test_processor_time_is_that_of_a_process_and_its_children():
    code = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from batches import cpu_seconds
burn = "import time; end = time.process_time() + .3\\nwhile time.process_time() < end: pass\\n"
child = subprocess.Popen([sys.executable, "-c", burn + "print(flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
own, both = time.process_time(), cpu_seconds(os.getpid())
child.communicate(b"\\n")
assert own + .25 < both < own + 1.5, (own, both)
assert cpu_seconds(child.pid) == 0
"""
    assert Fork([sys.executable, "-c", code, BENCHMARKS / "peers"]).wait() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_usual_script_writes_every_image_at_the_size_that_is_compared(
    source, tmp_path, workers
):
    script = BENCHMARKS / "peers" / "shard_webdataset.py"
    command = [sys.executable, script, source, tmp_path / "out", "--workers", workers]
    assert Fork(command).wait() == 0
    found = {}
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    images = {name: data for name, data in found.items() if name.endswith(".jpg")}
    assert sorted(images) == [f"{wnid}_{n}.jpg" for wnid in ("n01", "n02") for n in range(3)]
    assert {Image.open(BytesIO(data)).size for data in images.values()} == {(256, 256)}
    assert found["n02_1.cls"] == b"1"


def test_a_loader_of_a_peer_answers_with_the_batches_it_was_asked_for(tmp_path, rng):
    data = jpeg(photograph(rng, 256, 256))
    (tmp_path / "n01").mkdir()
    for number in range(3 * 128):
        (tmp_path / "n01" / f"{number}.jpg").write_bytes(data)
    script = BENCHMARKS / "peers" / "load_torch.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        input="1 2\n",
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)
    assert said["images"] == 2 * 128
    assert said["first"] == [[128, 3, 227, 227], "float32"]
    assert said["seconds"] > 0
    # A decoder takes some 10 us an image at the very least, and nobody a second.
    assert 1e-5 < said["cpu"] < 1


def test_rounds_are_added_to_those_kept_and_compared_within_a_round(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from rounds import Rounds, ratios  # noqa: PLC0415 - no package, found by its folder

    path = tmp_path / "kept.json"
    for slow in (1, 10):  # the second round's machine is ten times slower
        kept = Rounds.load(path)
        kept.add("ours", 200 / slow)
        kept.add("theirs", 100 / slow)
        kept.save()
    (found,) = ratios(Rounds.load(path).rates, "ours", {"theirs": ">= 1.6"})
    assert (found.n, found.ratio, found.baseline, found.target) == (2, 2.0, "theirs", ">= 1.6")
