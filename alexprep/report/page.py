"""The page: HTML that opens from disk, holds all it shows, and asks nothing of any network.

Pieces of HTML are plain strings; whatever comes from outside goes through `text`. The plotting
library is carried once, packed to a third of its size; a browser unpacks it (DecompressionStream:
browsers of 2023 and later). The page's own policy forbids it to load anything.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

Spec = dict[str, Any]  # a figure of plotly: {"data": [...], "layout": {...}}

POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; font-src data:"
)


class Section(NamedTuple):
    """A part of the page with a heading that the contents at the top lead to."""

    ident: str
    heading: str
    body: str


class Tile(NamedTuple):
    """One figure of the first glance: its name, the figure, and what it is of."""

    name: str
    value: str
    more: str = ""


class Cell(str):
    """HTML in a table; plain strings are escaped."""


def text(value: object) -> str:
    """A value as text that HTML does not take for anything else."""
    return escape(str(value))


def short(names: str) -> str:
    """The first of the names of a class."""
    return names.split(",")[0]


def paragraph(words: str) -> str:
    """Running text."""
    return f"<p>{text(words)}</p>"


def note(words: str) -> str:
    """What is missing, and how to get it."""
    return f'<p class="note" role="note">{text(words)}</p>'


def chart(ident: str, spec: Spec, *, says: str, caption: str = "", height: int = 340) -> str:
    """A figure of plotly; `says` tells those who cannot see it what it shows."""
    # "</" would end the script, whatever string it stands in.
    data = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="chart" id="chart-{ident}" role="img" aria-label="{text(says)}" '
        f'style="height:{height}px"><script type="application/json">{data}</script></div>'
        f"{below}</figure>"
    )


def picture(source: str, alt: str, *, style: str = "") -> str:
    """An image whose bytes are in its address."""
    name = f' class="{style}"' if style else ""
    return f'<img src="{source}" alt="{text(alt)}"{name}>'


def figure(body: str, caption: str) -> str:
    """Anything to look at, and what it is."""
    return f"<figure>{body}<figcaption>{text(caption)}</figcaption></figure>"


def pair(*pieces: str) -> str:
    """Side by side where there is room, else one below the other."""
    return f'<div class="pair">{"".join(f"<div>{piece}</div>" for piece in pieces)}</div>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    numbers: Sequence[int] = (),
    style: str = "",
) -> str:
    """A table whose first column names its rows; numbers, in columns `numbers`, end flush.

    What is too wide for a phone scrolls by itself, not with the page.
    """
    titles = "".join(
        f'<th scope="col"{_right(n in numbers)}>{text(title)}</th>' for n, title in enumerate(head)
    )
    titles = f"<thead><tr>{titles}</tr></thead>" if head else ""
    lines = "".join(f"<tr>{_cells(row, numbers)}</tr>" for row in rows)
    top = f"<caption>{text(caption)}</caption>" if caption else ""
    name = f' class="{style}"' if style else ""
    body = f"<table{name}>{top}{titles}<tbody>{lines}</tbody></table>"
    return f'<div class="scroll">{body}</div>'


def _cells(row: Sequence[object], numbers: Sequence[int]) -> str:
    first, *rest = (value if isinstance(value, Cell) else text(value) for value in row)
    others = (f"<td{_right(n in numbers)}>{value}</td>" for n, value in enumerate(rest, start=1))
    return f'<th scope="row">{first}</th>{"".join(others)}'


def _right(yes: bool) -> str:
    return ' class="number"' if yes else ""


def facts(values: Mapping[str, object], caption: str = "") -> str:
    """A table of names and values."""
    return table((), values.items(), caption=caption, style="narrow")


def folded(summary: str, body: str) -> str:
    """Shown when asked for."""
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def page(
    title: str,
    lead: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    *,
    foot: str,
) -> str:
    """The whole document."""
    style, script = (_data(name) for name in ("report.css", "report.js"))
    links = "".join(f'<li><a href="#{s.ident}">{text(s.heading)}</a></li>' for s in sections)
    parts = "\n".join(
        f'<section id="{s.ident}" aria-labelledby="{s.ident}-title">'
        f'<h2 id="{s.ident}-title">{text(s.heading)}</h2>{s.body}</section>'
        for s in sections
    )
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<header>
<h1>{text(title)}</h1>
<p class="lead">{text(lead)}</p>
{_tiles(tiles)}
</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
<noscript><p class="note">The curves are drawn by a script; this browser runs none.</p></noscript>
{parts}
</main>
<footer>{text(foot)}</footer>
<script type="text/plain" id="plotly">{_plotly()}</script>
<script>
{script}</script>
</body>
</html>
"""


def _tiles(tiles: Sequence[Tile]) -> str:
    entries = "".join(
        f"<div><dt>{text(tile.name)}</dt><dd>{text(tile.value)}"
        f"{f'<small>{text(tile.more)}</small>' if tile.more else ''}</dd></div>"
        for tile in tiles
    )
    return f'<dl class="tiles">{entries}</dl>'


def _data(name: str) -> str:
    return files("alexprep").joinpath("data", name).read_text("utf-8")


@cache
def _plotly() -> str:
    """The library, packed."""
    library = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(library, 9, mtime=0)).decode()
