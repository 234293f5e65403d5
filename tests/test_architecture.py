import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import names

ROOT = Path(__file__).parents[1]
PACKAGES = ("alexprep", "alexnet", "pipelines")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
SOURCE = names.load(PACKAGES)
HEAVY = ("torch", "nvidia.dali", "webdataset", "numpy", "PIL", "rich", "dask")


# Three ratchets: who improves a figure lowers it here, and none goes back up.
POOR_NAMES = 0.01
NAMED_TWICE: set[str] = set()
SHORT = {
    "alexnet/builder.py": "entry point",
    "alexnet/training/signals.py": "signal handlers, which nothing else may set",
    "pipelines/atomic.py": "atomic writes, imported by everything that writes",
    "pipelines/philox.py": "a random generator, tested with its authors' numbers",
    "pipelines/prefetch.py": "one function, for every stage of the loader",
}


def test_names_say_what_a_thing_is():
    figures = names.measure([module for modules in SOURCE.values() for module in modules])
    assert figures.poor_names <= POOR_NAMES, f"see benchmarks/names.py: {figures.worst}"


def test_no_two_modules_have_the_same_file_name():
    assert names.duplicates(SOURCE).keys() <= NAMED_TWICE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_an_idea_and_only_one(path):
    lines = path.read_text().count("\n")
    assert lines <= 500
    small = path.stem in names.SHARED or str(path.relative_to(ROOT)) in SHORT
    assert lines >= 60 or small, "merge it with its only user, or give a reason in SHORT"


def test_the_measured_figures_are_those_of_a_source_counted_by_hand(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/shard.py").write_text(HAND)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/shard.py").write_text("import pack.shard\n")
    packages = names.load(["pack", "other"], tmp_path)
    figures = names.measure(packages["pack"])
    # found, items, total and item count; self has a type by its place, x has one letter.
    assert list(names.assigned_names(packages["pack"][0].tree)).count("self") == 1
    assert (figures.poor_names, figures.worst) == (1 / 5, {"found": 1})
    assert (figures.files, figures.lines, figures.function_lines) == (1, 10, (4, 4, 4))
    assert (figures.documented, figures.annotated, figures.comments) == (0.5, 1.0, 100 / 8)
    assert names.duplicates(packages) == {"shard": ["pack.shard", "other.shard"]}
    assert names.arrows(packages) == {("other", "pack"): 1}


HAND = '''def count(items: list[int]) -> int:
    """Add."""
    x = 1  # a reason
    return sum(items) + x


class Total:
    def add(self, total: int) -> None:
        _found = total
        item = _found
'''


def test_help_imports_nothing_heavy():
    # `alexprep --help` took 0.06 s without these and 1.4 s with torch.
    code = f"import sys, alexprep.cli; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_shard_imports_nothing_that_it_does_not_use():
    # Each takes .01 s of a processor or more, and half a second with torch.
    unused = (
        "torch",
        "numba",
        "jinja2",
        "rich",
        "fsspec",
        "dask",
        "numpy.ma",
        "importlib.metadata",
    )
    code = (
        "import sys, alexprep.cli, alexprep.dataset.shard\n"
        f"print([name for name in {unused} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_only_one_file_builds_dali_pipelines():
    importers = {
        str(path.relative_to(ROOT)) for path in MODULES if "from nvidia.dali" in path.read_text()
    }
    # The benchmark builds the bare rival.
    assert importers - {"alexprep/bench/load_bench.py"} == {"pipelines/dali.py"}


def test_the_readme_names_every_folder_there_is():
    readme = (ROOT / "README.md").read_text()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so its files cannot be told from others")
    folders = {line.split("/")[0] + "/" for line in listed.stdout.splitlines() if "/" in line}
    assert {name for name in folders if name not in readme} == set()
