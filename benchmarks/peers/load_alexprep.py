# pyright: basic
"""Our loader in either memory format, or DALI with its own reader, with alexprep's interpreter.

Ours subtracts the mean image and lights the images, which nobody else here does, unless "plain".
The backend is DALI, unless another one is named: "torch", or "planes", which are decoded once.
"""

import sys

from batches import BATCH, CROP, MEAN, THREADS, data, rounds_of, serve

from alexprep.bench.load_bench import bare_dali
from pipelines import AugmentSpec, LoaderConfig, open_loader


def ours(layout: str) -> None:
    """Serve open_loader."""
    config = LoaderConfig(
        batch=BATCH,
        threads=THREADS,
        backend=layout if layout in ("planes", "torch") else "dali",
        channels_last=layout == "channels_last",
    )
    augment = AugmentSpec(crop=CROP)
    if layout == "plain":  # what the peers do
        augment = AugmentSpec(crop=CROP, mean=MEAN, lighting=0, divide=1)
    with open_loader(data(), "train", config, augment) as loader:
        serve(lambda: loader)


def bare() -> None:
    """Serve what DALI does alone."""
    serve(rounds_of(bare_dali(data(), THREADS)))


if __name__ == "__main__":
    bare() if sys.argv[2] == "bare" else ours(sys.argv[2])
