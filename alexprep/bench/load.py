"""`alexprep bench load`: our loader beside DALI's own reader, torch's DataLoader and webdataset.

All cases read the same shards, batch 128, two threads (or two processes), random crops of 227
pixels and flips. Ours also subtract the mean image and light the images as the network of 2012
wants it; the others subtract a mean colour. Batches that a case prefetched while the others ran
are taken before its clock starts.
"""

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexprep.bench.frame import BenchConfig, Row, rows
from alexprep.bench.load_gpu import gpu_loads
from alexprep.dataset.shard import RunOptions, ShardConfig, shard
from alexprep.dataset.stats import compute_stats
from alexprep.synthetic import DrawConfig, draw_source
from pipelines import AugmentSpec, Loader, LoaderConfig, open_loader
from pipelines.format import Manifest
from pipelines.shards import SplitReader

BATCH, THREADS, CROP = 128, 2, 227
MEAN = (123.675, 116.28, 103.53)
UNTIMED = 6  # batches that any of the cases may have made ahead
BARE = "bare DALI, own reader"
TARGETS = {
    "alexprep dali": ">= 0.97",
    "alexprep dali, channels_last": ">= 0.97",
    "torch DataLoader + Pillow": "<= 0.34",
    "webdataset": "<= 0.36",
}
Batches = Iterator[Any]


def run(config: BenchConfig, folder: Path) -> list[Row]:
    """Images/s of every case; the ratios are to bare DALI with DALI's own reader.

    On a GPU other cases are measured, see alexprep.bench.load_gpu.

    config.data is a data set of 256 pixels with statistics; without one, images are drawn.
    """
    root = config.data or drawn_data_set(folder)
    if config.device != "cpu":
        return list(gpu_loads(root, config))
    per_round = -(-config.images // BATCH)
    with ExitStack() as stack:
        cases = open_cases(root, stack)
        rates: dict[str, list[float]] = {name: [] for name in cases}
        names = list(cases)
        for turn in range(config.rounds + 1):
            at = turn % len(names)
            for name in names[at:] + names[:at]:
                rate = images_per_second(cases[name], per_round)
                if turn:  # the first round warms up
                    rates[name].append(rate)
    return rows(rates, floor=BARE, targets=TARGETS)


def images_per_second(batches: Batches, count: int) -> float:
    """Images/s over `count` batches, without those that were made ahead."""
    for _ in islice(batches, UNTIMED):
        pass
    began = time.perf_counter()
    images = sum(len(batch[1]) for batch in islice(batches, count))
    return images / (time.perf_counter() - began)


def drawn_data_set(folder: Path) -> Path:
    """A drawn source of photographs' size, sharded and measured."""
    source, root = folder / "source", folder / "shards"
    for _ in draw_source(source, DrawConfig(train=100, validation=1, shortest=256, longest=500)):
        pass
    shard(source, root, ShardConfig(shards=4), RunOptions(splits=("train",)))
    compute_stats(root)
    return root


def open_cases(root: Path, stack: ExitStack) -> dict[str, Batches]:
    """Endless batches of each way to load; what must be closed is given to `stack`."""
    manifest = Manifest.load(root)
    tars = [str(root / one.name) for one in manifest.split("train", root).shards]
    indexes = [str(root / one.index) for one in manifest.split("train", root).shards]
    plain = AugmentSpec(crop=CROP, mean="none", lighting=0, divide=1)
    ours: Mapping[str, tuple[LoaderConfig, AugmentSpec]] = {
        "alexprep dali": (LoaderConfig(backend="dali"), AugmentSpec(crop=CROP)),
        "alexprep dali, channels_last": (
            LoaderConfig(backend="dali", channels_last=True),
            AugmentSpec(crop=CROP),
        ),
        "alexprep dali, uint8": (LoaderConfig(backend="dali", dtype="uint8"), plain),
        "alexprep torch": (LoaderConfig(backend="torch"), AugmentSpec(crop=CROP)),
    }
    cases: dict[str, Batches] = {
        BARE: bare_dali(tars, indexes, augmented=True),
        "decode only (DALI)": bare_dali(tars, indexes, augmented=False),
    }
    for name, (config, spec) in ours.items():
        loader = stack.enter_context(open_loader(root, "train", config, spec))
        cases[name] = endless(loader)
    cases["torch DataLoader + Pillow"] = torch_dataloader(root, manifest)
    cases["webdataset"] = webdataset_loader(tars)
    return cases


def endless(loader: Loader) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def bare_dali(tars: list[str], indexes: list[str], *, augmented: bool) -> Batches:
    """What DALI does by itself: its webdataset reader, decoder, and crop_mirror_normalize."""
    from nvidia.dali import fn, types  # noqa: PLC0415 - optional
    from nvidia.dali.pipeline import Pipeline  # noqa: PLC0415

    floats: Any = types.DALIDataType.FLOAT
    pipeline: Any = Pipeline(
        batch_size=BATCH, num_threads=THREADS, device_id=None, exec_dynamic=True
    )
    operators: Any = fn
    with pipeline:
        jpg, label = operators.readers.webdataset(
            paths=tars,
            index_paths=indexes,
            ext=["jpg", "cls"],
            random_shuffle=True,
            missing_component_behavior="error",
        )
        images = operators.decoders.image(jpg, device="cpu")
        if augmented:
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


def augmented(jpg: bytes) -> Tensor:
    """What most training scripts do with Pillow: random crop and flip, float32 minus the mean."""
    pixels = np.asarray(Image.open(io.BytesIO(jpg)).convert("RGB"))
    y, x = (int(torch.randint(0, len(pixels) - CROP + 1, ())) for _ in range(2))
    crop = torch.tensor(pixels[y : y + CROP, x : x + CROP]).permute(2, 0, 1)
    crop = crop.flip(2) if torch.rand(()) < 0.5 else crop
    return crop.float().sub_(torch.tensor(MEAN)[:, None, None])


class Photographs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Random access to the split, as a DataLoader wants it."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.reader = SplitReader(root, manifest, "train", "size")

    def __len__(self) -> int:
        return sum(self.reader.lengths)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        image = self.reader.read(place)
        return augmented(image.jpg.tobytes()), image.label


def torch_dataloader(root: Path, manifest: Manifest) -> Batches:
    """The DataLoader of torch with two worker processes."""
    loader = torch.utils.data.DataLoader(
        Photographs(root, manifest),
        batch_size=BATCH,
        shuffle=True,
        num_workers=THREADS,
        persistent_workers=True,
        drop_last=True,
    )
    while True:
        yield from loader


def webdataset_loader(tars: list[str]) -> Batches:
    """The loader of webdataset as its documentation builds it, with two worker processes."""
    from webdataset.compat import WebDataset, WebLoader  # noqa: PLC0415 - 0.4 s to import

    samples: Any = WebDataset(tars, resampled=True, shardshuffle=False)
    dataset: Any = (
        samples.shuffle(1000).to_tuple("jpg", "cls").map_tuple(augmented, int).batched(BATCH)
    )
    yield from WebLoader(dataset, batch_size=None, num_workers=THREADS)
