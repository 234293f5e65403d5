"""The page of a run, continued: a run folder as it stands, its curves and its speed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.errors import RunError
from alexnet.training import checkpoint, metrics
from alexprep.errors import PrepareError
from alexprep.model.trained import Trained, load_trained
from alexprep.model.training import CONFIG, flat
from alexprep.report import page as html
from alexprep.report.charts import (
    BLUE,
    ORANGE,
    PALE_BLUE,
    TEAL,
    Mark,
    curves,
    line,
    thinned,
    two_panels,
)

Records = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run folder as it stands: config.json, the log, and the checkpoint that is looked at."""

    folder: Path
    config: Mapping[str, Any]
    steps: Records
    epochs: Records
    trained: Trained
    done: int  # epochs that the checkpoint had behind it

    @property
    def planned(self) -> int:
        return int(self.config["recipe"]["train"]["epochs"])


def read_run(folder: Path, device: str) -> Run:
    """PrepareError for a run without checkpoints or without its config.json."""
    try:
        path = checkpoint.resolve(folder)
    except RunError:
        raise PrepareError(
            f"{folder} has no checkpoint yet: a run writes its first after ten minutes or one "
            "epoch. Wait for it, or go on with the same `alexprep train`."
        ) from None
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        parts = [config["recipe"][part] for part in ("model", "augment", "train", "loader")]
        for part in (*parts, config["data"], config["calls"][-1]["machine"]):
            flat(part)
    except (FileNotFoundError, ValueError, LookupError, TypeError) as error:
        raise PrepareError(
            f"{folder / CONFIG} is missing or damaged ({error!r}); `alexprep train` writes it."
        ) from None
    try:
        records = list(metrics.read(folder)) if (folder / metrics.NAME).is_file() else []
    except ValueError as error:
        raise PrepareError(
            f"{folder / metrics.NAME} is damaged ({error}). Remove the line, or copy it again."
        ) from None
    progress = checkpoint.load(path, ()).meta.get("progress", {})
    return Run(
        folder=folder,
        config=config,
        steps=[record for record in records if record["kind"] == "step"],
        epochs=[record for record in records if record["kind"] == "epoch"],
        trained=load_trained(path, device),
        done=int(progress.get("epoch", 0)),
    )


def _at(record: Mapping[str, Any]) -> float:
    """Epochs gone by when a line of the log was written."""
    return record["epoch"] + record["at"] / max(record["of"], 1)


def happenings(run: Run) -> list[Mark]:
    """Drops of the rate as the log has them, and what the recipe turned off, so far."""
    found = [
        Mark(after["epoch"], f"rate {after['lr']:.2g}")
        for before, after in zip(run.steps, run.steps[1:], strict=False)
        if after["lr"] != before["lr"]
    ]
    gone = run.steps[-1]["epoch"] if run.steps else 0
    recipe = run.config["recipe"]
    dark = recipe["augment"].get("lighting_epochs")
    if dark is not None and dark <= gone and recipe["augment"]["lighting"]:
        found.append(Mark(dark, "no colour noise"))
    for layer, stages in recipe["train"]["schedule"].get("layers", {}).items():
        ends = [math.ceil(start * run.planned - 1e-9) for start, part in stages if part == 0]
        found += [Mark(end, f"{layer} frozen") for end in ends if end <= gone]
    return sorted(found)


def learning(run: Run) -> str:
    """Loss and errors over the epochs."""
    if not run.steps:
        return html.note("The log has no line yet: it gets one every train.log_steps steps.")
    found = happenings(run)
    x, loss = thinned([_at(r) for r in run.steps], [r["loss"] for r in run.steps])
    ends = [record["epoch"] + 1 for record in run.epochs]
    told = [record["validation_loss"] for record in run.epochs]
    losses = [
        line("training", x, loss, PALE_BLUE),
        line("validation", ends, told, BLUE, dots=True),
    ]
    top1 = [record["top1"] for record in run.epochs]
    top5 = [record["top5"] for record in run.epochs]
    errors = [
        line("top-1", ends, top1, ORANGE, dots=True, hover="%{y:.2%}"),
        line("top-5", ends, top5, TEAL, dots=True, hover="%{y:.2%}"),
    ]
    best = f"; best top-1 {min(top1):.2%}" if top1 else ""
    left = html.chart(
        "loss",
        curves(losses, "loss", found),
        says=f"Loss over {_at(run.steps[-1]):.1f} epochs, from {loss[0]:.2f} to {loss[-1]:.2f}.",
        caption=(
            "Cross-entropy. In training, crops, colour noise and dropout make it harder: the two "
            "curves may lie either way. Dotted: changes of the schedule."
        ),
    )
    right = html.chart(
        "errors",
        curves(errors, "validation error", found, tickformat=".0%"),
        says=f"Top-1 and top-5 error of {len(ends)} epochs{best}.",
        caption="Shares of validation images with the centre view, counted after every epoch.",
    )
    if not run.epochs:
        right = html.note("No epoch has ended yet, so no error was counted.")
    return html.pair(left, right) + _epochs(run)


def _epochs(run: Run) -> str:
    head = ("epoch", "loss", "validation", "top-1", "top-5", "images/s", "waiting", "seconds")
    rows = [
        (
            str(record["epoch"] + 1),
            f"{record['loss']:.3f}",
            f"{record['validation_loss']:.3f}",
            f"{record['top1']:.2%}",
            f"{record['top5']:.2%}",
            f"{record['images_per_second']:,.0f}",
            f"{record['waiting']:.1%}",
            f"{record['seconds']:,.0f}",
        )
        for record in run.epochs
    ]
    if not rows:
        return ""
    return html.folded("All epochs as a table", html.table(head, rows, numbers=range(1, 8)))


def speed(run: Run) -> str:
    """Throughput and waiting over the epochs."""
    if not run.steps:
        return html.note("The log has no line yet.")
    at = [_at(record) for record in run.steps]
    x, rates = thinned(at, [record["images_per_second"] for record in run.steps])
    _, waits = thinned(at, [record["waiting"] for record in run.steps])
    middle = sorted(rates)[len(rates) // 2]
    waiting = sum(record["waiting"] for record in run.steps) / len(run.steps)
    hours = sum(r["seconds"] + r["validation_seconds"] for r in run.epochs) / 3600
    chart = html.chart(
        "throughput",
        two_panels(
            line("images/s", x, rates, BLUE, hover="%{y:,.0f} images/s"),
            line("waiting for data", x, waits, ORANGE, hover="%{y:.1%} of the time"),
            ("images/s", "waiting for data"),
        ),
        says=f"{middle:,.0f} images a second, {waiting:.1%} of the time without data.",
        height=400,
    )
    ended = f" The {len(run.epochs)} finished epochs took {_time(hours)} with their validation."
    return (
        html.paragraph(
            f"{middle:,.0f} images/s in the median; {waiting:.1%} of the time went by without data."
            + (ended if run.epochs else "")
        )
        + chart
    )


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
