"""The page of a run, continued: what the network answers, what it finds alike, what it confuses."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet.training.evaluate import error_rates
from alexprep.model.predictions import SUFFIX, Predictions
from alexprep.report import page as html
from alexprep.report.charts import heatmap
from alexprep.report.images import thumbnail
from alexprep.report.seen import PAIRS, Seen, neighbours, pairs_of_one_class

TOP = 5
EXAMPLES = 8
QUERIES, NEAREST = 6, 6
WORST = 10
LETTERS = 20  # of a class name on an axis
ILSVRC = 1000  # classes; with so many the paper's own numbers are worth a row


def error_table(run: Path, seen: Seen | None, classes: int) -> str:
    """Top-1 and top-5 with one view and with ten, and what `alexprep eval` kept in the run."""
    rows: list[Sequence[object]] = []
    if seen is not None:
        of = f"{len(seen):,}" if len(seen) == seen.of else f"{len(seen):,} of {seen.of:,}"
        for views, what in ((1, "1 view: the centre"), (10, "10 views: corners, centre, mirrored")):
            rows.append((what, *_errors(*seen.errors(views), len(seen)), of))
    for path in sorted(run.glob(f"*{SUFFIX}")):
        kept = Predictions.load(path)
        errors = error_rates(kept.probabilities, kept.labels)
        count = len(kept.labels)
        what = f"{path.name}: {kept.dataset} {kept.split}, {kept.views} views"
        rows.append((what, *_errors(*errors, count), f"{count:,}"))
    if not rows:
        return ""
    if classes == ILSVRC:
        rows.append(("for comparison, ILSVRC2012 in the paper: 10 views", "40.7%", "18.2%", ""))
    head = ("error on validation", "top-1", "top-5", "images")
    caption = "Shares of images; after ± the standard error that their number allows."
    return html.table(head, rows, numbers=(1, 2, 3), caption=caption, style="loose")


def _errors(top1: float, top5: float, images: int) -> tuple[str, str]:
    return _error(top1, images), _error(top5, images)


def _error(error: float, images: int) -> str:
    """With its standard error; one right and one wrong answer more (Laplace) keep it off 0."""
    share = (error * images + 1) / (images + 2)
    return f"{error:.2%} ±\u00a0{math.sqrt(share * (1 - share) / images) * 100:.2f}"


def examples(seen: Seen) -> str:
    """Eight images from the surest right answer to the surest wrong one, as in Figure 4, left."""
    mine = np.take_along_axis(seen.probabilities[1], seen.labels[:, None], axis=1)[:, 0]
    order = np.argsort(-mine, kind="stable").tolist()
    count = min(EXAMPLES, len(order))
    chosen = [order[(2 * n + 1) * len(order) // (2 * count)] for n in range(count)]
    cards = [
        f"<li>{html.picture(thumbnail(jpg), seen.name(int(seen.labels[place])))}"
        f"{_answer(seen, place)}</li>"
        for place, jpg in zip(chosen, seen.jpgs(chosen), strict=True)
    ]
    words = (
        f"Not picked by hand: all {len(seen):,} images in the order of the probability that their "
        f"right class was given (centre view), and {count} of them at equal steps, from the "
        "easiest to the hardest. The right class is orange."
    )
    return html.paragraph(words) + f'<ul class="cards">{"".join(cards)}</ul>'


def _answer(seen: Seen, place: int) -> str:
    """Name and bars of one image; says where the right class came if it is not among the first."""
    shares, label = seen.probabilities[1][place], int(seen.labels[place])
    best: list[int] = np.argsort(-shares, kind="stable")[:TOP].tolist()
    bars = "".join(
        f'<li{_class("right", one == label)}><i style="width:{float(shares[one]):.1%}"></i>'
        f"<span>{html.text(seen.name(one))}</span><span>{float(shares[one]):.1%}</span></li>"
        for one in best
    )
    title = seen.name(label)
    if label not in best:
        at = int((shares > shares[label]).sum()) + 1
        title += f" (place {at})"
    return f'<h3>{html.text(title)}</h3><ol class="bars">{bars}</ol>'


def _class(name: str, yes: bool) -> str:
    return f' class="{name}"' if yes else ""


def nearest(seen: Seen) -> str:
    """Six images and those nearest to them in the last hidden layer, as in Figure 4, right."""
    labels: list[int] = seen.labels.tolist()
    there = sorted(set(labels))
    count = min(QUERIES, len(there))
    queries = [labels.index(there[(2 * n + 1) * len(there) // (2 * count)]) for n in range(count)]
    near = neighbours(seen.features, queries, NEAREST)
    rows = "".join(
        _row(seen, [query, *found]) for query, found in zip(queries, near.tolist(), strict=True)
    )
    words = (
        f"Left, the first image of {count} classes spread over all labels; right of it its nearest "
        f"neighbours among {len(seen):,} validation images, by Euclidean distance of the "
        f"{seen.features.shape[1]:,} units of the last hidden layer. Framed and ticked: the same "
        f"class. Of {min(PAIRS, len(seen)):,} images {pairs_of_one_class(seen):.1%} have a nearest "
        f"neighbour of their own class; by chance {chance(seen):.1%} would."
    )
    return html.paragraph(words) + rows


def chance(seen: Seen) -> float:
    """Share of pairs of different images that are of one class."""
    counts = np.bincount(seen.labels)
    total = len(seen)
    return float((counts * (counts - 1)).sum() / max(total * (total - 1), 1))


def _row(seen: Seen, chosen: list[int]) -> str:
    label = int(seen.labels[chosen[0]])
    cells: list[str] = []
    for n, (place, jpg) in enumerate(zip(chosen, seen.jpgs(chosen), strict=True)):
        one = int(seen.labels[place])
        same = n > 0 and one == label
        name = f"✓ {seen.name(one)}" if same else seen.name(one)
        image = html.picture(thumbnail(jpg), seen.name(one))
        cells.append(f"<li{_class('same', same)}>{image}{html.text(name)}</li>")
    return f'<ul class="row">{"".join(cells)}</ul>'


def confusion(seen: Seen) -> str:
    """The classes with the highest error, and what they are taken for."""
    views = max(seen.probabilities)
    answers, worst = _worst(seen, views)
    common: Counter[int] = Counter()
    for label in worst:
        common.update({guess: n for guess, n in answers[label].items() if guess != label})
    taken = [guess for guess, _ in common.most_common(WORST + 2)]
    if not taken:
        return html.paragraph("Every image was put into its own class.")
    drawn = html.chart(
        "confusion",
        heatmap(
            [_letters(seen.name(label)) for label in worst],
            [_letters(seen.name(guess)) for guess in taken],
            [[answers[label][guess] for guess in taken] for label in worst],
            "images",
        ),
        says="Counts of images of the worst classes by the class they were taken for.",
        caption=(
            f"Rows: the {len(worst)} classes with the highest top-1 error ({views} views), of "
            f"{len(seen) / len(answers):.0f} images a class on average."
        ),
        height=460,
    )
    rows = [_confused(seen, label, answers[label]) for label in worst]
    return drawn + html.table(("class", "error", "images", "taken for"), rows, numbers=(1, 2))


def _worst(seen: Seen, views: int) -> tuple[dict[int, Counter[int]], list[int]]:
    """Guesses for each class, and the classes with most errors; equal ones by trust in the right.

    With few images a class many have the same error; the probability tells them apart.
    """
    probabilities = seen.probabilities[views]
    answers: dict[int, Counter[int]] = {}
    for label, guess in zip(seen.labels.tolist(), probabilities.argmax(1).tolist(), strict=True):
        answers.setdefault(label, Counter())[guess] += 1
    mine = np.take_along_axis(probabilities, seen.labels[:, None], axis=1)[:, 0]
    ranks = {
        label: (found[label] / found.total(), float(mine[seen.labels == label].mean()))
        for label, found in answers.items()
    }
    return answers, sorted(ranks, key=lambda label: ranks[label])[:WORST]


def _confused(seen: Seen, label: int, found: Counter[int]) -> tuple[str, str, str, str]:
    """Its row in the table."""
    others = [(guess, count) for guess, count in found.most_common(5) if guess != label]
    names = ", ".join(f"{seen.name(guess)} ({count})" for guess, count in others[:4])
    return seen.name(label), f"{1 - found[label] / found.total():.0%}", f"{found.total()}", names


def _letters(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1].rstrip()}…"
