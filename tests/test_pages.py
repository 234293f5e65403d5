"""The Python of the pages runs, and what they lead to is there."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import get_args_parser

import pipelines
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.model.training import TrainOptions, train
from tests.drawing import jpeg, photograph

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
# What a test has not: a GPU, sixteen processes, and the time of a whole run.
SMALLER = {'"cuda:0"': '"cpu"', "workers=16": "workers=1", "range(90)": "range(1)", "128": "4"}
FAR_AWAY = "://"


def blocks():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
            yield pytest.param(code, id=f"{page.name} {number}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages could have been written: ILSVRC, imagenet256 and run, a few images each."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(4)
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            (folder / "ILSVRC" / split / wnid).mkdir(parents=True)
            for number in range(10026, 10030):
                name = f"{wnid}_{number}.JPEG" if split == "train" else f"val_{wnid}_{number}.JPEG"
                path = folder / "ILSVRC" / split / wnid / name
                path.write_bytes(jpeg(photograph(rng)))
    shard(folder / "ILSVRC", folder / "imagenet256", ShardConfig(seed=1), RunOptions(workers=1))
    compute_stats(folder / "imagenet256", workers=1)
    settings = ("loader.batch=4", "model.conv1.out=4", "model.fc6.out=8", "model.fc7.out=8")
    options = TrainOptions(smoke=True, epochs=1, settings=settings)
    train(folder / "imagenet256", folder / "run", options)
    return folder


@pytest.mark.parametrize("code", [p for p in blocks() if FAR_AWAY not in p.values[0]])
def test_the_python_of_the_pages_runs(code, folder):
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    script = folder / "from_the_page.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [p for p in blocks() if FAR_AWAY in p.values[0]])
def test_the_python_that_needs_a_network_calls_what_there_is(code):
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert calls
    for call in calls:
        names = {word.arg: None for word in call.keywords}
        inspect.signature(getattr(pipelines, call.func.id)).bind_partial(*call.args, **names)


def slug(heading):
    """The anchor that a heading gets on the web."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def lines(pattern):
    text = "\n".join(page.read_text().replace("\\\n", " ") for page in PAGES)
    return re.findall(pattern, text, re.MULTILINE)


@pytest.mark.parametrize("line", lines(r"^    (?:\S*/)?python ((?:-m )?[\w./]+.*?)(?:\s{2,}.*)?$"))
def test_every_script_of_the_pages_is_there_with_its_options(line):
    words = line.split()
    if words[:2] == ["-m", "pytest"]:
        marks = tomllib.loads((ROOT / "pyproject.toml").read_text())
        named = [mark.split(":")[0] for mark in marks["tool"]["pytest"]["ini_options"]["markers"]]
        assert words[3] in named
        return
    source = (ROOT / words[0]).read_text()
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))


@pytest.mark.parametrize("extra", lines(r"alexprep\[(\w+)\]"))
def test_every_extra_of_the_pages_is_in_the_project(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


@pytest.mark.parametrize("line", lines(r"torchrun (.*?-m alexprep)"))
def test_torchrun_knows_the_options_of_the_pages(line):
    words = re.sub(r'"[^"]*"', "node0:29500", line).split()
    parsed = get_args_parser().parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "alexprep")
