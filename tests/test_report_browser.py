"""The pages of `alexprep report` in a real browser, on a desk and on a phone."""

import json
import shutil

import pytest

from alexprep.report import write_report
from tests.browser import Browser
from tests.reports import make_dataset, make_run, ninety_epochs

WIDTHS = (1280, 400)
PAGES = ("run", "long", "dataset", "alone")

EMPTY = """
[...document.querySelectorAll('.chart')].filter(chart => {
  const plot = chart.querySelector('.main-svg');
  const drawn = chart.querySelectorAll('.trace path, .points path, .lines path, .hm image, image');
  const box = plot && plot.getBoundingClientRect();
  return !plot || box.width < 150 || box.height < 150 || drawn.length == 0;
}).map(chart => chart.id)
"""
BLANK = "[...document.images].filter(i => !i.complete || !i.naturalWidth || i.width < 16).length"
WIDE = """
[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  const seen = e.checkVisibility({contentVisibilityAuto: true}) && box.width > 0 &&
    !e.closest('.chart, .skip');
  return seen && box.right > document.documentElement.clientWidth + 1;
}).map(e => e.tagName + '.' + e.className)
"""
CUT = """
[...document.querySelectorAll('.scroll')].filter(e => !e.closest('details') &&
  e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))
"""
OVERLAPS = """
[...document.querySelectorAll('section')].filter(section =>
  section.scrollWidth > section.clientWidth + 1).map(section => section.id)
"""
LAPPED = """
[...document.querySelectorAll('.chart')].flatMap(chart => {
  const texts = [...chart.querySelectorAll('.annotation-text')];
  const boxes = texts.map(text => text.getBoundingClientRect());
  return texts.filter((text, n) => boxes.slice(0, n).some(box =>
    box.left < boxes[n].right - 1 && boxes[n].left < box.right - 1 &&
    box.top < boxes[n].bottom - 1 && boxes[n].top < box.bottom - 1
  )).map(text => chart.id + ' ' + text.textContent);
})
"""
SMALL = """
[...document.querySelectorAll('main *')].filter(e =>
  [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.getClientRects().length &&
  !['SCRIPT', 'STYLE'].includes(e.tagName) && parseFloat(getComputedStyle(e).fontSize) < 11
).map(e => e.tagName + ' ' + e.textContent.slice(0, 20))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory):
    """Pages of a short run, a long one, a data set, and of a run whose data set is gone."""
    root = tmp_path_factory.mktemp("pages")
    dataset = make_dataset(root / "dataset")
    run = make_run(dataset, root / "run")
    reports = {
        "run": write_report(run),
        "long": write_report(ninety_epochs(run, root / "long")),
        "dataset": write_report(dataset, root / "dataset.html"),
    }
    dataset.rename(root / "elsewhere")
    return {**reports, "alone": write_report(run, root / "alone.html")}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_fits(browser, pages, name, width):
    browser.open(pages[name], width)
    assert browser.troubles() == []
    assert browser.requests() == [pages[name].resolve().as_uri()]
    assert browser.ask("document.querySelectorAll('.chart').length") >= (
        1 if name == "dataset" else 4
    )
    assert browser.ask(EMPTY) == []
    assert browser.ask(BLANK) == 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(WIDE) == []
    assert browser.ask(OVERLAPS) == []
    assert browser.ask(CUT) == []
    assert browser.ask(SMALL) == []
    assert browser.ask(LAPPED) == []


NAMES = (
    "<!--<script>",
    "</script><script>document.title = 'run'</script>",
    "&lt;b&gt; <b>soft</b> wheaten terrier",
)
FULL = (
    "[...document.querySelectorAll('.bars li')].filter(e => e.scrollWidth > e.clientWidth).length"
)
TICKS = "[...document.querySelectorAll('#chart-confusion .ytick text')].map(t => t.textContent)"


def test_class_names_are_shown_letter_by_letter(browser, pages):
    root = pages["run"].parents[1] / "elsewhere"
    manifest = json.loads((root / "manifest.json").read_text())
    old = [names for _, names in manifest["classes"]]
    manifest["classes"] = [
        [wnid, name] for (wnid, _), name in zip(manifest["classes"], NAMES, strict=True)
    ]
    named = shutil.copytree(root, root.parent / "named")
    (named / "manifest.json").write_text(json.dumps(manifest))
    charts = "document.querySelectorAll('.main-svg:first-child').length"
    browser.open(pages["run"], 1280)
    count, ticks = browser.ask(charts), browser.ask(TICKS)
    browser.open(write_report(pages["run"].parent, root.parent / "named.html", data=named), 1280)
    assert browser.troubles() == []
    assert browser.ask(EMPTY) == []
    assert browser.ask(charts) == count > 0
    labels = [NAMES[old.index(tick)] for tick in ticks]
    assert browser.ask(TICKS) == [name if len(name) <= 20 else f"{name[:19]}…" for name in labels]
    assert browser.ask("document.title") == "code2012 trained on drawn"
    for name in NAMES:
        assert browser.ask(f"document.querySelector('main').innerText.includes({json.dumps(name)})")
    browser.open(root.parent / "named.html", 400)
    assert browser.ask(FULL) == 0


def test_everything_folded_fits_a_phone_too(browser, pages):
    for name in ("run", "dataset"):
        browser.open(pages[name], 400)
        browser.ask(
            "document.querySelectorAll('details').forEach(details => { details.open = true })"
        )
        assert browser.ask("document.documentElement.scrollWidth") <= 400
        assert browser.ask(OVERLAPS) == []


def test_a_page_can_be_used_with_the_keyboard_alone(browser, pages):
    browser.open(pages["run"], 1280)
    focused = []
    for _ in range(14):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        focused.append(browser.ask("document.activeElement.outerHTML.slice(0, 60)"))
    assert 'class="skip"' in focused[0]
    assert 'href="#learning"' in focused[1]
    assert any(html.startswith("<summary") for html in focused)


def test_figures_follow_the_window(browser, pages):
    browser.open(pages["run"], 1280)
    wide = browser.ask("document.querySelector('.main-svg').getBoundingClientRect().width")
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=400,
        height=900,
        deviceScaleFactor=1,
        mobile=True,
    )
    narrow = "document.querySelector('.main-svg').getBoundingClientRect().width < 380"
    browser.wait_for(narrow)
    assert wide > 400
