"""README and docs do as they say: their commands and snippets run, at toy size, on real files.

What is not run is listed in NOT_RUN, with the reason; tests/test_readme.py parses the rest.
"""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from cogapp import Cog

import pipelines
from alexnet.training import metrics
from docs.generate.outputs import BLOCK, commands, shell
from tests.documented import assert_documented
from tests.drawing import jpeg, photograph

ROOT = Path(__file__).parents[1]
# In the order in which a reader goes through them: later pages use the files of earlier ones.
GUIDE = ("shard", "your-images", "train", "evaluate", "pytorch")
GUIDE += ("other-networks", "decode-once", "troubleshooting")
RUN = [ROOT / "README.md", *(ROOT / "docs" / "guide" / f"{name}.md" for name in GUIDE)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
NOT_RUN = {"alexprep demo": "tests/test_demo.py runs it"}
# A network of four kernels and eight units, and few images.
TOY = (
    "--set loader.batch=4 --set model.conv1.out=4 --set model.conv2.out=4 --set model.conv3.out=4 "
    "--set model.fc6.out=8 --set model.fc7.out=8"
)
SMALLER = {
    "cuda:0": "cpu",
    "range(90)": "range(1)",
    "epochs=90": "epochs=1",
    "batch=128": "batch=4",
    "build(code2012())": "build(smoke(code2012(), 224, 2))",
    "import code2012\n": "import code2012, smoke\n",
}
FAR_AWAY = "://"
CONSOLE = [(page, command) for page in RUN for command in commands(page.read_text())]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the pages call ~: photographs of two classes in ILSVRC, and of three in photos."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(4)
    sources = {
        "ILSVRC": (("n01440764", "n01443537"), 300),
        "photos": (("n01443537", "n01641577", "n01698640"), 80),
    }
    for source, (classes, side) in sources.items():
        for split in ("train", "val"):
            for wnid in classes:
                folder = home / source / split / wnid
                folder.mkdir(parents=True)
                for number in range(10026, 10030):
                    name = f"{split}_{wnid}_{number}.JPEG"
                    (folder / name).write_bytes(jpeg(photograph(rng, side, side)))
    # The two images that the pages name.
    (home / "ILSVRC/train/n01440764/n01440764_tench.JPEG").write_bytes(jpeg(photograph(rng)))
    (home / "photos/val/n01443537/val_1917.JPEG").write_bytes(jpeg(photograph(rng)))
    return home


def toy(command):
    """The command as documented, with options that make it small."""
    command = re.sub(r"(alexprep train (?:[^|>]|2>)*?)(?=$| 2>| \|)", rf"\1 {TOY}", command)
    return re.sub(r"(alexprep report \S+)", r"\1 --images 8", command)


def documented_output(page, command):
    """What a page shows below a command."""
    blocks = "\n".join(BLOCK.findall(page.read_text()))
    return blocks.split(f"$ {command}\n")[1].split("\n$ ")[0]


@pytest.fixture(scope="module")
def ran(home):
    """Every command of the pages, run in order: (page, command) -> output."""
    outputs = {}
    for page, command in CONSOLE:
        if not any(command.startswith(name) for name in NOT_RUN):
            fails = "\nError: " in f"\n{documented_output(page, command)}"
            outputs[page, command] = shell(toy(command), home, check=not fails)
    return outputs


@pytest.mark.slow
def test_every_command_of_the_pages_runs(ran):
    assert len(ran) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), CONSOLE, ids=lambda value: getattr(value, "stem", 0))
def test_the_shown_output_has_the_form_of_the_real_one(page, command, ran):
    if (page, command) in ran:
        shown, real = documented_output(page, command).splitlines(), ran[page, command].splitlines()
        assert bool(shown) == bool(real)
        for line in shown:
            assert any(same_form(line, other) for other in real), (line, real)


def same_form(shown, real):
    """Whether two lines differ in numbers, names and paths alone: their first words agree."""
    words = [re.findall(r"[A-Za-z]{3,}", line.replace("~", ""))[:2] for line in (shown, real)]
    return words[0][:1] == words[1][:1] or not words[0]


def blocks():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
            yield pytest.param(code, id=f"{page.name} {number}")


@pytest.mark.slow
@pytest.mark.parametrize("code", [p for p in blocks() if FAR_AWAY not in p.values[0]])
def test_the_python_of_the_pages_runs(code, home, ran):
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    script = home / "from_the_page.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [p for p in blocks() if FAR_AWAY in p.values[0]])
def test_the_python_that_needs_a_network_calls_what_there_is(code):
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert calls
    for call in calls:
        names = {word.arg: None for word in call.keywords}
        inspect.signature(getattr(pipelines, call.func.id)).bind_partial(*call.args, **names)


@pytest.mark.slow
def test_torchrun_as_documented_trains_a_column_in_each_of_two_processes(home, ran):
    page = (ROOT / "docs" / "notes" / "machines.md").read_text().replace("\\\n", "")
    [command] = re.findall(r"^    (OMP_NUM_THREADS=1 torchrun .*)$", page, re.MULTILINE)
    output = shell(toy(command), home, check=True)
    assert "2 columns x 1 replicas" in output
    assert (home / "two" / "checkpoints" / "best.safetensors").exists()


@pytest.mark.slow
def test_the_records_of_a_run_are_as_documented(home, ran):
    records = list(metrics.read(home / "run"))
    assert {record["kind"] for record in records} == {"step", "epoch"}
    for record in records:
        assert_documented(record, record["kind"])


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "[[[cog" in page.read_text()], ids=lambda page: page.name
)
def test_generated_tables_are_current(page):
    # `make docs` writes them.
    assert Cog().main(["cog", "-I", str(ROOT), "--check", str(page)]) == 0


def slug(heading):
    """The anchor that a heading gets on the web."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_lines_of_the_readme_fit_100_columns():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and line[0] not in "|!"] == []


@pytest.mark.parametrize("name", GUIDE)
def test_a_guide_page_can_be_read_in_five_minutes(name):
    page = (ROOT / "docs" / "guide" / f"{name}.md").read_text()
    assert len(re.sub(r"```.*?```", "", page, flags=re.DOTALL).split()) < 600


@pytest.mark.parametrize(
    "extra",
    sorted({e for page in PAGES for e in re.findall(r"alexprep\[(\w+)\]", page.read_text())}),
)
def test_every_extra_of_the_pages_is_in_the_project(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
