"""Figures as data for plotly: what they look like is here, what they show comes from the callers.

Plain dicts, so that making a page needs no more of plotly than its script; the tests give each of
them to plotly's own checks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alexprep.report.page import Spec

BLUE, ORANGE, TEAL, VIOLET, GRAY = "#1f5fa8", "#b94f12", "#0d7566", "#6b4fa0", "#7a8491"
PALE_BLUE = "#a9c4e6"
INK, LINE, SOFT = "#1c2430", "#e1e2e0", "#55606e"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif'
TIGHT = {"l": 8, "r": 10, "t": 10, "b": 8}  # without a legend on top
# A curve needs no more points than a screen has pixels; a run of 90 epochs logs 18,000.
POINTS = 1200
# A line of upright text on the narrowest figure, as a share of its axis: 14 of 280 pixels.
LINE_OF_TEXT = 0.05


class Mark(NamedTuple):
    """Something that happened at a place of the x axis."""

    x: float
    text: str


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis; `more` in plotly's own words."""
    look = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "automargin": True}
    return {"title": {"text": title, "font": {"size": 13}}, **look, **more}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What all figures have in common. Dragging is off: on a phone it would stop the scrolling."""
    return {
        "xaxis": x,
        "yaxis": y,
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 10, "t": 34, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"font": {"family": FONT}},
        "dragmode": False,
        **more,
    }


def line(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    colour: str,
    *,
    dots: bool = False,
    hover: str = "%{y:.3f}",
) -> dict[str, Any]:
    """A curve with gaps where a value is no number.

    A single point is a dot, since a line through it could not be seen.
    """
    return {
        "type": "scatter",
        "mode": "lines+markers" if dots or len(x) < 2 else "lines",
        "name": name,
        "x": list(x),
        "y": [value if math.isfinite(value) else None for value in y],
        "line": {"color": colour, "width": 2 if dots else 1.5},
        "marker": {"color": colour, "size": 6},
        "cliponaxis": False,
        "hovertemplate": f"{hover}<extra>{name}</extra>",
    }


def gathered(found: Sequence[Mark], reach: float) -> list[Mark]:
    """Marks, sorted, with those too near for two upright texts, on an axis to `reach`, in one."""
    near = reach * LINE_OF_TEXT
    groups: list[list[Mark]] = []
    for mark in found:
        if groups and mark.x - groups[-1][0].x < near:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [Mark(group[0].x, ", ".join(mark.text for mark in group)) for group in groups]


def marks(found: Sequence[Mark], reach: float) -> dict[str, Any]:
    """Dotted lines with upright texts at their feet, where falling curves leave room.

    The axis goes from 0 to `reach`.
    """
    lines = [
        {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": mark.x,
            "x1": mark.x,
            "y0": 0,
            "y1": 1,
            "line": {"color": GRAY, "width": 1.2, "dash": "dot"},
        }
        for mark in found
    ]
    texts = [
        {
            "x": mark.x,
            "y": 0.01,
            "xref": "x",
            "yref": "paper",
            "text": mark.text,
            "textangle": -90,
            "xanchor": "right",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 11, "color": SOFT},
        }
        for mark in gathered(found, reach)
    ]
    return {"shapes": lines, "annotations": texts}


def curves(
    lines: Sequence[dict[str, Any]], y_title: str, found: Sequence[Mark], **y_more: Any
) -> Spec:
    """Curves over the epochs of a run."""
    x = axis("epochs", rangemode="tozero")
    y = axis(y_title, rangemode="tozero", **y_more)
    reach = max((place for one in lines for place in one["x"]), default=0.0)
    return {"data": list(lines), "layout": layout(x, y, hovermode="x", **marks(found, reach))}


def two_panels(upper: dict[str, Any], lower: dict[str, Any], titles: tuple[str, str]) -> Spec:
    """Two curves over the epochs of a run, one above the other."""
    x = axis("epochs", rangemode="tozero", anchor="y2")
    top = axis(titles[0], rangemode="tozero", domain=[0.46, 1])
    bottom = axis(titles[1], domain=[0, 0.36], range=[0, 1], tickformat=".0%")
    about = layout(x, top, yaxis2=bottom, hovermode="x", showlegend=False, margin=TIGHT)
    return {"data": [upper, {**lower, "yaxis": "y2"}], "layout": about}


def ranked(columns: Mapping[str, Sequence[float]], chance: float) -> Spec:
    """A share in 0..1 of the kernels of each column, smallest first."""
    colours = (BLUE, ORANGE, TEAL, VIOLET)
    data = [
        line(name, list(range(1, len(shares) + 1)), sorted(shares), colours[n % 4], dots=True)
        for n, (name, shares) in enumerate(columns.items())
    ]
    about = layout(
        axis("kernels, the grayest first"),
        axis("colour share", range=[0, 1], tickformat=".0%"),
    )
    about["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": chance,
            "y1": chance,
            "line": {"color": GRAY, "width": 1.2, "dash": "dot"},
        }
    ]
    about["annotations"] = [
        {
            "xref": "paper",
            "x": 0,
            "y": chance,
            "yanchor": "bottom",
            "xanchor": "left",
            "text": "random weights",
            "showarrow": False,
            "font": {"size": 11, "color": SOFT},
        }
    ]
    for trace in data:
        trace["hovertemplate"] = f"%{{y:.0%}}<extra>{trace['name']}</extra>"
    return {"data": data, "layout": about}


def heatmap(
    rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], unit: str
) -> Spec:
    """Counts of rows by columns, the first row on top, each with its number."""
    places = list(range(len(columns)))
    look = {"tickfont": {"size": 11}, "showgrid": False}
    below = {"tickvals": places, "ticktext": list(columns), "tickangle": -55}
    beside = {"tickvals": list(range(len(rows))), "ticktext": list(rows), "autorange": "reversed"}
    x, y = axis("taken for", **below, **look), axis("", **beside, **look)
    trace = {
        "type": "heatmap",
        "z": [list(row) for row in counts],
        "x": places,
        "y": list(range(len(rows))),
        "colorscale": [[0, "#ffffff"], [0.35, PALE_BLUE], [1, BLUE]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[str(count) if count else "" for count in row] for row in counts],
        "texttemplate": "%{text}",
        "customdata": [[[row, column] for column in columns] for row in rows],
        "hovertemplate": (
            f"%{{customdata[0]}} taken for %{{customdata[1]}}: %{{z}} {unit}<extra></extra>"
        ),
    }
    about = layout(x, y, margin=TIGHT)
    return {"data": [trace], "layout": about}


def counts_chart(
    splits: Mapping[str, Sequence[int]], names: Sequence[str], order: Sequence[int]
) -> Spec:
    """Images of each class, in this order of the classes; one panel a split."""
    colours = (BLUE, ORANGE, TEAL, VIOLET)
    places = list(range(1, len(order) + 1))
    share = 1 / len(splits)
    about = layout(axis("classes", anchor="y"), {}, showlegend=False, bargap=0.15, margin=TIGHT)
    data: list[Spec] = []
    for n, (split, counts) in enumerate(splits.items()):
        name = "yaxis" if n == 0 else f"yaxis{n + 1}"
        room = {"domain": [n * share, (n + 1) * share - (0.06 if len(splits) > 1 else 0)]}
        about[name] = axis(split, rangemode="tozero", dtick=whole_step(max(counts)), **room)
        data.append(
            {
                "type": "bar",
                "x": places,
                "y": [counts[label] for label in order],
                "yaxis": name.replace("axis", ""),
                "marker": {"color": colours[n % 4], "line": {"width": 0}},
                "customdata": [names[label] for label in order],
                "hovertemplate": f"%{{customdata}}: %{{y}}<extra>{split}</extra>",
            }
        )
    return {"data": data, "layout": about}


def sizes_chart(found: Mapping[tuple[int, int], int], short_side: int) -> Spec:
    """Widths and heights of source images; the area of a dot is the number of images."""
    widths, heights = [w for w, _ in found], [h for _, h in found]
    largest = max(found.values())
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": widths,
        "y": heights,
        "marker": {
            "size": list(found.values()),
            "sizemode": "area",
            "sizeref": largest / 30**2 * 2,
            "sizemin": 2,
            "color": BLUE,
            "opacity": 0.45,
            "line": {"width": 0},
        },
        "customdata": list(found.values()),
        "hovertemplate": "%{x} x %{y}: %{customdata}<extra></extra>",
    }
    edge = {"color": ORANGE, "width": 1.2, "dash": "dot"}
    far = max(*widths, *heights) * 1.1
    ticks = [n * 10**power for power in range(6) for n in (1, 2, 5)]
    log = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    lines = [
        {"type": "line", "x0": short_side, "x1": short_side, "y0": short_side, "y1": far},
        {"type": "line", "x0": short_side, "x1": far, "y0": short_side, "y1": short_side},
    ]
    about = layout(
        axis("width, pixels", **log),
        axis("height, pixels", **log),
        margin=TIGHT,
        shapes=[{**each, "line": edge} for each in lines],
    )
    return {"data": [trace], "layout": about}


def whole_step(most: int) -> int:
    """Distance of two ticks of an axis that counts to `most`: 1, 2 or 5 and noughts."""
    return next(
        n * 10**power for power in range(12) for n in (1, 2, 5) if most <= 5 * n * 10**power
    )


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most POINTS points: means of as many neighbours as that takes."""
    step = -(-len(x) // POINTS) or 1
    groups = range(0, len(x), step)
    return (
        [sum(x[n : n + step]) / len(x[n : n + step]) for n in groups],
        [sum(y[n : n + step]) / len(y[n : n + step]) for n in groups],
    )
