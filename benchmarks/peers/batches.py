# pyright: basic, reportMissingImports=false
"""What the scripts of the loading peers share: the work of one image, and rounds on request.

A script opens its loader once and then waits. For every line on its standard input, "AHEAD COUNT",
it begins an epoch, takes AHEAD batches, takes COUNT batches against the clock, lets the epoch run
out, and answers with a line of JSON. So nobody's start counts, and nothing made ahead of the clock.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCH, THREADS, CROP, SIZE = 128, 2, 227, 256
BATCHES = 23  # of an epoch of the 3,000 images
MEAN = (123.675, 116.28, 103.53)


def data() -> Path:
    """The folder named on the command line."""
    return Path(sys.argv[1])


def augmented(jpg: bytes) -> torch.Tensor:
    """What training scripts do with Pillow: random crop and flip, float32 less the mean colour."""
    from PIL import Image  # noqa: PLC0415 - not every peer has it

    pixels = np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB"))
    return cropped(torch.tensor(pixels).permute(2, 0, 1))


def cropped(pixels: torch.Tensor) -> torch.Tensor:
    """The same from decoded pixels, uint8 (3, SIZE, SIZE)."""
    y, x = (int(torch.randint(0, SIZE - CROP + 1, ())) for _ in range(2))
    crop = pixels[:, y : y + CROP, x : x + CROP]
    crop = crop.flip(2) if torch.rand(()) < 0.5 else crop
    return crop.float().sub_(torch.tensor(MEAN)[:, None, None])


def cpu_seconds(process: int) -> float:
    """Time of processors that a process and its children have used; Linux only."""
    folder = Path(f"/proc/{process}")
    try:
        ticks = folder.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        tasks = folder.joinpath("task").iterdir()
        children = {int(n) for task in tasks for n in (task / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0
    own = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(child) for child in children)


def rounds_of(endless: Iterator, batches: int = BATCHES) -> Callable[[], Iterator]:
    """Epochs of a loader that has none."""
    return lambda: islice(endless, batches)


def serve(epoch: Callable[[], Iterable[Any]]) -> None:
    """Answer every line of standard input with a round; what libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        ahead, count = map(int, line.split())
        used = cpu_seconds(os.getpid())
        batches: Iterator[Any] = iter(epoch())
        first: Any = next(batches)[0]
        shape: Any = first.shape() if callable(first.shape) else first.shape  # DALI's is called
        shape_and_type = [list(shape), str(first.dtype).split(".")[-1].lower()]
        for _ in islice(batches, ahead - 1):
            pass
        began = time.perf_counter()
        images = sum(len(batch[1]) for batch in islice(batches, count))
        seconds = time.perf_counter() - began
        # Of the whole epoch, since what was made ahead of the clock was made in it.
        total = images + BATCH * ahead + sum(len(batch[1]) for batch in batches)
        answer = {"images": images, "seconds": seconds, "first": shape_and_type}
        answer["cpu"] = (cpu_seconds(os.getpid()) - used) / total
        answers.write(json.dumps(answer) + "\n")
