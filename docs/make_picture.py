"""Draw the picture of the README from the report of a finished demo. Needs chromium.

Example:
    alexprep demo alexprep-demo
    python -m docs.make_picture alexprep-demo
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from alexprep.report import write_report
from tests.browser import Browser

PICTURE = Path(__file__).parent / "images" / "report.jpg"
SECTIONS = ("kernels", "neighbours")  # side by side
WIDTH, COLUMN, GAP = 860, 640, 12  # pixels: of the page, of a section in the picture, in between
PAPER = (250, 249, 246)
# The table below the chart of kernels would be cut in two.
HIDE_TABLE = "document.querySelector('#kernels .scroll').remove()"
BOXES = """
Object.fromEntries([...document.querySelectorAll('section')].map(section => {
  const box = section.getBoundingClientRect();
  return [section.id, [box.left, box.top + scrollY, box.right, box.bottom + scrollY]
    .map(Math.round)];
}))
"""


def screenshots(page: Path, folder: Path) -> list[Image.Image]:
    """SECTIONS of a report as a browser shows them."""
    browser = Browser(folder)
    try:
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(page, WIDTH)
        browser.ask(HIDE_TABLE)
        boxes = browser.ask(BOXES)
        browser.screenshot(folder / "page.png")
    finally:
        browser.close()
    with Image.open(folder / "page.png") as screen:
        return [screen.convert("RGB").crop(tuple(boxes[name])) for name in SECTIONS]


def montage(images: list[Image.Image]) -> Image.Image:
    """Images side by side, cut to the height of the shortest."""
    height = min(image.height for image in images) + 2 * GAP
    width = sum(image.width + GAP for image in images) + GAP
    picture = Image.new("RGB", (width, height), PAPER)
    x = GAP
    for image in images:
        picture.paste(image, (x, GAP))
        x += image.width + GAP
    size = (COLUMN * len(images), round(height * COLUMN * len(images) / width))
    return picture.resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    """Write docs/images/report.jpg from the demo named on the command line."""
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else sys.exit(__doc__))
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(demo / "run", Path(folder) / "report.html")
        picture = montage(screenshots(page, Path(folder)))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=64, optimize=True, progressive=True)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(out.getvalue())


if __name__ == "__main__":
    main()
