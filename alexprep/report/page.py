"""The reports as HTML: fills the templates with the numbers of a run or data set.

The file opens from disk and is complete: its content security policy forbids every request. It
holds the plotting library once, gzipped to a third of its size; the browser unpacks it
(DecompressionStream: browsers of 2023 and later).
"""

import base64
import gzip
import json
import statistics
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from alexprep import __version__
from alexprep.dataset.duplicates import describe_duplicates
from alexprep.errors import checking_options, counted, shown
from alexprep.model.placement import usable_device
from alexprep.model.trained import Trained
from alexprep.report import dataset_summary, figures
from alexprep.report import split_predictions as split
from alexprep.report.pictures import colour_share, css_colour, kernel_sheet, photograph, thumbnail
from alexprep.report.run_summary import (
    ErrorRow,
    RunSummary,
    first_layer,
    read_run,
    saved_errors,
    schedule_marks,
    standard_error,
)
from alexprep.report.split_predictions import SplitPredictions
from pipelines.errors import DataError
from pipelines.format import Manifest
from pipelines.imagestats import ImageStats

Context = dict[str, Any]

TOP = 5  # classes listed for an image
CONFUSION_COLUMNS = 12
RANDOM_COLOUR = 2 / 3  # colour share of independent random weights
# Rows of the tables of classes and skipped files, and dots of the chart of sizes.
ROWS, DOTS = 2_000, 1_500
VIEWS = {1: "1 view: centre crop", 10: "10 views: corners and centre, mirrored"}
FIXES = {
    "cmyk": "CMYK, converted to RGB",
    "gray": "grayscale, repeated in three channels",
    "progressive": "progressive JPEG, stored as baseline",
    "16bit": "16 bits per channel, reduced to 8",
    "palette": "palette, converted to RGB",
    "alpha": "alpha channel, dropped",
    "damaged": "JPEG with errors that Pillow decodes; files that end early are never stored",
}


def run_page(folder: Path, *, data: Path | None, images: int, device: str) -> str:
    """The report of a run; if its data set is gone, one that says so in place of pictures."""
    with checking_options():
        device = usable_device(device)
    run = read_run(folder, device)
    predictions, missing = _predict(run, data, images, device)
    errors, context = list[ErrorRow](), Context()
    if predictions:
        errors = [predictions.errors(views, title) for views, title in VIEWS.items()]
        context = {
            "cards": _cards(predictions),
            "nearest": _nearest(predictions),
            "confusion": _confusion(predictions),
        }
    return _render(
        "run.html.j2",
        run=run,
        log=_log(run),
        errors=[*errors, *saved_errors(folder)],
        predictions=predictions,
        missing=missing,
        **_kernels(run.trained),
        **context,
    )


def _predict(
    run: RunSummary, data: Path | None, images: int, device: str
) -> tuple[SplitPredictions | None, str]:
    """The network's predictions, or a sentence that says why there are none."""
    root = data or Path(run.config.calls[-1].dataset)
    try:
        manifest = Manifest.load(root)
        manifest.split(split.SPLIT, root)
        sha256 = manifest.split("train", root).shards[0].sha256
    except DataError as error:
        if data is not None:
            raise
        return None, (
            f"The data set of this run is not available, so there are no predictions: {error} "
            "If it has moved, pass its folder with --data."
        )
    if data is None and sha256 != run.config.data.first_shard_sha256:
        return None, f"{root} now holds another data set. Pass the one of this run with --data."
    return split.predict_split(root, run.trained, images=images, device=device), ""


def _log(run: RunSummary) -> Context:
    """What metrics.jsonl says, as charts and totals."""
    if not run.steps:
        return {}
    steps = [record.epochs for record in run.steps]
    epochs = run.validated
    ends = [record.epoch + 1 for record in epochs]
    rates = [record.images_per_second for record in run.steps]
    waits = [record.data_wait for record in run.steps]
    marks = schedule_marks(run)
    return {
        "loss_chart": figures.loss_chart(
            (steps, [record.loss for record in run.steps]),
            (ends, [record.validation_loss or 0.0 for record in epochs]),
            marks,
        ),
        "error_chart": figures.error_chart(
            ends,
            [record.top1 or 0.0 for record in epochs],
            [record.top5 or 0.0 for record in epochs],
            marks,
        ),
        "throughput_chart": figures.throughput_chart(steps, rates, waits),
        "images_per_second": statistics.median(rates),
        "data_wait": sum(waits) / len(waits),
        "hours": sum(r.seconds + r.validation_seconds for r in run.epochs) / 3600,
    }


def _kernels(trained: Trained) -> Context:
    """Figure 3 of the paper: the first layer, one sheet a column."""
    layer = first_layer(trained)
    shares = {name: colour_share(kernels) for name, kernels in layer.items()}
    columns = [
        {
            "name": name,
            "sheet": kernel_sheet(kernels),
            "kernels": len(kernels),
            "side": kernels.shape[-1],
            "median": float(np.median(shares[name])),
            "above": float((shares[name] > RANDOM_COLOUR).mean()),
        }
        for name, kernels in layer.items()
    ]
    spread = {name: share.tolist() for name, share in shares.items()}
    return {"columns": columns, "colour_chart": figures.colour_chart(spread, RANDOM_COLOUR)}


def _cards(predictions: SplitPredictions) -> list[Context]:
    """Figure 4 of the paper, left: images with their most probable classes."""
    indices = split.examples(predictions)
    cards: list[Context] = []
    for index, jpg in zip(indices, predictions.jpegs(indices), strict=True):
        shares, label = predictions.probabilities[1][index], int(predictions.labels[index])
        best: list[int] = np.argsort(-shares, kind="stable")[:TOP].tolist()
        bars = [
            {
                "name": predictions.class_name(guess),
                "share": float(shares[guess]),
                "true": guess == label,
            }
            for guess in best
        ]
        rank = 1 + (best.index(label) if label in best else int((shares > shares[label]).sum()))
        name = predictions.class_name(label)
        cards.append({"uri": thumbnail(jpg), "name": name, "rank": rank, "bars": bars})
    return cards


def _nearest(predictions: SplitPredictions) -> Context:
    """Figure 4 of the paper, right: images with their nearest neighbours."""
    queries = split.queries(predictions)
    rows: list[list[Context]] = []
    near = split.neighbours(predictions.features, queries, split.NEAREST).tolist()
    for query, indices in zip(queries, near, strict=True):
        row = [query, *indices]
        labels: list[int] = predictions.labels[row].tolist()
        rows.append(
            [
                {
                    "uri": thumbnail(jpg),
                    "name": predictions.class_name(label),
                    "same": n > 0 and label == labels[0],
                }
                for n, (label, jpg) in enumerate(zip(labels, predictions.jpegs(row), strict=True))
            ]
        )
    return {
        "rows": rows,
        "images": min(split.PAIRS, len(predictions)),
        "accuracy": split.neighbour_accuracy(predictions),
        "chance": split.chance_accuracy(predictions),
    }


def _confusion(predictions: SplitPredictions) -> Context:
    classes = split.confused_classes(predictions, views=max(predictions.probabilities))
    wrong: Counter[int] = Counter()
    for entry in classes:
        wrong.update(dict(entry.mistakes()))
    if not wrong:
        return {"chart": None}
    # A square with the right answers on its diagonal if all classes fit, else the mistakes.
    columns = list(dict.fromkeys([*(entry.label for entry in classes), *wrong]))
    if len(columns) > CONFUSION_COLUMNS:
        columns = [guess for guess, _ in wrong.most_common(CONFUSION_COLUMNS)]
    name = predictions.class_name
    return {
        "chart": figures.confusion_chart(
            [name(entry.label) for entry in classes],
            [name(guess) for guess in columns],
            [[entry.guesses[guess] for guess in columns] for entry in classes],
        ),
        "classes": classes,
        "class_images": len(predictions) / len(set(predictions.labels.tolist())),
        "mistakes": {
            entry.label: ", ".join(f"{name(guess)} ({n})" for guess, n in entry.mistakes()[:4])
            for entry in classes
        },
    }


def dataset_page(root: Path) -> str:
    """The report of a data set; DataError if it is unfinished or damaged."""
    manifest = Manifest.load(root)
    # The split that the survey, the colours and the examples are of.
    main = "train" if "train" in manifest.splits else min(manifest.splits)
    survey = dataset_summary.survey(root, manifest, main)
    splits = {
        name: dataset_summary.split_counts(manifest.splits[name])
        for name in sorted(manifest.splits)
    }
    stats, missing = _statistics(root, manifest, main)
    return _render(
        "dataset.html.j2",
        root=root,
        manifest=manifest,
        main=main,
        splits=splits,
        total={
            name: sum(getattr(counts, name) for counts in splits.values())
            for name in ("images", "shards", "bytes")
        },
        rows={"classes": ROWS, "skipped": ROWS},
        counts_chart=_counts_chart(manifest, main),
        survey=survey,
        **_sizes(survey, manifest.size),
        **_fixes(manifest),
        stats=stats,
        missing=missing,
        colours=_colours(stats) if stats else None,
        epochs=dataset_summary.EPOCHS,
        augmented=_augmented(root, manifest, main, stats),
        duplicates=describe_duplicates(manifest.duplicates),
        provenance={
            "alexprep": manifest.alexprep,
            **{f"codec {name}": value for name, value in manifest.codec.items()},
            **{f"config {name}": value for name, value in manifest.config.items()},
            **{
                f"source {name}": value
                for name, value in manifest.source.items()
                if name not in ("warnings", "duplicates")
            },
        },
    )


def _statistics(root: Path, manifest: Manifest, name: str) -> tuple[ImageStats | None, str]:
    """The statistics of a split, or a sentence that says why there are none."""
    try:
        return ImageStats.load(root, manifest, name), ""
    except DataError as error:
        return None, str(error)


def _counts_chart(manifest: Manifest, main: str) -> Context | None:
    """Bars for the splits whose classes differ in size, the main split on top."""
    names = [*(name for name in sorted(manifest.splits) if name != main), main]
    counts = {name: manifest.splits[name].counts for name in names}
    uneven = {name: images for name, images in counts.items() if len(set(images)) > 1}
    if not uneven:
        return None
    order = np.argsort([-count for count in counts[main]], kind="stable").tolist()
    classes = [(wnid, names.split(",")[0]) for wnid, names in manifest.classes]
    return {"spec": figures.counts_chart(uneven, classes, order), "splits": list(uneven)}


def _sizes(survey: dataset_summary.Survey, size: int) -> Context:
    if not survey.jpg_bytes:
        return {}
    sides = survey.sides
    quantiles = np.percentile(sides, [0, 50, 100], axis=0).astype(int).tolist()
    short_side = sides.min(axis=1)
    summary: Context = {
        "width": [width for width, _ in quantiles],
        "height": [height for _, height in quantiles],
        "below": (short_side < size).mean(),
        "equal": (short_side == size).mean(),
        "above": (short_side > size).mean(),
        "median_bytes": float(np.median(survey.jpg_bytes)),
    }
    chart = figures.sizes_chart(dict(survey.sizes.most_common(DOTS)), size)
    return {"sides": summary, "sizes_chart": chart}


def _fixes(manifest: Manifest) -> Context:
    """What each fix means, and the keys of some images that it was applied to."""
    turned = "applied" if manifest.config.get("apply_orientation") else "ignored"
    texts: dict[str, str] = {**FIXES, "exif": f"EXIF orientation, {turned}"}
    keys: dict[str, str] = {}
    for fix in manifest.fixes:
        texts.setdefault(fix, f"{fix.upper()} file, stored as JPEG")
        keys[fix] = shown(manifest.mended.get(fix, ()), 3) or "too many to list"
    return {"fixes": texts, "keys": keys}


def _colours(stats: ImageStats) -> Context:
    """The mean image, and the mean colour along each principal component."""
    share = (stats.eigenvalues / stats.eigenvalues.sum()).tolist()
    steps = np.linspace(-2, 2, 7).tolist()
    components = [
        {
            "sd": stats.stdevs[n],
            "share": share[n],
            "axis": [f"{value:+.2f}" for value in axis],
            "swatches": [css_colour(stats.mean + step * stats.stdevs[n] * axis) for step in steps],
        }
        for n, axis in enumerate(stats.eigenvectors.T)
    ]
    return {
        "mean_image": photograph(stats.mean_image_HWC),
        "mean": [f"{value:.2f}" for value in stats.mean],
        "sd": [f"{value:.2f}" for value in stats.sd],
        "components": components,
    }


def _augmented(
    root: Path, manifest: Manifest, name: str, stats: ImageStats | None
) -> list[Context]:
    stats = stats if name == "train" else None
    return [
        {
            "name": manifest.classes[image.label][1].split(",")[0],
            "stored": photograph(image.stored_HWC),
            "drawn": [photograph(pixels) for pixels in image.drawn_NHWC],
        }
        for image in dataset_summary.augmented_images(root, manifest, name, stats)
    ]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def _with_error(error: float, images: int) -> str:
    return f"{error:.2%} ±\u00a0{100 * standard_error(error, images):.2f}"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None or value == [] else json.dumps(value)


def _size(count: float) -> str:
    """Bytes in decimal units, with three significant digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _render(template: str, **context: Any) -> str:
    page = _environment().get_template(template)
    return page.render(version=__version__, plotly=_plotly(), **context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alexprep.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes < > & ', so that no name can end the script element it stands in.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    filters = (_count, _duration, _percent, _plain, _size, _with_error)
    environment.filters |= cast(Any, {filter.__name__[1:]: filter for filter in filters})
    environment.filters["plural"] = counted
    return environment


@cache
def _plotly() -> str:
    """The plotting library, gzipped, in base64."""
    library = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(library, 9, mtime=0)).decode()
