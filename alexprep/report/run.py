"""The page of a run: how it learned, what it sees, how fast it was, and what it was."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexprep import __version__
from alexprep.model.placement import check_devices
from alexprep.model.training import flat
from alexprep.report import page as html
from alexprep.report.answers import confusion, error_table, examples, nearest
from alexprep.report.kernels import kernels
from alexprep.report.learning import Run, learning, read_run, speed
from alexprep.report.seen import Seen, look
from pipelines.errors import DataError
from pipelines.format import Manifest


def run_page(folder: Path, *, data: Path | None, images: int, device: str) -> str:
    """The HTML of a run; without its data set, a page that says so where pictures would be."""
    check_devices((device,))
    run = read_run(folder, device)
    seen, missing = _see(run, data, images, device)
    pictures = (
        [
            html.Section("answers", "Answers", examples(seen)),
            html.Section("neighbours", "Nearest neighbours", nearest(seen)),
            html.Section("confusion", "Confusion", confusion(seen)),
        ]
        if seen
        else [html.Section("answers", "Answers", html.note(missing))]
    )
    errors = error_table(folder, seen, len(run.trained.classes))
    sections = [
        html.Section("learning", "Learning", learning(run) + errors),
        html.Section("kernels", "First layer", kernels(run.trained)),
        *pictures,
        html.Section("speed", "Speed", speed(run)),
        html.Section("recipe", "Recipe and machine", _recipe(run)),
    ]
    name = run.config["recipe"]["name"]
    where = run.trained.path.name
    lead = f"{folder}; pictures and errors from {where}, after epoch {run.done}"
    title = f"{name} on {run.config['data']['name']}"
    foot = f"Written by alexprep {__version__}."
    return html.page(title, lead, _tiles(run, seen), sections, foot=foot)


def _see(run: Run, data: Path | None, images: int, device: str) -> tuple[Seen | None, str]:
    """What the network says of its data set, or the sentence that says why it could not look."""
    root = data or Path(run.config["calls"][-1]["dataset"])
    try:
        manifest = Manifest.load(root)
        first = manifest.split("train", root).shards[0].sha256
    except DataError as error:
        if data is not None:
            raise
        return None, (
            f"The data set of this run is gone, so the network was not asked: {error} "
            "Where it is elsewhere now, name its folder with --data."
        )
    if first != run.config["data"]["first_shard_sha256"] and data is None:
        return None, f"{root} holds another data set now. Name the one of this run with --data."
    return look(root, run.trained, images=images, device=device), ""


def _tiles(run: Run, seen: Seen | None) -> list[html.Tile]:
    tiles = [html.Tile("epochs", f"{len(run.epochs)} of {run.planned}")]
    if run.epochs:
        best = min(run.epochs, key=lambda record: record["top1"])
        of = f"1 view, epoch {best['epoch'] + 1}"
        tiles.append(html.Tile("top-1 error", f"{best['top1']:.2%}", of))
        tiles.append(html.Tile("top-5 error", f"{best['top5']:.2%}", of))
    if seen is not None:
        ten = seen.errors(10)
        tiles.append(html.Tile("top-1, 10 views", f"{ten.top1:.2%}", f"{len(seen):,} images"))
        tiles.append(html.Tile("top-5, 10 views", f"{ten.top5:.2%}", f"{len(seen):,} images"))
    weights = sum(each.numel() for each in run.trained.model.parameters())
    tiles.append(html.Tile("parameters", f"{weights / 1e6:.3g} M", f"{weights:,}"))
    if run.steps:
        rates = sorted(record["images_per_second"] for record in run.steps)
        middle = rates[len(rates) // 2]
        tiles.append(html.Tile("images/s", f"{middle:,.0f}", "training, median"))
    return tiles


def _recipe(run: Run) -> str:
    parts = run.config["recipe"]
    calls: Sequence[Mapping[str, Any]] = run.config["calls"]
    last = calls[-1]
    machine: Mapping[str, Any] = {name: _plain(value) for name, value in last["machine"].items()}
    about = {
        "recipe": parts["name"],
        "data set": run.config["data"]["name"],
        "training images": f"{run.config['data']['images']:,}",
        "begun": calls[0]["when"],
        "last called": last["when"],
        "calls": len(calls),
        "devices": ", ".join(last["devices"]),
    }
    tables = [
        html.folded(name, html.facts({k: _plain(v) for k, v in flat(parts[name]).items()}))
        for name in ("model", "augment", "train", "loader")
    ]
    return html.pair(
        "<h3>Run</h3>" + html.facts(about) + "".join(tables),
        "<h3>Machine</h3>" + html.facts(machine),
    )


def _plain(value: object) -> str:
    if isinstance(value, list) and not value:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
