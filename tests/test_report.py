"""The pages of `alexprep report`, without a browser: what they say, and what is refused."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import plotly.graph_objects
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import RunError
from alexprep.errors import PrepareError
from alexprep.report import folder_kind, write_report
from alexprep.report.run_summary import read_log
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
    """What holds for every page: it is well-formed, labelled and self-contained."""
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
    path = write_report(run)
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
    for path in (write_report(run), write_report(dataset)):
        page = Page(path)
        assert "default-src 'none'" in str(page.all("meta"))
        addresses = [attrs.get("src") or attrs.get("href") for _, attrs in page.elements]
        assert all(re.match("data:|#", address) for address in addresses if address)
        assert path.stat().st_size < 5e6


def test_a_run_of_ninety_epochs_has_its_drops_marked_and_no_more_points_than_pixels(run, tmp_path):
    page = Page(write_report(ninety_epochs(run, tmp_path / "long")))
    check_page(page)
    loss = page.charts["loss"]
    texts = {(mark["x"], mark["text"]) for mark in loss["layout"]["annotations"]}
    assert texts == {
        (25, "lr 0.001"),
        (51, "lr 0.0001"),
        (79, "lr 1e-05"),
        (66, "no colour shift"),
        (72, "conv1 frozen"),
    }
    assert len(loss["data"][0]["x"]) <= 1200
    assert len(page.charts["errors"]["data"][0]["x"]) == 90


def test_a_run_in_its_first_epoch_can_be_looked_at(moved):
    lines = (moved / "metrics.jsonl").read_text().splitlines(keepends=True)
    # Two steps were logged, the third line is being written.
    (moved / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    (moved / "checkpoints" / "best.safetensors").unlink()
    page = Page(write_report(moved))
    check_page(page)
    assert "No epoch has finished yet" in page.text
    assert f"0 of {EPOCHS}" in page.text


def test_a_run_whose_data_set_is_gone_says_so_and_shows_the_rest(moved, dataset):
    config = json.loads((moved / "config.json").read_text())
    del config["crc32"]
    config["calls"][-1]["dataset"] = "/nowhere/imagenet"
    (moved / "config.json").write_text(json.dumps(config))
    page = Page(write_report(moved))
    check_page(page)
    assert "/nowhere/imagenet" in page.text
    assert "--data" in page.text
    assert len(page.all("img")) == 2  # the kernels of both columns
    page = Page(write_report(moved, data=dataset))
    assert f"{VALIDATION} images" in page.text


def test_saved_predictions_in_the_run_are_in_the_table_of_errors(moved, dataset):
    from alexprep.model.evaluation import EvalOptions, evaluate  # noqa: PLC0415

    saved = moved / "ten.predictions"
    errors = evaluate([moved], dataset, EvalOptions(views=10), save=saved)
    page = Page(write_report(moved))
    row = re.search(r"10 views: corners and centre, mirrored ([\d.]+)% .*? ([\d.]+)% ", page.text)
    assert float(row[1]) == pytest.approx(100 * errors.top1, abs=0.01)
    assert float(row[2]) == pytest.approx(100 * errors.top5, abs=0.01)
    assert f"ten.predictions: drawn validation, 10 views {row[1]}%" in page.text


def test_fewer_images_can_be_predicted_and_the_page_says_how_many(run, tmp_path):
    page = Page(write_report(run, tmp_path / "some.html", images=10))
    assert f"10 of {VALIDATION}" in page.text


def test_the_page_of_a_data_set_counts_what_it_holds(dataset):
    page = Page(write_report(dataset))
    check_page(page)
    assert f"train {TRAIN} images in 3 shards" in page.text
    assert page.charts["counts"]["data"][0]["y"] == [17, 17, 16]
    assert re.search(r"validation 24 3 [\d.]+ kB 8 / 8 / 8", page.text)
    assert "All source images have 500 x 375 pixels." in page.text
    assert "class 2" in page.text
    # the mean image, and three classes stored and in six epochs
    assert len(page.all("img")) == 1 + 3 * 7


def test_a_data_set_without_statistics_is_shown_with_the_command_for_them(tmp_path):
    page = Page(write_report(make_dataset(tmp_path / "bare", stats=False)))
    check_page(page)
    assert f"Run `alexprep stats {tmp_path / 'bare'}`." in page.text


def test_names_from_outside_are_text_and_never_markup(tmp_path):
    root = make_dataset(tmp_path / "odd")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["classes"][1][1] = "</script><script>alert(1)</script><b>"
    manifest["classes"][2][1] = "<!--<script>\x00\x1b[2J\ud800"  # a surrogate UTF-8 cannot hold
    manifest["name"] = "\"><img src=x onerror='alert(1)'>"
    manifest["source"]["name"] = "&lt;i&gt;{{ 7 * 7 }}"
    (root / "manifest.json").write_text(json.dumps(manifest))
    page = Page(write_report(root))
    check_page(page)
    assert "</script><script>alert(1)</script><b>" in page.text
    assert "<!--<script>" in page.text
    assert manifest["name"] in page.text
    assert "&lt;i&gt;{{ 7 * 7 }}" in page.text
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
        write_report(root)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("*report*"))


@pytest.mark.parametrize(
    "text", ["{", "null", '{"recipe": {"train": {}}}', "[" * 100_000, b'{"recipe": "\xff"}']
)
def test_a_damaged_config_is_named(moved, text):
    (moved / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PrepareError, match=r"config\.json is damaged") as refused:
        write_report(moved)
    assert "\n" not in str(refused.value)


def test_a_run_without_its_config_is_refused(moved):
    (moved / "config.json").unlink()
    with pytest.raises(PrepareError, match=r"config\.json cannot be read"):
        write_report(moved)


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"kind":', b"null", b"{}", b"[]", b"", b'"step"', b'{"kind": "other"}'),
        *(b'{"kind": "step"}', b'{"kind": "step", "loss": "\xff"}', b"[" * 100_000),
    ],
)
def test_a_line_of_the_log_that_is_no_record_is_named(moved, line):
    before = (moved / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (moved / "metrics.jsonl").write_bytes(b"".join([*before[:2], line, b"\n", *before[2:]]))
    with pytest.raises(PrepareError, match=r"metrics\.jsonl, line 3, is damaged") as refused:
        write_report(moved)
    assert "\n" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
STEP = {"kind": "step", "epoch": 0, "at": 1, "of": 2, "loss": 1.0, "lr": 0.1} | {
    "images_per_second": 9.0,
    "waiting": 0.0,
}


@given(st.sampled_from([*STEP, "more"]), JSON)
def test_a_record_of_other_values_is_read_or_refused(tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("log")
    (folder / "metrics.jsonl").write_text(json.dumps({**STEP, name: value}) + "\n")
    with contextlib.suppress(PrepareError):
        (record,) = read_log(folder)
        assert math.isfinite(record.epochs)


def test_a_device_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(RunError, match="There is no cuda:97 on this machine"):
        write_report(run, tmp_path / "page.html", device="cuda:97")


def test_a_loss_that_is_no_number_leaves_a_gap_in_its_curve(moved):
    lines = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["validation_loss"] = float("nan")
    (moved / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    validation = Page(write_report(moved)).charts["loss"]["data"][1]
    assert validation["y"][-1] is None
    assert validation["y"][0] > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308])
def test_a_log_of_values_that_are_not_finite_still_makes_a_page(moved, value):
    lines = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.update((name, value) for name, old in line.items() if isinstance(old, float))
    (moved / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    check_page(Page(write_report(moved)))


def test_a_folder_of_runs_names_what_is_in_it(run):
    with pytest.raises(PrepareError, match=re.escape(str(run))):
        folder_kind(run.parent)


@pytest.mark.parametrize("out", ["/sys/report.html", "/nowhere/report.html", "/dev/null/r.html"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(run, out):
    with pytest.raises(PrepareError, match=f"{out} cannot be written .* --out"):
        write_report(run, out=type(run)(out))


def test_a_data_set_of_other_classes_is_refused(run, tmp_path):
    other = make_dataset(tmp_path / "other")
    text = (other / "manifest.json").read_text().replace("n00000002", "n00000003")
    (other / "manifest.json").write_text(text)
    with pytest.raises(RunError, match="other classes"):
        write_report(run, tmp_path / "page.html", data=other)


def test_a_failed_report_leaves_the_previous_one(tmp_path):
    root = make_dataset(tmp_path / "dataset")
    before = write_report(root).read_bytes()
    shard = next((root / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[1024:4096] = bytes(3072)
    for tar in (root / "train").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    shard.write_bytes(data)
    with pytest.raises((DataError, PrepareError), match="alexprep verify"):
        write_report(root)
    assert (root / "report.html").read_bytes() == before
    assert not list(root.glob(".report*"))


READ = """
import datasets, sys
for how in ({"path": "webdataset", "data_dir": sys.argv[1]}, {"path": sys.argv[1]}):
    tables = datasets.load_dataset(**how)
    print({split: table.num_rows for split, table in sorted(tables.items())})
"""


def test_a_report_in_a_data_set_does_no_harm_to_its_readers(tmp_path):
    root = make_dataset(tmp_path / "shards")
    write_report(root)
    process = subprocess.run(
        [sys.executable, "-I", "-c", READ, root],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {"train": TRAIN, "validation": VALIDATION}
    assert process.stdout.splitlines() == [str(rows)] * 2
