"""README and docs do as they say: their commands and snippets run, at toy size, on real files.

What is not run is listed in NOT_RUN, with the reason; tests/test_readme.py parses it.
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
NOT_RUN = {
    r"alexprep demo": "tests/test_demo.py runs it",
    r"alexprep doctor": "tests/test_doctor.py runs it; it fails where something is to be mended",
    r"alexprep check-imagenet": "needs ImageNet; tests/test_imagenet.py has what is not",
    r"--replicas 4|--nproc-per-node 8|cuda_graph|gpu-check|pytest -m gpu": "needs GPUs",
    r"/shared/|srun |dask ": "needs several machines; tests/test_launch.py and"
    " tests/test_shard_cluster.py start processes instead",
    r"s3://": "needs an object store; tests/test_shard_remote.py starts one",
    r"~/flowers": "needs a download; tests/test_fine_tuning.py has weights of its own",
    r"_COMPLETE=": "needs another shell; tests/test_terminal.py completes in bash",
    r"python benchmarks/": "takes hours; tests/test_learning_scripts.py has their parts",
    r"^pip |^make |python -m build": "changes the installation; .ci/run is made of them",
}
# A network of four kernels and eight units, and few images.
TOY = (
    "--set loader.batch=4 --set model.conv1.out=4 --set model.conv2.out=4 --set model.conv3.out=4 "
    "--set model.fc6.out=8 --set model.fc7.out=8"
)
SMALLER = {
    '"ILSVRC", "imagenet256"': '"ILSVRC", "imagenet256-again"',
    "cuda:0,cuda:1": "cpu,cpu",
    "cuda:0": "cpu",
    "range(90)": "range(1)",
    "epochs=90": "epochs=1",
    "batch=128": "batch=4",
    "build(code2012())": "build(smoke(code2012(), 224, 2))",
    "import code2012\n": "import code2012, smoke\n",
}
FAR_AWAY = "://"
CONSOLE = [(page, command) for page in RUN for command in commands(page.read_text())]
# Commands in the text of a page, or in the help of a command, and what they begin with.
PROGRAMS = r"(?:\S*/)?(?:alexprep|torchrun|srun|dask|python|pip|make) "
LINE = re.compile(
    rf"^ {{4}}(?: {{2}})?((?:[A-Z_]+=\S+ )*{PROGRAMS}.*?)(?:\s+#\s.*)?$", re.MULTILINE
)
# Each once, in the order of the pages.
LINES = list(
    dict.fromkeys(
        line for page in PAGES for line in LINE.findall(page.read_text().replace("\\\n", ""))
    )
)


def slow(test):
    """The first test that has `ran` waits for all commands."""
    return pytest.mark.slow(pytest.mark.timeout(1800)(test))


def make_home(home):
    """What the pages call ~: photographs of two classes in ILSVRC, and of four in photos."""
    rng = np.random.default_rng(4)
    sources = {
        "ILSVRC": (("n01440764", "n01443537"), 300),
        "photos": (("n01443537", "n01641577", "n01698640", "n01945685"), 80),
    }
    for source, (classes, side) in sources.items():
        for split in ("train", "val"):
            for wnid in classes:
                folder = home / source / split / wnid
                folder.mkdir(parents=True)
                for number in range(10026, 10030):
                    name = (
                        f"{wnid}_{number}.JPEG" if split == "train" else f"val_{wnid}_{number}.JPEG"
                    )
                    (folder / name).write_bytes(jpeg(photograph(rng, side, side)))
    # Images that the pages name.
    (home / "ILSVRC/train/n01440764/n01440764_tench.JPEG").write_bytes(jpeg(photograph(rng)))
    (home / "photos/val/n01443537/val_1917.JPEG").write_bytes(jpeg(photograph(rng)))
    (home / "cat.jpg").write_bytes(jpeg(photograph(rng)))
    photograph(rng).save(home / "dog.png")
    (home / "shards").symlink_to(home / "imagenet256" / "train")
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


def toy(command):
    """The command as documented, with options that make it small."""
    command = command.replace("cuda:0,cuda:1", "cpu,cpu").replace("cuda:0", "cpu")
    options = TOY if "--epochs" in command else f"{TOY} --epochs 1"
    command = re.sub(r"(alexprep train (?:[^|>]|2>)*?)(?=$| 2>| \|)", rf"\1 {options}", command)
    command = re.sub(r"(alexprep bench \w+)", r"\1 --rounds 1 --images 32", command)
    return re.sub(r"(alexprep report \S+)", r"\1 --images 8", command)


def reason_not_to_run(command):
    return next((reason for part, reason in NOT_RUN.items() if re.search(part, command)), "")


def documented_output(page, command):
    """What a page shows below a command."""
    blocks = "\n".join(BLOCK.findall(page.read_text()))
    output = f"\n{blocks}\n".split(f"\n$ {command}\n", 1)[1]
    return "" if output.startswith("$ ") else output.split("\n$ ")[0]


@pytest.fixture(scope="module")
def ran(home):
    """Every command of the pages, run in order: (page, command) -> output."""
    outputs = {}
    for page, command in CONSOLE:
        if not reason_not_to_run(command):
            fails = "\nError: " in f"\n{documented_output(page, command)}"
            outputs[page, command] = shell(toy(command), home, check=not fails)
    return outputs


@slow
def test_every_command_of_the_pages_runs(ran):
    assert len(ran) > 20


@slow
def test_every_command_in_the_text_and_in_the_help_runs(tmp_path):
    home = make_home(tmp_path)
    for command in commands((ROOT / "README.md").read_text()):
        if re.match(r"alexprep (shard|stats) ", command):
            shell(command, home, check=True)
    run = [line for line in LINES if not reason_not_to_run(line)]
    assert len(run) > 15
    outputs = {}
    for number, line in enumerate(run):
        # A run has one recipe; the pages call each of them ~/run.
        own = re.sub(r"~/run(?= --recipe)", f"~/run{number}", line)
        outputs[line] = shell(toy(own), home, folder=home, check=True)
    for launcher, replicas in (("torchrun", 1), ("--replicas 2", 2)):
        (output,) = (text for line, text in outputs.items() if launcher in line)
        assert output.count(f"2 columns x {replicas} replicas") == 1
        assert output.count("1 epochs, ") == 1


def test_only_what_needs_more_than_this_machine_is_not_run():
    for part in NOT_RUN:
        assert any(re.search(part, line) for line in LINES), part


@slow
@pytest.mark.parametrize(("page", "command"), CONSOLE, ids=lambda value: getattr(value, "stem", 0))
def test_the_shown_output_has_the_form_of_the_real_one(page, command, ran):
    if (page, command) in ran:
        shown, real = documented_output(page, command).splitlines(), ran[page, command].splitlines()
        assert bool(shown) == bool(real)
        for line in shown:
            assert any(same_form(line, other) for other in real), (line, real)


def same_form(shown, real):
    """Whether two lines differ in numbers, names and paths alone: their first words agree."""
    lines = (re.sub(r"n\d{8}.*", "class", line.replace("~", "")) for line in (shown, real))
    words = [re.findall(r"[A-Za-z]{3,}", line)[:2] for line in lines]
    return words[0][:1] == words[1][:1] or not words[0]


def blocks():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S)):
            yield pytest.param(code, id=f"{page.name} {number}")


@slow
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


@slow
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
