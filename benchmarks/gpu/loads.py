"""The loader on a GPU, next to what a training step consumes.

Both ways augment on the GPU: "GPU decode" hands it JPEG files, "CPU decode" the crops that this
machine's cores decoded. The baseline is the consumption of the trainer: images/s of the fastest
step (bf16, one CUDA graph) on the same GPU, measured in turns with the loader.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from alexnet.model.networks import code2012
from alexprep.bench.load_bench import endless, images_per_second
from alexprep.bench.measurement import Row, compared, interleaved, timed
from alexprep.bench.step_bench import Case, training_step
from alexprep.bench.suite import BenchConfig
from benchmarks.gpu.steps import Measurement
from pipelines import AugmentSpec, LoaderConfig, open_loader

BATCHES = (128, 1024)
# How it decodes, and the share of it that the JPEG engine takes.
WAYS: Mapping[str, tuple[Literal["mixed", "cpu"], float]] = {
    "GPU decode": ("mixed", 1.0),
    "CPU decode": ("cpu", 1.0),
    "GPU decode, JPEG engine 90%": ("mixed", 0.9),
    "GPU decode, no JPEG engine": ("mixed", 0.0),
}
STEPS = 20  # of the trainer in one measurement
FEWEST = 4  # batches of a measurement: fewer would time the queue


def load_measurements(root: Path, config: BenchConfig) -> Iterator[Measurement]:
    """Every way at both batch sizes, the usual ones first."""
    for name, (decode, engine) in WAYS.items():
        for batch in BATCHES:
            title = f"batch {batch}: {name}, GPU augmentation"
            loading = LoaderConfig(
                batch=batch,
                device=config.device,
                backend="dali",
                decode=decode,
                hw_decoder_load=engine,
                channels_last=True,
            )
            yield title, partial(compare_loader, title, root, loading, config)


def compare_loader(title: str, root: Path, loading: LoaderConfig, config: BenchConfig) -> list[Row]:
    """One way to load and the trainer, in turns."""
    batch = loading.batch
    baseline = f"batch {batch}: the trainer's consumption (bf16, CUDA graph)"
    # Captured before DALI's threads begin: they use the GPU too, which ends a capture.
    network, device = code2012(), config.device
    case = Case(network=network, batch=batch, precision="bfloat16", cuda_graph=True, device=device)
    step = training_step(case)
    _train(step, batch)
    spec = AugmentSpec(crop=code2012().crop)
    with open_loader(root, "train", loading, spec) as loader:
        count = max(FEWEST, -(-config.images // batch))
        cases: dict[str, Callable[[], float]] = {
            baseline: partial(timed, partial(_train, step, batch)),
            title: partial(images_per_second, endless(loader), count, config.device),
        }
        rates = interleaved(cases, config.rounds, rate=lambda case: case())
    torch.cuda.empty_cache()
    return compared(rates, baseline=baseline)


def _train(step: Callable[[], None], batch: int) -> float:
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return STEPS * batch
