"""`make gpu-check` where there is no GPU: what it says, what it draws and what it keeps."""

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from alexnet.model.networks import code2012
from alexprep import machine
from alexprep.bench.frame import Result
from alexprep.bench.step_gpu import step_bytes, step_flops
from pipelines import LoaderConfig, open_loader

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check():
    spec = spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu_check.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu_check.py", "--out", tmp_path / "out"]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("\n") == 1
    assert "sees no GPU; nothing was run" in done.stdout
    assert not (tmp_path / "out").exists()


def test_the_data_set_it_draws_can_be_loaded(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "IMAGES", 200)
    root = check.drawn(tmp_path / "drawn")
    with open_loader(root, config=LoaderConfig(batch=40, backend="torch")) as loader:
        images, labels = next(iter(loader))
    assert images.shape == (40, 3, 224, 224)
    assert set(labels.tolist()) <= set(range(10))


TESTS = """
import pytest
def test_measures(record_property):
    record_property("largest difference", 3.5)
def test_fails():
    assert False
def test_is_skipped():
    pytest.skip("no GPU")
"""


def test_what_tests_measured_and_how_they_went_become_rows(check, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "test_some.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    check.keep_tests(report, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    rows = {row.name: row.median for row in Result.load(path).rows}
    assert rows == {
        "GPU tests: tests": 3,
        "GPU tests: failures": 1,
        "GPU tests: errors": 0,
        "GPU tests: skipped": 1,
        "largest difference": 3.5,
    }
    assert "| largest difference" in check.tables(tmp_path / "out")


def test_every_test_marked_for_a_gpu_is_collected(check):
    files = [p for p in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in p.read_text()]
    assert {"test_dali_gpu.py", "test_lrn.py", "test_step_gpu.py"} <= {p.name for p in files}


def test_a_copy_without_git_takes_its_commit_from_the_environment(tmp_path):
    # Outside of any repository.
    shutil.copytree(ROOT / "alexprep", tmp_path / "alexprep", ignore=shutil.ignore_patterns("__*"))
    code = "from alexprep.machine import commit; print(commit())"
    shutil.copy(ROOT / "alexprep/__init__.py", tmp_path / "alexprep/__init__.py")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "ALEXPREP_COMMIT": "abc123"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "abc123\n"
    assert machine.commit() != "abc123"


def test_the_floors_count_what_the_network_does():
    # 724 million products forward, of which 105 million in conv1, whose inputs want no gradient.
    forward = 2 * 724e6
    assert step_flops(code2012()) == pytest.approx(3 * forward - 2 * 105e6, rel=0.01)
    # Weights alone: 61 million values, 26 bytes each, whatever the batch.
    assert step_bytes(code2012(), 1) > 61e6 * 26
    assert step_bytes(code2012(), 1024) < 1024 * step_bytes(code2012(), 1)
