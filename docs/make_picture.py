"""Draw the picture of the README: parts of the page that `alexprep report` writes for the demo.

Wants a chromium (`make browser`) and a finished demo.

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
COLUMNS = (("kernels",), ("neighbours",))
WIDTH, SHOWN, GAP = 860, 640, 12  # of the page, of a column as it is shown, between parts
PAPER = (250, 249, 246)
BOXES = "[...document.querySelectorAll('section')].map(s => [s.id, s.getBoundingClientRect()])"
BOX = (
    f"Object.fromEntries({BOXES}.map(([id, b]) => "
    "[id, [b.left, b.top + scrollY, b.right, b.bottom + scrollY].map(Math.round)]))"
)


def sections(page: Path, folder: Path) -> dict[str, Image.Image]:
    """Every section of a report as a browser shows it."""
    browser = Browser(folder)
    try:
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(page, WIDTH)
        boxes = browser.ask(BOX)
        browser.screenshot(folder / "page.png")
    finally:
        browser.close()
    with Image.open(folder / "page.png") as whole:
        return {name: whole.convert("RGB").crop(tuple(box)) for name, box in boxes.items()}


def montage(parts: dict[str, Image.Image]) -> Image.Image:
    """The columns side by side, cut to the shorter one."""
    side = max(part.width for part in parts.values())
    heights = [sum(parts[name].height + GAP for name in names) + GAP for names in COLUMNS]
    drawn = Image.new("RGB", (2 * side + 3 * GAP, min(heights)), PAPER)
    for place, names in enumerate(COLUMNS):
        top = GAP
        for name in names:
            drawn.paste(parts[name], (GAP + place * (side + GAP), top))
            top += parts[name].height + GAP
    height = round(drawn.height * 2 * SHOWN / drawn.width)
    return drawn.resize((2 * SHOWN, height), Image.Resampling.LANCZOS)


def main() -> None:
    """Write docs/images/report.jpg from the demo named on the command line."""
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else sys.exit(__doc__))
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(demo / "run", Path(folder) / "report.html")
        drawn = montage(sections(page, Path(folder)))
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=64, optimize=True, progressive=True)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(out.getvalue())


if __name__ == "__main__":
    main()
