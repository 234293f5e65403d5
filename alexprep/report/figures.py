"""Figures for plotly, as plain dicts: their look is defined here, their numbers come from callers.

Names from outside (classes, splits, layers) go through `label`, since plotly reads its texts as a
subset of HTML.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Spec = dict[str, Any]  # {"data": [...], "layout": {...}}

BLUE, ORANGE, TEAL, VIOLET, GRAY = "#1f5fa8", "#b94f12", "#0d7566", "#6b4fa0", "#7a8491"
COLOURS = (BLUE, ORANGE, TEAL, VIOLET)
PALE_BLUE = "#a9c4e6"
INK, GRID, SOFT = "#1c2430", "#e1e2e0", "#55606e"
CLEAR, CARD = "rgba(0,0,0,0)", "rgba(255,255,255,0.7)"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif'
TIGHT = {"l": 8, "r": 10, "t": 10, "b": 8}  # margins without a legend at the top
# A curve needs no more points than a screen has pixels; a run of 90 epochs logs 18,000.
POINTS = 1200
POINTS_WITH_LARGE_DOTS = 40
# Width of upright text on the narrowest figure, as a share of its axis: 14 of 280 pixels.
TEXT_WIDTH = 0.05
LETTERS = 20  # of a class name on an axis
NAMED_BARS = 20  # classes
SLOPE = -55  # degrees, of class names below an axis
DOT, LARGEST_DOT = 5, 30  # pixels: diameter for one image, and at most


def label(name: str) -> str:
    """A name as plotly shows it letter by letter."""
    return escape(name, quote=False)


def _short(name: str) -> str:
    return label(name if len(name) <= LETTERS else f"{name[: LETTERS - 1].rstrip()}…")


def axis(title: str, **options: Any) -> Spec:
    """An axis; `options` are plotly's own properties."""
    look = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True}
    return {"title": {"text": title, "font": {"size": 13}}, **look, **options}


def layout(x: Spec, y: Spec, **options: Any) -> Spec:
    """What all figures share. Dragging is off, since it would block scrolling on a phone."""
    return {
        "xaxis": x,
        "yaxis": y,
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 8, "r": 10, "t": 34, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"font": {"family": FONT}},
        "dragmode": False,
        **options,
    }


def _dotted(colour: str = GRAY, **ends: Any) -> Spec:
    return {"type": "line", "line": {"color": colour, "width": 1.2, "dash": "dot"}, **ends}


def _small_text(text: str, **position: Any) -> Spec:
    look = {"showarrow": False, "font": {"size": 11, "color": SOFT}, "bgcolor": CARD}
    return {"text": label(text), **look, **position}


def line(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    colour: str,
    *,
    dots: bool = False,
    hover: str = "%{y:.3f}",
) -> Spec:
    """A curve with gaps where a value is not finite.

    A single point is drawn as a dot, since a line through it could not be seen.
    """
    return {
        "type": "scatter",
        "mode": "lines+markers" if dots or len(x) < 2 else "lines",
        "name": name,
        "x": list(x),
        "y": [value if math.isfinite(value) else None for value in y],
        "line": {"color": colour, "width": 2 if dots else 1.5},
        "marker": {"color": colour, "size": 6 if len(x) <= POINTS_WITH_LARGE_DOTS else 4},
        "cliponaxis": False,
        "hovertemplate": f"{hover}<extra>{name}</extra>",
    }


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS points: each the mean of as many neighbours as that takes."""
    step = -(-len(x) // POINTS) or 1
    groups = range(0, len(x), step)
    return (
        [sum(x[n : n + step]) / len(x[n : n + step]) for n in groups],
        [sum(y[n : n + step]) / len(y[n : n + step]) for n in groups],
    )


def curves(
    lines: Sequence[Spec], y_title: str, marks: Sequence[tuple[float, str]], **y_options: Any
) -> Spec:
    """Curves over the epochs of a run, with dotted lines at its (epoch, text) marks."""
    x = axis("epoch", rangemode="tozero")
    y = axis(y_title, rangemode="tozero", **y_options)
    end = max((value for curve in lines for value in curve["x"]), default=0.0)
    shapes = [_dotted(xref="x", yref="paper", x0=epoch, x1=epoch, y0=0, y1=1) for epoch, _ in marks]
    # At the top: loss and error have fallen away from there before the schedule changes.
    upright = {"xref": "x", "yref": "paper", "y": 0.99, "yanchor": "top", "xanchor": "right"}
    texts = [
        _small_text(text, x=epoch, textangle=-90, **upright)
        for epoch, text in merged_marks(marks, end)
    ]
    frame = layout(x, y, hovermode="x", shapes=shapes, annotations=texts)
    return {"data": list(lines), "layout": frame}


def merged_marks(marks: Sequence[tuple[float, str]], end: float) -> list[tuple[float, str]]:
    """Sorted marks on an axis from 0 to `end`, with those too close for two texts in one."""
    groups: list[list[tuple[float, str]]] = []
    for mark in marks:
        if groups and mark[0] - groups[-1][0][0] < end * TEXT_WIDTH:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [(group[0][0], ", ".join(text for _, text in group)) for group in groups]


def loss_chart(
    steps: tuple[Sequence[float], Sequence[float]],
    epochs: tuple[Sequence[float], Sequence[float]],
    marks: Sequence[tuple[float, str]],
) -> Spec:
    """Training loss, (epochs, losses) of the log, and validation loss of each epoch."""
    lines = [
        line("training", *thinned(*steps), PALE_BLUE),
        line("validation", *epochs, BLUE, dots=True),
    ]
    return curves(lines, "loss", marks)


def error_chart(
    epochs: Sequence[float],
    top1: Sequence[float],
    top5: Sequence[float],
    marks: Sequence[tuple[float, str]],
) -> Spec:
    """Validation errors in 0..1 of each epoch."""
    lines = [
        line("top-1", epochs, top1, ORANGE, dots=True, hover="%{y:.2%}"),
        line("top-5", epochs, top5, TEAL, dots=True, hover="%{y:.2%}"),
    ]
    return curves(lines, "validation error", marks, tickformat=".0%")


def throughput_chart(
    epochs: Sequence[float], rates: Sequence[float], waits: Sequence[float]
) -> Spec:
    """Images/s, and below it the share of time spent waiting for data."""
    upper = line("images/s", *thinned(epochs, rates), BLUE, hover="%{y:,.0f} images/s")
    lower = line("waiting for data", *thinned(epochs, waits), ORANGE, hover="%{y:.1%} waiting")
    x = axis("epoch", rangemode="tozero", anchor="y2")
    top = axis("images/s", rangemode="tozero", domain=[0.46, 1])
    bottom = axis("waiting for data", domain=[0, 0.36], range=[0, 1], tickformat=".0%")
    frame = layout(x, top, yaxis2=bottom, hovermode="x", showlegend=False, margin=TIGHT)
    return {"data": [upper, {**lower, "yaxis": "y2"}], "layout": frame}


def colour_chart(columns: Mapping[str, Sequence[float]], random: float) -> Spec:
    """Colour shares in 0..1 of the kernels of each column, sorted; dotted: that of random ones."""
    data = [
        line(
            name,
            list(range(1, len(shares) + 1)),
            sorted(shares),
            COLOURS[n % 4],
            dots=True,
            hover="%{y:.0%}",
        )
        for n, (name, shares) in enumerate(columns.items())
    ]
    corner = {"xref": "paper", "x": 0, "xanchor": "left", "y": random, "yanchor": "bottom"}
    frame = layout(
        axis("kernels, sorted by colour share"),
        axis("colour share", range=[0, 1], tickformat=".0%"),
        shapes=[_dotted(xref="paper", x0=0, x1=1, y0=random, y1=random)],
        annotations=[_small_text("random weights", **corner)],
    )
    return {"data": data, "layout": frame}


def confusion_chart(
    rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]
) -> Spec:
    """Images of the classes `rows`, the first one at the top, by predicted class."""
    look = {"tickfont": {"size": 11}, "showgrid": False}
    # Positions with texts of their own: two classes may have one name, which plotly would merge.
    x_ticks = {
        "tickvals": list(range(len(columns))),
        "ticktext": [_short(name) for name in columns],
    }
    y_ticks = {"tickvals": list(range(len(rows))), "ticktext": [_short(name) for name in rows]}
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in counts],
        "x": x_ticks["tickvals"],
        "y": y_ticks["tickvals"],
        "colorscale": [[0, "#ffffff"], [0.35, PALE_BLUE], [1, BLUE]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[str(count) if count else "" for count in row] for row in counts],
        "texttemplate": "%{text}",
        "customdata": [[[label(row), label(column)] for column in columns] for row in rows],
        "hovertemplate": (
            "%{customdata[0]} predicted as %{customdata[1]}: %{z} images<extra></extra>"
        ),
    }
    frame = layout(
        axis("predicted class", tickangle=SLOPE, **x_ticks, **look),
        axis("true class", autorange="reversed", **y_ticks, **look),
        margin=TIGHT,
    )
    return {"data": [trace], "layout": frame}


def counts_chart(
    splits: Mapping[str, Sequence[int]], classes: Sequence[tuple[str, str]], order: Sequence[int]
) -> Spec:
    """Images of each (wnid, name), in this order of labels; one panel a split, the last on top."""
    share = 1 / len(splits)
    x = axis("class", anchor="y", tickformat="d")
    if len(order) <= NAMED_BARS:
        ticks = [_short(classes[index][1]) for index in order]
        x |= {"tickvals": list(range(1, len(order) + 1)), "ticktext": ticks, "tickangle": SLOPE}
    frame = layout(x, {}, showlegend=False, bargap=0.15, margin=TIGHT)
    data: list[Spec] = []
    for n, (split, counts) in enumerate(splits.items()):
        # plotly counts axes from 2, and calls them y, y2, ... in traces.
        name = "yaxis" if n == 0 else f"yaxis{n + 1}"
        domain = [n * share, (n + 1) * share - (0.06 if len(splits) > 1 else 0)]
        step = round_step(max(counts))
        frame[name] = axis(label(split), rangemode="tozero", dtick=step, domain=domain)
        data.append(
            {
                "type": "bar",
                "x": list(range(1, len(order) + 1)),
                "y": [counts[index] for index in order],
                "yaxis": name.replace("axis", ""),
                "marker": {"color": COLOURS[n % 4], "line": {"width": 0}},
                "customdata": [label("{1} ({0})".format(*classes[index])) for index in order],
                "hovertemplate": f"%{{customdata}}: %{{y}}<extra>{label(split)}</extra>",
            }
        )
    return {"data": data, "layout": frame}


def round_step(largest: int) -> int:
    """Distance between ticks of an axis from 0 to `largest`: 1, 2 or 5 times a power of ten."""
    return next(
        n * 10**power for power in range(12) for n in (1, 2, 5) if largest <= 5 * n * 10**power
    )


def sizes_chart(sizes: Mapping[tuple[int, int], int], short_side: int) -> Spec:
    """(width, height) -> source images; the area of a dot is the number of images."""
    widths, heights = [width for width, _ in sizes], [height for _, height in sizes]
    largest = max(sizes.values())
    diameter = min(LARGEST_DOT, DOT * math.sqrt(largest))
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": widths,
        "y": heights,
        "marker": {
            "size": list(sizes.values()),
            "sizemode": "area",
            "sizeref": 2 * largest / diameter**2,
            "sizemin": 2,
            "color": BLUE,
            "opacity": 0.45,
            "line": {"width": 0},
        },
        "customdata": list(sizes.values()),
        "hovertemplate": "%{x} x %{y}: %{customdata}<extra></extra>",
    }
    # Log axes, for sides may differ a hundredfold.
    far = max(*widths, *heights) * 1.1
    ticks = [n * 10**power for power in range(6) for n in (1, 2, 5)]
    log = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    frame = layout(
        axis("width, pixels", **log),
        axis("height, pixels", **log),
        margin=TIGHT,
        shapes=[
            _dotted(ORANGE, x0=short_side, x1=short_side, y0=short_side, y1=far),
            _dotted(ORANGE, x0=short_side, x1=far, y0=short_side, y1=short_side),
        ],
    )
    return {"data": [trace], "layout": frame}
