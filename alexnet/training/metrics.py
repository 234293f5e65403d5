"""metrics.jsonl: what a run reported, one JSON object a line.

    {"kind": "step", "step": 50, "epoch": 0, "at": 50, "of": 390, "loss": ..., "lr": ...,
     "images_per_second": ..., "waiting": 0.004}    every few steps, of the steps since the last one
    {"kind": "epoch", "step": 390, "epoch": 0, "epochs": 91, "loss": ..., "validation_loss": ...,
     "top1": ..., "top5": ..., "images_per_second": ..., "waiting": ..., "bound": "compute",
     "seconds": ..., "validation_seconds": ...}     of a whole epoch

Epochs count from 0, losses are means in nats, waiting is a share of the time, top1 and top5 are
errors in 0..1; docs/training.md has a table of the fields.

A resumed run cuts off the lines that came after its checkpoint, since it goes through them again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"
Record = dict[str, Any]


class Metrics:
    """Appends records to RUN/metrics.jsonl, each flushed at once, so that others can follow it."""

    def __init__(self, run: Path, *, keep_lines: int) -> None:
        self.path = run / NAME
        # Bytes, since a damaged line must not keep the run from being resumed.
        lines = self.path.read_bytes().splitlines()[:keep_lines] if self.path.exists() else []
        partial = self.path.with_name(f"{NAME}.partial")
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
        partial.replace(self.path)
        self.lines = len(lines)

    def write(self, record: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.lines += 1


def read(run: Path) -> Iterator[Record]:
    """The records of a run in order, without a last line that a killed run left unfinished.

    ValueError at a line that is not JSON.
    """
    for line in (run / NAME).read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)
