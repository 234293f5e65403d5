"""A small data set and a short run to report on."""

import json
import shutil
from pathlib import Path

import numpy as np

from alexprep.model.training import TrainOptions, train
from tests.tarsets import drawn_items, measured, write_dataset

EPOCHS = 2
TRAIN, VALIDATION = 50, 24


def make_dataset(root: Path, *, stats: bool = True) -> Path:
    """Drawn photographs in three classes, with statistics."""
    rng = np.random.default_rng(8)
    splits = {
        "train": drawn_items(rng, TRAIN, prefix="train"),
        "validation": drawn_items(rng, VALIDATION, prefix="validation"),
    }
    write_dataset(root, splits, size=64)
    if stats:
        measured(root)
    return root


def make_run(dataset: Path, run: Path) -> Path:
    """The smoke network after two epochs of four steps."""
    options = TrainOptions(
        smoke=True,
        epochs=EPOCHS,
        settings=("loader.batch=16", "train.log_steps=1", "train.schedule=net_145"),
    )
    train(dataset, run, options)
    return run


def ninety_epochs(run: Path, copy: Path) -> Path:
    """A copy of the run with the log of a long one: 200 lines an epoch, three learning rates."""
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["crc32"]
    config["recipe"]["train"]["epochs"] = 90
    config["recipe"]["augment"]["lighting_epochs"] = 66
    (copy / "config.json").write_text(json.dumps(config))
    lines = []
    for epoch in range(90):
        lr = 0.01 * 0.1 ** sum(epoch >= drop for drop in (25, 51, 79))
        loss = 7 * np.exp(-epoch / 30)
        for batch in range(50, 10_001, 50):
            step = {"kind": "step", "step": epoch * 10_000 + batch, "epoch": epoch, "at": batch}
            values = {"of": 10_000, "loss": loss, "lr": lr}
            lines.append({**step, **values, "images_per_second": 900.0, "waiting": 0.01})
        lines.append(
            {"kind": "epoch", "step": (epoch + 1) * 10_000, "epoch": epoch, "epochs": 90}
            | {"loss": loss, "validation_loss": loss * 0.9, "top1": 0.4 + loss / 20}
            | {"top5": 0.2 + loss / 20, "images_per_second": 900.0, "waiting": 0.01}
            | {"bound": "compute", "seconds": 1424.0, "validation_seconds": 40.0}
        )
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return copy
