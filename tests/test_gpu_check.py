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
from alexprep.bench.measurement import Result, row
from alexprep.bench.suite import BenchConfig
from benchmarks.gpu.steps import step_bytes, step_flops, step_measurements
from pipelines import LoaderConfig, open_loader

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check():
    spec = spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu/check.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu/check.py", "--out", tmp_path / "out"]
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
    rows = {figure.name: figure.median for figure in Result.load(path).rows}
    assert rows == {
        "GPU tests: tests": 3,
        "GPU tests: failures": 1,
        "GPU tests: errors": 0,
        "GPU tests: skipped": 1,
        "largest difference": 3.5,
    }
    assert "| largest difference" in check.tables(tmp_path / "out")


def figure(name):
    return name, lambda: [row(name, [1.0], "s")]


def broken():
    raise RuntimeError("Cannot copy during capture\nand more")


def measured(out):
    (path,) = (path for path in out.glob("step-*.json") if "journal" not in path.name)
    result = Result.load(path)
    return [row.name for row in result.rows], list(result.notes)


def test_a_figure_that_fails_loses_itself_alone(check, tmp_path):
    figures = [figure("a"), ("b", broken), figure("c")]
    # Without a GPU that works, a new process goes on after the failure.
    assert check.measure("step", figures, tmp_path, BenchConfig()) == check.AGAIN
    failure = ["Not measured: b: Cannot copy during capture"]
    assert measured(tmp_path) == (["a"], failure)
    assert check.measure("step", figures, tmp_path, BenchConfig()) == check.FAILED
    assert measured(tmp_path) == (["a", "c"], failure)


CRASH = """
import os, sys
from pathlib import Path
from alexprep.bench.measurement import row
from alexprep.bench.suite import BenchConfig
from benchmarks.gpu import check
figures = [("a", lambda: [row("a", [1.0], "s")]), ("b", lambda: os._exit(11))]
check.measure("step", figures, Path(sys.argv[1]), BenchConfig())
"""


def test_a_figure_that_ends_its_process_loses_itself_alone(check, tmp_path):
    done = subprocess.run([sys.executable, "-c", CRASH, tmp_path], cwd=ROOT, check=False)
    assert done.returncode == 11
    assert measured(tmp_path) == (["a"], [])
    figures = [figure("a"), ("b", broken), figure("c")]
    assert check.measure("step", figures, tmp_path, BenchConfig()) == check.FAILED
    assert measured(tmp_path) == (["a", "c"], ["Not measured: b: ended its process, see step.log"])


def test_measured_parts_need_nothing_that_a_gpu_host_may_lack():
    code = "import sys, benchmarks.gpu.loads; print({'simplejpeg', 'plotly'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_every_case_of_the_steps_has_a_name_of_its_own_and_compiled_ones_come_last(check):
    names = [name for name, _ in step_measurements("cuda:0", 1)]
    assert len(set(names)) == len(names) == 2 + 2 + 2 * 10
    # The step at both batch sizes comes first: time may run out.
    assert names[2:4] == ["batch 128: bf16, CUDA graph", "batch 1024: bf16, CUDA graph"]
    compiled = ["compiled" in name for name in names]
    assert compiled == sorted(compiled)
    assert sum(compiled) == 6


def test_all_parts_end_within_eight_minutes_and_the_step_comes_before_the_loader(check):
    assert sum(check.LIMITS.values()) <= 450
    assert list(check.LIMITS) == ["tests", "step", "load"]


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
