"""The pages of `alexprep report`, without a browser: what they say, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import plotly.graph_objects
import pytest

from alexnet.errors import RunError
from alexprep.errors import PrepareError
from alexprep.report.report import kind_of, report
from pipelines.errors import DataError
from tests.reports import EPOCHS, TRAIN, VALIDATION, make_dataset, make_run, ninety_epochs

VOID = {"meta", "link", "img", "br"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("report") / "dataset")


@pytest.fixture(scope="module")
def run(dataset):
    return make_run(dataset, dataset.parent / "run")


@pytest.fixture
def moved(run, tmp_path):
    """A copy of the run that may be spoiled."""
    return shutil.copytree(run, tmp_path / "run")


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.charts = {}
        self.feed(path.read_text("utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "script" and attrs.get("type") == "application/json":
            self.charts[self.open[-2][1]["id"].removeprefix("chart-")] = json.loads(data)
        elif tag not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def check_page(page):
    """What every page owes to those who use it, whatever it shows."""
    assert not page.open  # every element is closed
    idents = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(idents) == len(set(idents))
    assert all(link["href"].removeprefix("#") in idents for link in page.all("a"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    for chart in (attrs for _, attrs in page.elements if attrs.get("class") == "chart"):
        assert chart["role"] == "img"
        assert len(chart["aria-label"]) > 20
    for spec in page.charts.values():
        plotly.graph_objects.Figure(spec)  # ValueError names a property that plotly has not


def test_the_page_of_a_run_shows_everything_there_is_to_see(dataset, run):
    path = report(run)
    assert path == run / "report.html"
    page = Page(path)
    check_page(page)
    assert set(page.charts) >= {"loss", "errors", "colourful", "throughput"}
    assert len(page.charts["errors"]["data"][0]["x"]) == EPOCHS
    assert f"{EPOCHS} of {EPOCHS}" in page.text
    assert "10 views" in page.text
    # two columns of kernels, eight answers, three rows (one a class) of an image and six others
    assert len(page.all("img")) == 2 + 8 + 3 * 7
    assert [path.name for path in run.iterdir() if "report" in path.name] == ["report.html"]


def test_a_page_loads_nothing_from_anywhere(run, dataset):
    for path in (report(run), report(dataset)):
        page = Page(path)
        assert "default-src 'none'" in str(page.all("meta"))
        addresses = [attrs.get("src") or attrs.get("href") for _, attrs in page.elements]
        assert all(re.match("data:|#", each) for each in addresses if each)
        assert path.stat().st_size < 5e6


def test_a_run_of_ninety_epochs_has_its_drops_marked_and_no_more_points_than_pixels(run, tmp_path):
    page = Page(report(ninety_epochs(run, tmp_path / "long")))
    check_page(page)
    loss = page.charts["loss"]
    texts = {(mark["x"], mark["text"]) for mark in loss["layout"]["annotations"]}
    assert texts == {
        (25, "rate 0.001"),
        (51, "rate 0.0001"),
        (79, "rate 1e-05"),
        (66, "no colour noise"),
        (72, "conv1 frozen"),
    }
    assert len(loss["data"][0]["x"]) <= 1200
    assert len(page.charts["errors"]["data"][0]["x"]) == 90


def test_a_run_in_its_first_epoch_can_be_looked_at(moved):
    lines = (moved / "metrics.jsonl").read_text().splitlines(keepends=True)
    # Two steps were logged, the third line is being written.
    (moved / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    (moved / "checkpoints" / "best.safetensors").unlink()
    page = Page(report(moved))
    check_page(page)
    assert "No epoch has ended yet" in page.text
    assert f"0 of {EPOCHS}" in page.text


def test_a_run_whose_data_set_is_gone_says_so_and_shows_the_rest(moved, dataset):
    config = json.loads((moved / "config.json").read_text())
    config["calls"][-1]["dataset"] = "/nowhere/imagenet"
    (moved / "config.json").write_text(json.dumps(config))
    page = Page(report(moved))
    check_page(page)
    assert "/nowhere/imagenet" in page.text
    assert "--data" in page.text
    assert len(page.all("img")) == 2  # the kernels of both columns
    page = Page(report(moved, data=dataset))
    assert f"{VALIDATION} images" in page.text


def test_predictions_that_eval_kept_in_the_run_are_in_the_table_of_errors(moved, dataset):
    from alexprep.model.evaluation import EvalOptions, evaluate  # noqa: PLC0415

    kept = moved / "ten.predictions"
    found = evaluate([moved], dataset, EvalOptions(views=10), save=kept)
    page = Page(report(moved))
    row = re.search(r"10 views: corners, centre, mirrored ([\d.]+)% .*? ([\d.]+)% ", page.text)
    assert float(row[1]) == pytest.approx(100 * found.top1, abs=0.01)
    assert float(row[2]) == pytest.approx(100 * found.top5, abs=0.01)
    assert f"ten.predictions: drawn validation, 10 views {row[1]}%" in page.text


def test_fewer_images_are_asked_about_and_the_page_says_how_many(run, tmp_path):
    page = Page(report(run, tmp_path / "some.html", images=10))
    assert f"10 of {VALIDATION}" in page.text


def test_the_page_of_a_data_set_counts_what_it_holds(dataset):
    page = Page(report(dataset))
    check_page(page)
    assert f"train {TRAIN} images in 3 shards" in page.text
    assert page.charts["counts"]["data"][0]["y"] == [17, 17, 16]
    assert f"validation: every class has {VALIDATION // 3} images." in page.text
    assert "Every source image is 500 x 375 pixels." in page.text
    assert "class 2" in page.text
    # the mean image, and three classes stored and in six epochs
    assert len(page.all("img")) == 1 + 3 * 7


def test_a_data_set_without_statistics_is_shown_with_the_command_for_them(tmp_path):
    page = Page(report(make_dataset(tmp_path / "bare", stats=False)))
    check_page(page)
    assert f"Run `alexprep stats {tmp_path / 'bare'}`." in page.text


def test_names_from_outside_are_text_and_never_markup(tmp_path):
    root = make_dataset(tmp_path / "odd")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["classes"][1][1] = "</script><script>alert(1)</script><b>"
    manifest["name"] = '"><img src=x>'
    (root / "manifest.json").write_text(json.dumps(manifest))
    page = Page(report(root))
    check_page(page)
    assert "</script><script>alert(1)</script><b>" in page.text
    assert len(page.all("script")) == 2 + len(page.charts)


def spoil_nothing(root):
    root.mkdir()


def spoil_checkpoints(root):
    root.mkdir()
    (root / "config.json").write_text("{}")


def spoil_unfinished(root):
    (root / ".alexprep").mkdir(parents=True)


def spoil_version(root):
    root.mkdir()
    (root / "manifest.json").write_text('{"version": 99}')


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: None, "is not a folder"),
        (spoil_nothing, "is neither a run .* nor a data set"),
        (spoil_checkpoints, "has no checkpoint yet"),
        (spoil_unfinished, "not a finished data set"),
        (spoil_version, "version 99; this alexprep reads"),
    ],
)
def test_what_cannot_be_reported_on_is_refused_in_one_line(spoil, words, tmp_path):
    root = tmp_path / "it"
    spoil(root)
    with pytest.raises((PrepareError, DataError), match=words) as refused:
        report(root)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("*report*"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "{", "is missing or damaged"),
        ("config.json", '{"recipe": {"train": {}}}', "is missing or damaged"),
        ("metrics.jsonl", '{"kind":\n', "is damaged"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(moved, name, text, words):
    (moved / name).write_text(text)
    with pytest.raises(PrepareError, match=f"{name} {words}"):
        report(moved)


def test_a_device_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(RunError, match="There is no cuda:97 here"):
        report(run, tmp_path / "page.html", device="cuda:97")


def test_a_loss_that_is_no_number_leaves_a_gap_in_its_curve(moved):
    lines = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["validation_loss"] = float("nan")
    (moved / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    validation = Page(report(moved)).charts["loss"]["data"][1]
    assert validation["y"][-1] is None
    assert validation["y"][0] > 0


def test_a_folder_of_runs_names_what_is_in_it(run):
    with pytest.raises(PrepareError, match=re.escape(str(run))):
        kind_of(run.parent)


@pytest.mark.parametrize("out", ["/sys/report.html", "/nowhere/report.html", "/dev/null/r.html"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(run, out):
    with pytest.raises(PrepareError, match=f"{out} cannot be written .* --out"):
        report(run, out=type(run)(out))


def test_a_data_set_of_other_classes_is_refused(run, tmp_path):
    other = make_dataset(tmp_path / "other")
    text = (other / "manifest.json").read_text().replace("n00000002", "n00000003")
    (other / "manifest.json").write_text(text)
    with pytest.raises(RunError, match="other classes"):
        report(run, tmp_path / "page.html", data=other)


def test_a_page_that_cannot_be_finished_leaves_the_one_before(tmp_path):
    root = make_dataset(tmp_path / "dataset")
    before = report(root).read_bytes()
    shard = next((root / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[1024:4096] = bytes(3072)
    for each in (root / "train").glob("*.tar"):
        each.write_bytes(bytes(each.stat().st_size))
    shard.write_bytes(data)
    with pytest.raises((DataError, PrepareError), match="alexprep verify"):
        report(root)
    assert (root / "report.html").read_bytes() == before
    assert not list(root.glob(".report*"))


READ = """
import datasets, sys
for how in ({"path": "webdataset", "data_dir": sys.argv[1]}, {"path": sys.argv[1]}):
    found = datasets.load_dataset(**how)
    print({split: table.num_rows for split, table in sorted(found.items())})
"""


def test_a_report_in_a_data_set_does_no_harm_to_its_readers(tmp_path):
    root = make_dataset(tmp_path / "shards")
    report(root)
    done = subprocess.run(
        [sys.executable, "-I", "-c", READ, root],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {"train": TRAIN, "validation": VALIDATION}
    assert done.stdout.splitlines() == [str(rows)] * 2
