"""`alexprep bench load`: our loader next to DALI with its own reader, on the same shards.

Where the images are stored decoded (`alexprep planes`; on drawn data they are), loading from planes
is measured too, and copying the same output from memory as the bound that no loader passes.

Batches of 128, random crops of 227 pixels, half of them mirrored. Ours subtract the mean image and
shift the colours, as the network of 2012 needs; DALI subtracts a mean colour. On a GPU both decode
and augment there.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexprep.bench.measurement import Row, compared, interleaved, row
from alexprep.bench.suite import BenchConfig, drawn_data_set
from alexprep.dataset.decode import store_planes
from alexprep.machine import cores
from pipelines import AugmentSpec, Loader, LoaderConfig, open_loader
from pipelines.format import Manifest
from pipelines.shards import SplitReader

BATCH, CPU_THREADS, CROP = 128, 2, 227
MEAN = (123.675, 116.28, 103.53)
UNTIMED = 6  # batches that a loader may have prefetched while the others ran
BASELINE = "bare DALI, own reader"
TARGETS = {"alexprep dali": ">= 0.97", "alexprep dali, channels_last": ">= 0.97"}
PLAIN = AugmentSpec(crop=CROP, mean="none", lighting=0, divide=1)
Batches = Iterator[Any]


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s of every way to load; config.data is a data set of 256 pixels with statistics."""
    root = config.data or drawn_data_set(folder, 1000)
    if config.data is None:
        store_planes(root, ("train",))
    count = -(-config.images // BATCH)
    with ExitStack() as stack:
        cases: dict[str, Callable[[], float]] = {
            name: partial(images_per_second, batches, count, config.device)
            for name, batches in open_cases(root, config.device, stack).items()
        }
        # A case has a clock of its own, which leaves out the batches that were prefetched.
        rates = interleaved(cases, config.rounds, rate=lambda case: case())
    return [*compared(rates, baseline=BASELINE, targets=TARGETS), read_samples(root, config)]


def read_samples(root: Path, config: BenchConfig) -> Row:
    """Microseconds of a processor to read and check a sample, in random order, nothing decoded.

    Most of it holds Python's lock: where planes are not resident, a process that trains on a GPU
    loads no more images a second than this leaves time for.
    """
    reader = SplitReader(root, Manifest.load(root), "train", "size")
    order: list[int] = np.random.default_rng(0).permutation(sum(reader.lengths)).tolist()
    values: list[float] = []
    for number in range(config.rounds + 1):
        start = time.process_time()
        for index in islice(cycle(order), config.images):
            reader.read(index)
        # The first round parses indexes and fills the system's cache.
        if number:
            values.append(1e6 * (time.process_time() - start) / config.images)
    reader.close()
    return row("reading a sample, CPU time", values, "us", "<= 10")


def images_per_second(batches: Batches, count: int, device: str) -> float:
    """Images/s over `count` batches, after those that were prefetched."""
    for _ in islice(batches, UNTIMED):
        pass
    wait_for(device)
    start = time.perf_counter()
    images = sum(len(batch[1]) for batch in islice(batches, count))
    wait_for(device)
    return images / (time.perf_counter() - start)


def wait_for(device: str) -> None:
    """Until a GPU has done what is queued."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def open_cases(root: Path, device: str, stack: ExitStack) -> dict[str, Batches]:
    """Endless batches of each way to load; `stack` closes the loaders."""
    # Two threads on a CPU, which the network needs too; all cores where a GPU trains.
    threads = CPU_THREADS if device == "cpu" else cores()
    cases: dict[str, Batches] = {BASELINE: bare_dali(root, threads, device)}
    dali = LoaderConfig(backend="dali", device=device, threads=threads)
    spec = AugmentSpec(crop=CROP)
    ours = {
        "alexprep dali": (dali, spec),
        "alexprep dali, channels_last": (replace(dali, channels_last=True), spec),
        "alexprep dali, uint8": (replace(dali, dtype="uint8"), PLAIN),
    }
    if device == "cpu":
        ours["alexprep torch"] = (LoaderConfig(backend="torch"), spec)
        cases["copy of the output"] = copies()
    from pipelines.planestore import has_planes  # noqa: PLC0415 - needs simplejpeg

    if has_planes(root, Manifest.load(root), "train"):
        planes = replace(dali, backend="planes" if device == "cpu" else "resident")
        ours |= {
            f"alexprep {planes.backend}": (planes, spec),
            f"alexprep {planes.backend}, channels_last": (
                replace(planes, channels_last=True),
                spec,
            ),
            f"alexprep {planes.backend}, uint8": (replace(planes, dtype="uint8"), PLAIN),
        }
    for name, (config, spec) in ours.items():
        cases[name] = endless(stack.enter_context(open_loader(root, "train", config, spec)))
    return cases


def endless(loader: Loader) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def copies() -> Batches:
    """Batches of float32 crops that are only copied from one place in memory to another."""
    source = torch.zeros((BATCH, 3, CROP, CROP))
    out, labels = torch.empty_like(source), torch.zeros(BATCH, dtype=torch.int64)
    while True:
        yield out.copy_(source), labels


def bare_dali(root: Path, threads: int = CPU_THREADS, device: str = "cpu") -> Batches:
    """What DALI does alone: its webdataset reader, decoder and crop_mirror_normalize."""
    from nvidia.dali import fn, types  # noqa: PLC0415 - optional
    from nvidia.dali.pipeline import Pipeline  # noqa: PLC0415

    operators: Any = fn
    floats: Any = types.DALIDataType.FLOAT
    shards = Manifest.load(root).split("train", root).shards
    gpu = None if device == "cpu" else int(device.partition(":")[2] or 0)
    pipeline: Any = Pipeline(
        batch_size=BATCH, num_threads=threads, device_id=gpu, exec_dynamic=True
    )
    with pipeline:
        jpg, label = operators.readers.webdataset(
            paths=[str(root / shard.name) for shard in shards],
            index_paths=[str(root / shard.index) for shard in shards],
            ext=["jpg", "cls"],
            random_shuffle=True,
            missing_component_behavior="error",
        )
        images = operators.decoders.image(jpg, device="cpu" if gpu is None else "mixed")
        images = operators.crop_mirror_normalize(
            images,
            crop=(CROP, CROP),
            crop_pos_x=operators.random.uniform(range=(0, 1)),
            crop_pos_y=operators.random.uniform(range=(0, 1)),
            mirror=operators.random.coin_flip(),
            mean=list(MEAN),
            std=[1.0, 1.0, 1.0],
            dtype=floats,
            output_layout="CHW",
        )
        pipeline.set_outputs(images, label)
    pipeline.build()
    while True:
        images, label = pipeline.run()
        yield images.as_tensor(), label
