import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("alexprep", "alexnet", "pipelines")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
HEAVY = ("torch", "nvidia.dali", "webdataset", "numpy", "PIL", "rich", "dask")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_one_sitting(path):
    assert path.read_text().count("\n") <= 300


def test_help_imports_nothing_heavy():
    # `alexprep --help` took 0.06 s without these and 1.4 s with torch.
    code = f"import sys, alexprep.cli; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_only_one_file_builds_dali_pipelines():
    importers = {
        str(path.relative_to(ROOT)) for path in MODULES if "from nvidia.dali" in path.read_text()
    }
    # The benchmark builds the bare rival.
    assert importers - {"alexprep/bench/load.py"} == {"pipelines/dali.py"}


def test_the_readme_names_every_folder_there_is():
    readme = (ROOT / "README.md").read_text()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so its files cannot be told from others")
    folders = {line.split("/")[0] + "/" for line in listed.stdout.splitlines() if "/" in line}
    assert {name for name in folders if name not in readme} == set()
