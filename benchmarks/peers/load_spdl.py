# pyright: basic, reportMissingImports=false
"""SPDL's pipeline with two threads: FFmpeg decodes a folder of JPEG files, torch crops."""

import random
from collections.abc import Iterator
from pathlib import Path

import spdl.io
import torch
from batches import BATCH, THREADS, cropped, data, serve
from photographs import files, labels
from spdl.pipeline import PipelineBuilder

PATHS, LABELS = files(data()), labels(data())


def load(path: Path) -> tuple[torch.Tensor, int]:
    """A decoded and cropped sample."""
    packets = spdl.io.demux_image(str(path))
    frames = spdl.io.decode_packets(packets, filter_desc="format=pix_fmts=rgb24")
    pixels = spdl.io.to_torch(spdl.io.convert_frames(frames))
    return cropped(pixels.permute(2, 0, 1)), LABELS[path.parent.name]


def collate(samples: list) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch."""
    images, numbers = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(numbers)


def epoch() -> Iterator:
    """All files in random order."""
    paths = random.sample(PATHS, len(PATHS))
    builder = PipelineBuilder().add_source(paths).pipe(load, concurrency=THREADS)
    builder = builder.aggregate(BATCH, drop_last=True).pipe(collate).add_sink(3)
    with (pipeline := builder.build(num_threads=THREADS)).auto_stop():
        yield from pipeline


if __name__ == "__main__":
    serve(epoch)
