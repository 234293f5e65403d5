import shutil

import pytest
from click.testing import CliRunner

from alexnet.training import metrics
from alexprep.cli import cli
from alexprep.demo import Demo, DemoConfig, run_demo, table
from alexprep.errors import PrepareError
from alexprep.synthetic import DrawConfig

TINY = DemoConfig(
    draw=DrawConfig(train=4, validation=2, longest=90), epochs=1, settings=("loader.batch=8",)
)
STAGES = ["draw", "shard", "stats", "train", "eval, 1 view", "eval, 10 views"]


@pytest.mark.slow
def test_the_demo_learns_nine_in_ten_of_the_shapes(tmp_path):
    printed = CliRunner().invoke(cli, ["demo", str(tmp_path / "demo")], catch_exceptions=False)
    lines = {line[:14].strip(): line for line in printed.stdout.splitlines()}
    assert list(lines)[1:7] == STAGES
    for views in ("eval, 1 view", "eval, 10 views"):
        top1 = float(lines[views].split("top-1 ")[1].split("%")[0])
        assert top1 >= 90
    assert str(tmp_path / "demo" / "run") in lines["run"]
    # It ends with the first epoch that has no error, or with the last one.
    errors = [r["top1"] for r in metrics.read(tmp_path / "demo" / "run") if r["kind"] == "epoch"]
    assert f" {len(errors)} of 15 epochs" in lines["train"]
    assert all(error > 0 for error in errors[:-1])
    assert errors[-1] == 0 or len(errors) == 15


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "demo"
    return out, table(run_demo(out, TINY))


def test_a_demo_that_was_killed_before_its_record_can_be_repeated(tmp_path):
    (tmp_path / "demo.json.partial").write_text("{")
    assert Demo(tmp_path, TINY).stages == {}
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_a_finished_demo_prints_its_table_again_and_does_nothing(tiny):
    out, before = tiny
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert table(run_demo(out, TINY)) == before
    written.pop(out / "demo.json")
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())


def test_a_demo_stopped_between_two_stages_resumes_with_the_next(tiny, tmp_path):
    out, _ = tiny
    copy = shutil.copytree(out, tmp_path / "demo")
    record = (copy / "demo.json").read_text()
    (copy / "demo.json").write_text(record.replace('"eval, 10 views"', '"was something else"'))
    stages = run_demo(copy, TINY).stages
    assert [name for name in stages if name in STAGES] == STAGES


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(PrepareError, match="is not empty and has no demo"):
        run_demo(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_demo_of_another_configuration_is_refused(tiny):
    out, _ = tiny
    with pytest.raises(PrepareError, match=r"another configuration.*rm -r"):
        run_demo(out, DemoConfig())
