"""The loader on a GPU, next to what a training step consumes.

All ways augment on the GPU: "GPU decode" hands it JPEG files, "CPU decode" the crops that this
machine's cores decoded, and "images in GPU memory" were decoded before. The baseline is the
consumption of the trainer: images/s of the fastest step (bf16, one CUDA graph) on the same GPU,
measured in turns with the loader, and with both at once: the step trains on the loader's batches,
as in training.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alexnet.distributed.feed import Batch
from alexnet.model.networks import code2012
from alexnet.training.config import TrainConfig
from alexnet.training.step import image_type
from alexprep.bench.load_bench import (
    Batches,
    endless,
    images_per_second,
    read_samples,
    wait_for,
)
from alexprep.bench.measurement import Row, compared, interleaved, timed
from alexprep.bench.step_bench import Case, batch_step, random_batch
from alexprep.bench.suite import BenchConfig
from benchmarks.gpu.steps import Measurement
from pipelines import AugmentSpec, LoaderConfig, open_loader
from pipelines.format import Manifest

BATCHES = (128, 1024)
# What a LoaderConfig says of each; a share of decoding is that of the JPEG engine.
WAYS: Mapping[str, dict[str, Any]] = {
    "GPU decode": {"backend": "dali", "decode": "mixed"},
    "images in GPU memory": {"backend": "resident"},
    "CPU decode": {"backend": "dali", "decode": "cpu"},
    "GPU decode, JPEG engine 90%": {"backend": "dali", "decode": "mixed", "hw_decoder_load": 0.9},
    "GPU decode, no JPEG engine": {"backend": "dali", "decode": "mixed", "hw_decoder_load": 0.0},
}
STEPS = 20  # of the trainer in one measurement
FEWEST = 4  # batches of a measurement: fewer would time the queue


def load_measurements(
    root: Path, config: BenchConfig, case: Case | None = None
) -> Iterator[Measurement]:
    """Every way at both batch sizes, the usual ones first.

    `case` is the trainer's step, by default the fastest of code2012.
    """
    case = case or Case(
        network=code2012(),
        batch=BATCHES[0],
        precision="bfloat16",
        cuda_graph=True,
        device=config.device,
    )
    for name, way in WAYS.items():
        for batch in BATCHES:
            title = f"batch {batch}: {name}, GPU augmentation"
            loading = LoaderConfig(
                batch=batch,
                device=config.device,
                **way,
                channels_last=True,
                dtype=image_type(TrainConfig(precision=case.precision), config.device),
            )
            own = replace(case, batch=batch)
            yield title, partial(compare_loader, title, root, loading, own, config)
    yield "reader", lambda: [read_samples(root, config)]


def compare_loader(
    title: str, root: Path, loading: LoaderConfig, case: Case, config: BenchConfig
) -> list[Row]:
    """One way to load, the trainer, and the trainer fed by the loader, in turns."""
    batch = loading.batch
    baseline = f"batch {batch}: the trainer's consumption ({case.precision})"
    # Captured before DALI's threads begin: they use the GPU too, which ends a capture.
    train_on = batch_step(case)
    step = partial(train_on, random_batch(case))
    _train(step, case)
    spec = AugmentSpec(crop=case.network.crop, source=Manifest.load(root).size)
    with open_loader(root, "train", loading, spec) as loader:
        count = max(FEWEST, -(-config.images // batch))
        cases: dict[str, Callable[[], float]] = {
            baseline: partial(timed, partial(_train, step, case)),
            title: partial(images_per_second, endless(loader), count, config.device),
            f"{title}, with the step": partial(
                images_per_second, _trained(endless(loader), train_on), count, config.device
            ),
        }
        rates = interleaved(cases, config.rounds, rate=lambda case: case())
    torch.cuda.empty_cache()
    return compared(rates, baseline=baseline)


def _train(step: Callable[[], None], case: Case) -> float:
    for _ in range(STEPS):
        step()
    wait_for(case.device)
    return STEPS * case.batch


def _trained(batches: Batches, step: Callable[[Batch], None]) -> Batches:
    """The batches, each trained on before it is given out."""
    for batch in batches:
        step(batch)
        yield batch
