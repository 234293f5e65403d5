"""`make gpu-check` where there is no GPU: what it says, what it draws and what it keeps."""

import ast
import math
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from alexnet.model.networks import code2012, smoke
from alexprep import machine
from alexprep.bench import load_bench
from alexprep.bench.measurement import Result, row
from alexprep.bench.step_bench import Case
from alexprep.bench.suite import BenchConfig
from benchmarks.gpu import layers, loads, recorder, steps
from benchmarks.gpu.steps import step_bytes, step_flops, step_measurements
from pipelines import LoaderConfig, open_loader
from tests.forks import Fork, run_fork

ROOT = Path(__file__).parents[1]
PATHS = {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def check():
    spec = spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu/check.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu/check.py", "--out", tmp_path / "out"]
    done = run_fork(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
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
import os, pytest
def test_measures(record_property):
    record_property("largest difference", 3.5)
def test_fails():
    raise RuntimeError("an illegal memory access")
def test_is_skipped():
    pytest.skip("no GPU")
def test_ends_its_process():
    os._exit(11)
def test_passes():
    pass
"""
PART = """
import sys
from functools import partial
from pathlib import Path
from benchmarks.gpu import check, recorder
out = Path(sys.argv[1])
journal = check.Journal.load(out, "tests")
journal.end_open("tests")
words = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(out), *sys.argv[2:]]
save = partial(check.keep_tests, "tests", journal, out)
sys.exit(recorder.run_tests(words, journal, save, works=lambda: False))
"""


def test_a_test_that_fails_or_ends_its_process_loses_itself_alone(check, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import not_there_at_all")
    files = ("test_some.py", "test_broken.py", "--continue-on-collection-errors")
    command = [sys.executable, "-c", PART, tmp_path, *files]
    alone = PATHS | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    codes = []
    while not codes or codes[-1] not in (0, check.FAILED):
        codes.append(Fork(command, cwd=tmp_path, env=os.environ | alone).wait())
        assert len(codes) < 5
    # After a failure, whose process could do nothing more with its GPU, and after a crash.
    assert codes == [check.AGAIN, 11, check.FAILED]
    (path,) = (path for path in tmp_path.glob("*.json") if "journal" not in path.name)
    result = Result.load(path)
    assert {figure.name: figure.median for figure in result.rows} == {
        "GPU tests: tests": 5,
        "GPU tests: failures": 3,
        "GPU tests: skipped": 1,
        "largest difference": 3.5,
    }
    assert sorted(result.notes) == [
        "Failed: test_broken.py: ModuleNotFoundError: No module named 'not_there_at_all'",
        "Failed: test_some.py::test_ends_its_process: ended its process, see tests.log",
        "Failed: test_some.py::test_fails: RuntimeError: an illegal memory access",
    ]
    assert "| largest difference" in check.tables(tmp_path)


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
import os, sys, time
from pathlib import Path
from alexprep.bench.measurement import row
from alexprep.bench.suite import BenchConfig
from benchmarks.gpu import check
check.FIGURE_SECONDS = 0.05
figures = [("a", lambda: [row("a", [1.0], "s")]), ("b", lambda: {})]
check.measure("step", figures, Path(sys.argv[1]), BenchConfig())
"""


@pytest.mark.parametrize(("act", "code"), [("os._exit(11)", 11), ("time.sleep(60)", 1)])
def test_a_figure_that_ends_its_process_or_hangs_loses_itself_alone(check, tmp_path, act, code):
    assert Fork([sys.executable, "-c", CRASH.format(act), tmp_path]).wait() == code
    assert measured(tmp_path) == (["a"], [])
    assert check.Journal.load(tmp_path, "step").open == ["b"]  # for which the part begins again
    figures = [figure("a"), ("b", broken), figure("c")]
    assert check.measure("step", figures, tmp_path, BenchConfig()) == check.FAILED
    assert measured(tmp_path) == (["a", "c"], ["Not measured: b: ended its process, see step.log"])


IMPORTED = """
import sys, torch
def tops():
    modules = [name for name, m in list(sys.modules.items()) if hasattr(m, "__file__")]
    files = {name.partition(".")[0] for name in modules}
    return files - set(sys.stdlib_module_names) - {"alexnet", "alexprep", "pipelines", "benchmarks"}
before = tops()
import benchmarks.gpu.check, benchmarks.gpu.layers, benchmarks.gpu.loads, tests.tarsets
import alexprep.synthetic
print(*(tops() - before - {"tests"}))
"""


def test_measured_parts_need_nothing_that_a_gpu_host_may_lack():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # What torch brings or takes where it is there.
    assert set(done.stdout.split()) <= {"numpy", "msgspec", "safetensors", "PIL"}


COLLECTED = """
import sys
from importlib.metadata import packages_distributions, requires
import pytest
from benchmarks.gpu import check, recorder

present = {module.partition(".")[0] for module in check.PACKAGES}
needed = {"".join(c if c.isalnum() or c in "-_." else " " for c in line).split()[0].lower()
          for line in requires("alexprep")}
absent = {module for module, names in packages_distributions().items()
          if needed & {name.lower() for name in names}}
absent -= present | {"xdist", "_pytest"}
assert {"imagecodecs", "click", "rich"} <= absent

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in list(sys.modules):
    if name.partition(".")[0] in absent - {"torch", "pytest"}:
        del sys.modules[name]
sys.meta_path.insert(0, Absent())
words = recorder.test_options("gpu or two_gpus", parallel=False)
files = [str(path) for part in ("kernels", "tests") for path in recorder.gpu_test_files(part)]
sys.exit(pytest.main([*words, "--collect-only", "-q", *files]))
"""


def test_marked_tests_need_nothing_that_a_gpu_host_may_lack():
    done = run_fork([sys.executable, "-c", COLLECTED], cwd=ROOT, env=os.environ | PATHS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "[cuda]" in done.stdout
    assert "error" not in done.stdout


def test_without_a_package_that_everything_needs_nothing_is_run(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "no_gpu", str)
    monkeypatch.setattr(sys, "argv", ["check.py", "--out", str(tmp_path / "out")])
    said = []
    monkeypatch.setattr(check, "_say", said.append)
    monkeypatch.setattr(check, "NEEDED", {"not_there_at_all": "msgspec"})
    monkeypatch.setattr(check, "PACKAGES", {"not_there_at_all": "msgspec"})
    assert check.main() == 1
    assert said == ["gpu-check: missing packages: msgspec; nothing was run"]
    assert not (tmp_path / "out").exists()


def test_every_test_for_a_gpu_is_among_those_that_are_run():
    marked = {"gpu", "two_gpus"}
    helpers = {path.stem for path in (ROOT / "tests").glob("*.py") if marked & marks(path)}
    expected = {
        path
        for path in (ROOT / "tests").glob("test_*.py")
        if marked & marks(path) or helpers & imports(path)
    }
    kernels, others = (recorder.gpu_test_files(part) for part in ("kernels", "tests"))
    assert expected <= {*kernels, *others}
    assert ROOT / "tests/test_stages_triton.py" in kernels
    assert not set(kernels) & set(others)


def marks(path):
    """The names of pytest's marks in a file."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark"
    }


def imports(path):
    """The last parts of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {(node.module or "").rpartition(".")[2]}
        elif isinstance(node, ast.Import):
            names |= {alias.name.rpartition(".")[2] for alias in node.names}
    return names


def test_every_case_of_the_steps_has_a_name_of_its_own_and_what_is_asked_first_comes_first():
    names = [name for name, _ in step_measurements("cuda:0", 1)]
    assert len(set(names)) == len(names) == 2 + 2 + 2 + 2 * 12
    # The step at both batch sizes, in a graph, eager and compiled: time may run out.
    batches = ("batch 128", "batch 1024")
    assert names[:12] == [
        *("LRN of conv1, float32", "LRN of conv1, bf16"),
        *(f"{batch}: bf16, CUDA graph" for batch in batches),
        *(f"{batch}: bf16" for batch in batches),
        *(f"{batch}: bounds" for batch in batches),
        *("memory, bf16, CUDA graph", "memory, bf16"),
        *(f"{batch}: bf16, compiled, CUDA graph" for batch in batches),
    ]
    compiled = ["compiled" in name for name in names[12:]]
    assert compiled == sorted(compiled)
    assert sum(compiled) == 4


def test_all_parts_end_within_eight_minutes_and_the_step_comes_before_the_loader(check):
    assert sum(check.LIMITS.values()) <= 450
    assert list(check.LIMITS) == ["kernels", "tests", "step", "layers", "load"]


def measured_rows(figures):
    """Rows of every figure, of which none has the name of another's but baselines."""
    rows = {name: figure() for name, figure in figures}
    for name, own in rows.items():
        assert own, name
        assert all(math.isfinite(row.median) for row in own), name
    return rows


def test_steps_that_need_no_cuda_graph_are_measured_on_a_cpu_too(monkeypatch):
    small = {"STEPS": 1, "FEWEST": 1, "MANY": 2, "SIDE": 8, "COPIED": 8, "NORMED": (2, 8, 5, 5)}
    for name, value in {**small, "TARGETS": {2: ""}}.items():
        monkeypatch.setattr(steps, name, value)
    figures = step_measurements("cpu", 1, smoke(code2012(), crop=40, classes=6))
    rows = measured_rows(
        (name, figure)
        for name, figure in figures
        # A CPU has no LRN of torch's in bf16.
        if not any(word in name for word in ("raph", "compiled", "torchvision", "conv1, bf16"))
    )
    assert {"batch 2: bf16", "batch 2: TF32", "batch 2: bounds", "memory, bf16"} <= rows.keys()
    assert rows["memory, bf16"][1].target == "<= 0"


def test_single_layers_are_measured_on_a_cpu_too(monkeypatch):
    monkeypatch.setattr(layers, "STEPS", 1)
    monkeypatch.setattr(layers, "TYPE", torch.float32)
    network = smoke(code2012(), crop=48, classes=6)
    rows = measured_rows(layers.layer_measurements(network, 2, "cpu", 1))
    names = {row.name for own in rows.values() for row in own}
    assert "batch 2: conv1, as blocks of 2 x 2" in names
    assert "batch 2: conv1 and all that follows it: cuDNN and others" in names
    assert {f"batch 2: conv{n}, 2 groups, NCHW" for n in (2, 4, 5)} <= names
    assert {"batch 2: conv2, 2 convolutions", "batch 2: conv2: one kernel"} <= names


def test_the_loader_and_the_step_that_it_feeds_are_measured_on_a_cpu_too(
    check, monkeypatch, tmp_path
):
    monkeypatch.setattr(check, "IMAGES", 100)
    monkeypatch.setattr(loads, "BATCHES", (4,))
    monkeypatch.setattr(loads, "STEPS", 1)
    monkeypatch.setattr(loads, "FEWEST", 1)
    monkeypatch.setattr(load_bench, "UNTIMED", 1)
    root = check.drawn(tmp_path / "drawn")
    case = Case(network=smoke(code2012(), crop=48, classes=10), batch=4)
    figures = loads.load_measurements(root, BenchConfig(rounds=1, images=8), case)
    rows = measured_rows(
        (name, figure) for name, figure in figures if ": CPU decode" in name or name == "reader"
    )
    (title, own), (_, reading) = rows.items()
    assert reading[0].unit == "us"
    assert [row.name for row in own[1:]] == [title, f"{title}, with the step"]


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
